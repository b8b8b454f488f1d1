"""SCE: Similarity Contrastive Estimation with a momentum encoder and a queue (Denize et al., MVAP 2023).

Per step, in the paper's order: the target encodes the global views, the online encoder all views; each online output is
compared with the target of every other global view and the queue (`losses.sce`); after the optimiser step the target
follows the online encoder and the keys of all ranks enter the queue. `coeff=1` is MoCo with a symmetric loss.

Shape legend: B clips per rank and view, C projection width, K queue size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import MISSING
from torch import Tensor, nn

from .. import distributed, losses, schedules
from ..errors import InputError, require
from ..models.encoder import Encoder
from ..models.momentum import KeyQueue, ema_update, momentum_copy
from . import Rows, Step


@dataclass
class SCEOptions:
    """Loss and target encoder; see losses.sce and SCE."""

    coeff: float = MISSING  # weight of the positive in the target distribution; 1 is MoCo
    temp: float = MISSING  # temperature of the query
    temp_target: float = MISSING  # temperature of the target distribution
    queue: int = MISSING  # keys kept
    momentum: float = MISSING  # initial momentum of the target encoder; rises to 1 on a cosine
    symmetric: bool = True  # each view is the other's key; false: view 1 is the key, view 2 the query
    mask_positive: bool = True  # as in the paper; false: the reference's code (see losses.sce)
    warmup_epochs: float = 0.0  # epochs in which the next two values move to coeff and temp_target
    coeff_start: float | None = None
    temp_target_start: float | None = None

    def __post_init__(self) -> None:
        require(self.coeff, "sce.coeff", lambda value: 0 <= value <= 1, "in [0, 1]")
        require(self.temp, "sce.temp", lambda value: value > 0, "positive")
        require(self.temp_target, "sce.temp_target", lambda value: value > 0, "positive")
        require(self.momentum, "sce.momentum", lambda value: 0 <= value <= 1, "in [0, 1]")
        require(self.queue, "sce.queue", lambda value: value >= 1, "positive")
        if self.warmup_epochs == 0 and (self.coeff_start is not None or self.temp_target_start is not None):
            raise InputError("sce.coeff_start and sce.temp_target_start need sce.warmup_epochs above 0")


class SCE(nn.Module):
    """The method as one module: online and target encoder, queue.

    Args:
        online: encoder with projector and predictor; the target is a copy without predictor.
        queue_size, width: K and C. The queue must hold the keys of one step: (global views) x (global batch).
        temp, temp_target, coeff, mask_positive: see `losses.sce`.
        momentum: of the target at the start, rising to 1 by a cosine.
        temp_target_start, coeff_start, warmup: `warmup` is the fraction of training in which temp_target (on a cosine) and
            coeff (linearly) go from their `_start` values to their final ones; 0 is off.
        symmetric: every global view is a key for all other views; False: only `views[0]` (`augment.view1`) gives keys.
        num_global: the first views, seen by both encoders; further views are local crops for the online encoder only.
        generator: of the queue's random start.
    """

    def __init__(
        self,
        online: Encoder,
        *,
        queue_size: int,
        width: int,
        temp: float,
        temp_target: float,
        coeff: float,
        momentum: float,
        mask_positive: bool = True,
        temp_target_start: float | None = None,
        coeff_start: float | None = None,
        warmup: float = 0.0,
        symmetric: bool = True,
        num_global: int = 2,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.online = online
        self.target = momentum_copy(Encoder(online.backbone, online.projector))
        self.queue = KeyQueue(queue_size, width, generator)
        self.temp = temp
        self.temp_target = temp_target
        self.coeff = coeff
        self.momentum = momentum
        self.mask_positive = mask_positive
        self.temp_target_start = temp_target if temp_target_start is None else temp_target_start
        self.coeff_start = coeff if coeff_start is None else coeff_start
        self.warmup = warmup
        self.symmetric = symmetric
        self.num_global = num_global

    def temp_target_at(self, where: float) -> float:
        """Return the target's temperature at `where`."""
        if where >= self.warmup:
            return self.temp_target
        return schedules.cosine(where / self.warmup, self.temp_target_start, self.temp_target)

    def coeff_at(self, where: float) -> float:
        """Return the weight of the positive at `where`."""
        return self.coeff if where >= self.warmup else schedules.linear(where / self.warmup, self.coeff_start, self.coeff)

    def momentum_at(self, where: float) -> float:
        """Return the target's momentum at `where`: 1 - (1 - momentum) (cos(pi where) + 1) / 2."""
        return schedules.cosine(where, self.momentum, 1.0)

    def count_parts(self, num_views: int) -> int:
        """Return the number of online views: the loss of each depends on no other, so that each has its own backward pass."""
        return num_views if self.symmetric else num_views - 1

    def forward(
        self, views: Sequence[Tensor], batch: Rows, where: float, part: int | None = None, keys: Sequence[Tensor] = ()
    ) -> Step:
        """Return the loss of one micro-batch, or of one part. Each view passes alone, so batch norm sees one view at a time.

        part: the online view, counted without `views[0]` if not symmetric; None: all. keys: part 0's result, for the others.
        """
        if not keys:
            with torch.no_grad():
                keys = [self.target(view) for view in views[: self.num_global if self.symmetric else 1]]
        first = 0 if self.symmetric else 1
        online = range(first, len(views)) if part is None else [first + part]
        queries = {j: self.online(views[j]) for j in online}
        # All pairs of an online view j and a momentum view i with i != j.
        pairs = [(query, key) for i, key in enumerate(keys) for j, query in queries.items() if j != i]
        total = sum(i != j for i in range(len(keys)) for j in range(first, len(views)))
        fixed: Any = {"temp": self.temp, "temp_target": self.temp_target_at(where), "mask_positive": self.mask_positive}
        fixed["coeff"] = self.coeff_at(where)
        loss = torch.stack([losses.sce(query, key, self.queue.keys, **fixed) for query, key in pairs]).sum() / total
        return Step(loss, keys, self._figures(queries[1], keys[0], where) if 1 in queries else {})

    @torch.no_grad()
    def _figures(self, query: Tensor, key: Tensor, where: float) -> dict[str, Tensor | float]:
        return {
            "positive_similarity": (query * key).sum(dim=1).mean(),
            # 1 for unit vectors spread evenly over the sphere, 0 when all keys have become the same.
            "feature_std": key.std(dim=0).mean() * key.shape[1] ** 0.5,
            "ema_momentum": self.momentum_at(where),
        }

    @torch.no_grad()
    def after_step(self, keys: Sequence[Tensor], where: float) -> None:
        """Move the target towards the online encoder, then enqueue the keys [b, C] of this rank, view by view.

        The queue receives view 0 of all ranks in rank order, then view 1, and so on: the same on every rank.
        """
        ema_update(self.target, self.online, self.momentum_at(where))
        self.queue.push(torch.cat([distributed.gather(view) for view in keys]))
