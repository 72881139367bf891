"""A message as bytes, and back: nothing is made of bytes before their checksum is right.

    head  64 bytes: magic, run, the description's size, the body's size and CRC-32, the head's own CRC-32
    body  the description, then the bytes of every tensor in the order of its memory, each from a multiple of 64

The description is JSON: the message's way (`Edge`), and of every tensor its dtype, shape, strides, and whether it is on
an accelerator, at both ends.
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

Layout = tuple[str, list[int], list[int], bool]
"""A tensor's dtype, shape, strides, and whether it is on an accelerator."""


class Announced(NamedTuple):
    """What a head says of the body behind it."""

    description: int  # bytes
    body: int  # bytes
    checksum: int


def pack(run: bytes, edge: Edge, message: Message) -> tuple[Tensor, Tensor]:
    """Head and body, both uint8 on the CPU: a copy, which does not change with the sender's tensors."""
    # The strides of a dense copy in the same memory format.
    layouts: list[Layout] = [
        (str(m.dtype), list(m.shape), list(torch.empty_like(m, device="meta").stride()), m.device.type != "cpu")
        for m in message
    ]
    description = json.dumps([edge.what, *edge.when, edge.source, edge.target, layouts]).encode()
    offsets, size = _offsets(len(description), layouts)
    body = torch.empty(size, dtype=torch.uint8)
    body[: len(description)] = _tensor(description)
    for m, at, layout in zip(message, offsets, layouts, strict=True):
        _view(body, at, layout).copy_(m)
    fields = _FIELDS.pack(_MAGIC, run, len(description), size, zlib.crc32(body.numpy().data))
    fields += bytes(HEAD - len(fields) - _CHECK.size)
    return _tensor(fields + _CHECK.pack(zlib.crc32(fields))), body


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


def unpack(announced: Announced, body: Tensor, device: torch.device) -> tuple[Edge, Message]:
    """The message; its tensors on the CPU are views of the body.  device: the accelerator, for the others.

    Raises WireError for a body that is damaged.
    """
    if len(body) != announced.body or zlib.crc32(body.numpy().data) != announced.checksum:
        raise WireError("got a damaged body, expected one that agrees with its head")
    described: Any = json.loads(body[: announced.description].numpy().tobytes())
    what, training, step, micro, source, target, layouts = described
    offsets, size = _offsets(announced.description, layouts)
    assert size == announced.body, "both ends run the same code"
    message = tuple(
        _view(body, at, layout).to(device if layout[3] else "cpu") for at, layout in zip(offsets, layouts, strict=True)
    )
    return Edge(what, When(training, step, micro), source, target), message


def _offsets(start: int, layouts: list[Layout]) -> tuple[list[int], int]:
    """Where every tensor begins, and where the last one ends."""
    offsets: list[int] = []
    for dtype, shape, *_ in layouts:
        offsets.append(-(-start // ALIGNED) * ALIGNED)
        start = offsets[-1] + torch.Size(shape).numel() * _DTYPES[dtype].itemsize
    return offsets, start


def _view(body: Tensor, at: int, layout: Layout) -> Tensor:
    dtype, shape, strides = _DTYPES[layout[0]], layout[1], layout[2]
    flat = body[at : at + torch.Size(shape).numel() * dtype.itemsize].view(dtype)
    return flat.as_strided(shape, strides)


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
