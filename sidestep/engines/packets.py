"""A message as bytes, and back: nothing is made of bytes before their checksum is right.

    head   64 bytes: magic, run, the description's size, the body's size and CRC-32, the head's own CRC-32
    body   the description, then the bytes of every tensor in the order of its memory, each from a multiple of 64
    cargo  the bytes of tensors that travel from accelerator to accelerator, laid out likewise, and their sum

The description is JSON: the message's way (`Edge`), and of every tensor its dtype, shape, strides, and its place.
"""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sidestep.core.emit import Message
from sidestep.errors import WireError

from .wire import Edge, When

HEAD = 64
RUN = 16
"""Bytes that tell one run's messages from another's."""
ALIGNED = 64  # as torch's own allocations are, so that a view has what kernels expect
_MAGIC = b"sidestep"
_FIELDS = struct.Struct(f"<8s{RUN}sIQI")
_CHECK = struct.Struct("<I")
_DTYPES = {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}

_SUM = 8  # bytes: the sum of a cargo's 64-bit words, which an accelerator finds without waiting for anybody
_HOST, _DEVICE, _APART = "host", "device", "apart"
"""Where a tensor lies at both ends: with the CPU; on an accelerator, its bytes in the body; there, in the cargo."""

Layout = tuple[str, list[int], list[int], str]
"""A tensor's dtype, shape, strides and place."""


class Announced(NamedTuple):
    """What a head says of the body behind it."""

    description: int  # bytes
    body: int  # bytes
    checksum: int


def pack(run: bytes, edge: Edge, message: Message, apart: torch.device | None = None) -> tuple[Tensor, ...]:
    """Head and body, both uint8 on the CPU: a copy, which does not change with the sender's tensors.

    apart: tensors that lie there are a third part, the cargo, which stays there.
    """
    layouts = [_layout(m, apart) for m in message]
    description = json.dumps([*edge, layouts]).encode()
    offsets, size, cargo = _offsets(len(description), layouts)
    body = torch.empty(size, dtype=torch.uint8)
    body[: len(description)] = _tensor(description)
    loaded = torch.empty(cargo, dtype=torch.uint8, device=apart) if cargo else None
    for m, at, layout in zip(message, offsets, layouts, strict=True):
        whole = loaded if layout[3] == _APART else body
        assert whole is not None
        _view(whole, at, layout).copy_(m)
    fields = _FIELDS.pack(_MAGIC, run, len(description), size, zlib.crc32(body.numpy().data))
    fields += bytes(HEAD - len(fields) - _CHECK.size)
    head = _tensor(fields + _CHECK.pack(zlib.crc32(fields)))
    if loaded is None:
        return head, body
    loaded[-_SUM:].view(torch.int64).copy_(_sum(loaded))
    return head, body, loaded


def read_head(run: bytes, head: Tensor) -> Announced:
    """What is to come.  Raises WireError for a head that is none, is damaged or is of another run."""
    data = head.numpy().tobytes()
    fields = data[: -_CHECK.size]
    magic, its_run, description, body, checksum = _FIELDS.unpack(fields[: _FIELDS.size])
    if magic != _MAGIC:
        raise WireError(f"got bytes that begin no message, {data[:8]!r}, expected {_MAGIC!r}")
    if _CHECK.unpack(data[-_CHECK.size :]) != (zlib.crc32(fields),):
        raise WireError("got a damaged head, expected one that agrees with its checksum")
    if its_run != run:
        raise WireError(f"got a message of run {its_run.hex()}, expected one of {run.hex()}")
    return Announced(description, body, checksum)


class Opened(NamedTuple):
    """A body that agrees with its head."""

    edge: Edge
    layouts: list[Layout]
    body: Tensor
    offsets: list[int]
    cargo: int  # bytes that are still to come

    def message(self, device: torch.device, cargo: Tensor | None = None) -> Message:
        """Its tensors; those on the CPU are views of the body, those that came apart of the cargo.

        device: the accelerator, for those that lie there.
        """
        found: list[Tensor] = []
        for at, layout in zip(self.offsets, self.layouts, strict=True):
            whole = cargo if layout[3] == _APART else self.body
            assert whole is not None, "what came apart is given"
            view = _view(whole, at, layout)
            found.append(view.to(device) if layout[3] == _DEVICE else view)
        return tuple(found)


def unpack(announced: Announced, body: Tensor) -> Opened:
    """What is in a body.  Raises WireError for one that is damaged."""
    if len(body) != announced.body or zlib.crc32(body.numpy().data) != announced.checksum:
        raise WireError("got a damaged body, expected one that agrees with its head")
    described: Any = json.loads(body[: announced.description].numpy().tobytes())
    what, when, *rest, layouts = described
    offsets, size, cargo = _offsets(announced.description, layouts)
    assert size == announced.body, "both ends run the same code"
    return Opened(Edge(what, When(*when), *rest), layouts, body, offsets, cargo)


def check_cargo(cargo: Tensor) -> None:
    """Raises WireError for one that is damaged.  Waits for the device."""
    if not torch.equal(cargo[-_SUM:].view(torch.int64)[0], _sum(cargo)):
        raise WireError("got a damaged cargo, expected one that agrees with its sum")


def _layout(m: Tensor, apart: torch.device | None) -> Layout:
    place = _APART if apart is not None and m.device == apart else _HOST if m.device.type == "cpu" else _DEVICE
    # The strides of a dense copy in the same memory format.
    return str(m.dtype), list(m.shape), list(torch.empty_like(m, device="meta").stride()), place


def _offsets(description: int, layouts: list[Layout]) -> tuple[list[int], int, int]:
    """Where every tensor begins, in the body or in the cargo; where the body ends, and the cargo, 0 without one."""
    ends, offsets = {False: description, True: 0}, list[int]()
    for dtype, shape, _, place in layouts:
        offsets.append(-(-ends[place == _APART] // ALIGNED) * ALIGNED)
        ends[place == _APART] = offsets[-1] + torch.Size(shape).numel() * _DTYPES[dtype].itemsize
    anything = any(layout[3] == _APART for layout in layouts)
    return offsets, ends[False], -(-ends[True] // _SUM) * _SUM + _SUM if anything else 0


def _sum(cargo: Tensor) -> Tensor:
    """Of all 64-bit words but the last, () int64; it wraps."""
    return cargo[:-_SUM].view(torch.int64).sum()


def _view(body: Tensor, at: int, layout: Layout) -> Tensor:
    dtype, shape, strides = _DTYPES[layout[0]], layout[1], layout[2]
    flat = body[at : at + torch.Size(shape).numel() * dtype.itemsize].view(dtype)
    return flat.as_strided(shape, strides)


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
