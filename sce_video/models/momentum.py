"""The momentum branch: a moving average of the online encoder, and the queue of its past outputs."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError

M = TypeVar("M", bound=nn.Module)


def momentum_copy(module: M) -> M:
    """Return a copy with buffers and without gradients. It stays in training mode: its batch norms use batch statistics."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def ema_update(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """Set every parameter of `target` to `momentum * target + (1 - momentum) * online`, matched by name.

    `online` may have more parameters (a predictor). Buffers are not changed: the target's batch norms keep the running
    statistics of their own forward passes.
    """
    source = dict(online.named_parameters())
    targets = dict(target.named_parameters())
    torch._foreach_lerp_(list(targets.values()), [source[name] for name in targets], 1.0 - momentum)


def check_queue(queue: int, batch: int, views: int, name: str = "sce") -> None:
    """Raise InputError for a queue shorter than a step's keys. views: of a video that give keys; name: the options' section."""
    if queue < views * batch:
        raise InputError(
            f"{name}.queue ({queue}) must hold at least one step's keys, {views} * optim.batch = {views * batch}: every step "
            f"enqueues {dict([(1, 'view 1'), (2, 'both views')]).get(views, f'all {views} global views')}"
        )


class KeyQueue(nn.Module):
    """The last `size` keys, first in first out, as buffers saved in checkpoints; a push may wrap around at any size.

    `keys` [size, width] are unit rows, initially random; `pointer` (int64 scalar tensor) is the index of the next write.
    """

    keys: Tensor
    pointer: Tensor

    def __init__(self, size: int, width: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, width, generator=generator), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Overwrite the oldest entries with keys [N, width], oldest first. Raises ValueError if N exceeds the size."""
        size = len(self.keys)
        if len(keys) > size:
            raise ValueError(f"the queue holds {size} keys and cannot take {len(keys)} at once: enlarge it")
        rows = (self.pointer + torch.arange(len(keys), device=self.keys.device)) % size
        self.keys[rows] = keys.to(self.keys.dtype)
        self.pointer.copy_((self.pointer + len(keys)) % size)
