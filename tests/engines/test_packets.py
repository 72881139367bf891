"""A message comes back from its bytes as it was, and no changed byte goes unseen."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sidestep.engines.packets import HEAD, check_cargo, pack, read_head, unpack
from sidestep.engines.wire import Edge, When
from sidestep.errors import WireError

RUN = bytes(range(16))
CPU = torch.device("cpu")
EDGE = Edge("0 match", When(True, 7, 1), 2, 3, 32)
DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool]


def there_and_back(message: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    head, body = pack(RUN, EDGE, message)
    assert len(head) == HEAD
    opened = unpack(read_head(RUN, head), body)
    assert opened.edge == EDGE and not opened.cargo
    return opened.message(CPU)


@given(
    st.lists(
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=4), st.integers(0, 23)), max_size=4
    )
)
def test_values_dtypes_shapes_and_strides_are_kept(drawn: list[tuple[torch.dtype, list[int], int]]) -> None:
    message: list[Tensor] = []
    for dtype, shape, turn in drawn:
        t = torch.randint(0, 2, shape).to(dtype)
        dims = list(range(len(shape)))
        first = turn % max(len(dims), 1)
        message.append(t.permute(dims[first:] + dims[:first]))  # dense, and not always in C order
    for sent, found in zip(message, there_and_back(tuple(message)), strict=True):
        assert found.dtype == sent.dtype and torch.equal(found, sent)
        assert found.stride() == torch.empty_like(sent).stride()


def test_an_image_stays_channels_last_and_a_slice_is_sent_alone() -> None:
    image = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    rows = torch.randn(6, 5)[::2, 1:4]
    spread = torch.randn(3, 1).expand(3, 4)
    found = there_and_back((image, rows, spread))
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(a, b) for a, b in zip(found, (image, rows, spread), strict=True))
    assert all(t.data_ptr() % 64 == 0 for t in found)


def test_what_was_packed_does_not_change_with_its_sender() -> None:
    h = torch.ones(3)
    head, body = pack(RUN, EDGE, (h,))
    h.zero_()
    assert torch.equal(unpack(read_head(RUN, head), body).message(CPU)[0], torch.ones(3))


def test_every_changed_byte_is_seen() -> None:
    head, body = pack(RUN, EDGE, (torch.randn(5, 3), torch.arange(4)))
    for whole, name in ((head, "head"), (body, "body")):
        for k in range(len(whole)):
            whole[k] ^= 1 << k % 8
            with pytest.raises(WireError, match=r"damaged|begin no message"):
                unpack(read_head(RUN, head), body)
            whole[k] ^= 1 << k % 8
        assert unpack(read_head(RUN, head), body).edge == EDGE, name
    with pytest.raises(WireError, match="damaged body"):
        unpack(read_head(RUN, head), body[:-1])


def test_what_travels_apart_comes_back_as_it_was_and_no_changed_byte_of_it_goes_unseen() -> None:
    """The CPU stands for the accelerator: all of the message is cargo."""
    image = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    message = (image, torch.arange(3, dtype=torch.uint8), torch.tensor(2.5, dtype=torch.bfloat16))
    head, body, cargo = pack(RUN, EDGE, message, apart=CPU)
    opened = unpack(read_head(RUN, head), body)
    assert opened.edge == EDGE and opened.cargo == len(cargo)
    check_cargo(cargo)
    found = opened.message(CPU, cargo)
    assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(found, message, strict=True))
    for k in range(len(cargo)):
        cargo[k] ^= 1 << k % 8
        with pytest.raises(WireError, match="damaged cargo"):
            check_cargo(cargo)
        cargo[k] ^= 1 << k % 8
    assert len(pack(RUN, EDGE, (), apart=CPU)) == 2


def test_a_message_of_another_run_is_refused() -> None:
    head, _ = pack(bytes(16), EDGE, ())
    with pytest.raises(WireError, match=f"got a message of run {bytes(16).hex()}, expected one of {RUN.hex()}"):
        read_head(RUN, head)
