"""Check that all ranks hold equal tensors.

Every rank updates its own copy of networks and queue from the same reduced values, so they stay equal to the bit. The loss
hardly shows a rank that differs (other code, other weights, broken memory).
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .. import distributed
from ..errors import InputError, Stopped


def _sum_of_bits(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor's bits read as integers, int64 scalar: it changes with every single element."""
    flat = tensor.detach().contiguous().reshape(-1)
    bits = flat.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
    return bits.sum(dtype=torch.int64)


def check_ranks_are_equal(tensors: dict[str, Tensor], step: int) -> None:
    """Raise Stopped on all ranks, naming the first tensor that differs, unless all ranks hold the same bits."""
    if not distributed.active():
        return
    sums = torch.stack([_sum_of_bits(tensor) for tensor in tensors.values()])
    everywhere = distributed.gather(sums[None])  # [ranks, tensors]
    differs = (everywhere != everywhere[0]).nonzero()
    if len(differs):
        tensor = int(differs[:, 1].min())
        ranks = sorted({int(rank) for rank, column in differs.tolist() if column == tensor})
        raise Stopped(
            f"at step {step} {list(tensors)[tensor]} of rank {', '.join(map(str, ranks))} is not that of rank 0 "
            f"({len(differs[:, 1].unique())} of {len(tensors)} tensors differ); checkpoints from before the last check are good; "
            "do all machines run the same code, and is their memory sound?"
        )


@contextmanager
def together() -> Iterator[None]:
    """Raise an InputError of one rank on all ranks, naming its machine. The block must not wait for other ranks."""
    problem = ""
    try:
        yield
    except InputError as error:
        problem = str(error)
    problems = distributed.gather_objects((problem, socket.gethostname()))
    found = [(rank, text, host) for rank, (text, host) in enumerate(problems) if text]
    if len(found) == len(problems) and len({text for _, text, _ in found}) == 1:
        raise InputError(found[0][1])
    if found:
        rank, text, host = found[0]
        raise InputError(f"{text} (on {len(found)} of {len(problems)} processes, first rank {rank} on host {host})")
