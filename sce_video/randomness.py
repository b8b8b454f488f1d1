"""Randomness that depends on what it is for, never on who ran first: generators keyed by (seed, purpose, epoch, row, view).

Two calls with the same key give the same numbers in any worker, on any rank, after any resume.
"""

from __future__ import annotations

import hashlib

import torch


def generator(*key: int | str) -> torch.Generator:
    """Return a CPU generator whose state is a function of the key alone, e.g. `generator(seed, "clip", epoch, row, view)`."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))
