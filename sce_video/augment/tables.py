"""Small tables of numbers that travel from the host to the device together, in one asynchronous copy."""

from __future__ import annotations

import torch
from torch import Tensor

from ..distributed import to_device


class Part:
    """One table of a `Block`; its numbers are on the device after `Block.send`."""

    def __init__(self, block: Block, start: int, shape: torch.Size) -> None:
        self.shape = shape
        self._block = block
        self._start = start

    def numbers(self) -> Tensor:
        """Return the table as float32."""
        return self._as(torch.float32)

    def integers(self) -> Tensor:
        """Return the table as int64."""
        return self._as(torch.int64)

    def int32(self) -> Tensor:
        """Return the table as int32."""
        return self._as(torch.int32)

    def offsets(self) -> Tensor:
        """Return a table of offsets into a buffer as int32 where all offsets of the block fit, which halves the memory."""
        return self._as(torch.int32 if self._block.largest < 2**31 else torch.int64)

    def _as(self, dtype: torch.dtype) -> Tensor:
        flat = self._block.sent(dtype)
        return flat[self._start : self._start + self.shape.numel()].view(self.shape)


class Block:
    """Collects tables, then sends them: `add` all, `send` once, read the parts.

    The numbers travel as float64, which holds the offsets of a batch's bytes exactly.
    """

    def __init__(self, device: torch.device, largest: int = 0) -> None:
        self.device = device
        self.largest = largest  # offset plus 1
        self._tables: list[Tensor] = []
        self._length = 0
        self._sent: dict[torch.dtype, Tensor] = {}

    def add(self, table: Tensor) -> Part:
        """Add a table of any number type on the CPU."""
        part = Part(self, self._length, table.shape)
        self._tables.append(table.reshape(-1).double())
        self._length += table.numel()
        return part

    def send(self) -> None:
        """Copy all tables to the device, from pinned memory without waiting."""
        self._sent = {torch.float64: to_device(torch.cat(self._tables), self.device)}

    def sent(self, dtype: torch.dtype) -> Tensor:
        """Return all tables in one row on the device, converted once per type."""
        if dtype not in self._sent:
            self._sent[dtype] = self._sent[torch.float64].to(dtype)
        return self._sent[dtype]
