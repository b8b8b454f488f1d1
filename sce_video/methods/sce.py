"""SCE: Similarity Contrastive Estimation with a momentum encoder and a queue (Denize et al., MVAP 2023).

Per step, in the paper's order: the target encodes the global views, the online encoder all views; each online output is
compared with the target of every other global view and the queue (`losses.sce`); after the optimiser step the target
follows the online encoder and the keys of all ranks enter the queue. `coeff=1` is MoCo with a symmetric loss.

Shape legend: B clips per rank and view, C projection width, K queue size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from omegaconf import MISSING
from torch import Tensor, nn

from .. import distributed, losses, schedules
from ..errors import InputError, require
from ..models.encoder import Encoder
from ..models.momentum import KeyQueue, momentum_copy
from ..randomness import generator
from . import Rows, Step, siamese


@dataclass
class SCEOptions:
    """Loss and target encoder; see losses.sce and SCE."""

    coeff: float = MISSING  # weight of the positive in the target distribution; 1 is MoCo
    temp: float = MISSING  # temperature of the query
    temp_target: float = MISSING  # temperature of the target distribution
    queue: int = MISSING  # keys kept; 0 with use_keys: none
    momentum: float = MISSING  # initial momentum of the target encoder
    momentum_end: float = 1.0  # it moves there on a cosine; the same as `momentum`: constant
    use_keys: bool = False  # the keys of all videos of the step are candidates beside the queue
    projector_layers: int = 3  # linear layers; as in the paper's appendix
    predictor_layers: int = 2  # 0: no predictor
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
        least = 0 if self.use_keys is True else 1
        require(self.queue, "sce.queue", lambda value: value >= least, "positive, or 0 with sce.use_keys=true")
        if self.warmup_epochs == 0 and (self.coeff_start is not None or self.temp_target_start is not None):
            raise InputError("sce.coeff_start and sce.temp_target_start need sce.warmup_epochs above 0")

    def check(self, cfg: Any) -> None:
        """Raise InputError for a queue that does not hold a step's keys."""
        if self.queue != 0:
            siamese.check_queue(cfg, "sce", self)


class SCE(nn.Module):
    """The method as one module: online and target encoder, queue.

    Args:
        online: encoder with projector and predictor; the target is a copy without predictor.
        queue_size, width: K and C. The queue must hold the keys of one step: (global views) x (global batch).
        temp, temp_target, coeff, mask_positive: see `losses.sce`.
        momentum, momentum_end: of the target at the start and, on a cosine, at the end.
        use_keys: the keys of the same view of all ranks' videos are candidates too. queue_size: 0 is no queue.
        temp_target_start, coeff_start, warmup: `warmup` is the fraction of training in which temp_target (on a cosine) and
            coeff (linearly) go from their `_start` values to their final ones; 0 is off.
        symmetric: every global view is a key for all other views; False: only `views[0]` (`augment.view1`) gives keys.
        num_global: the first views, seen by both encoders; further views are local crops for the online encoder only.
        generator: of the queue's random start.
    """

    Options = SCEOptions
    takes_local = True
    min_views = 2

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
        momentum_end: float = 1.0,
        use_keys: bool = False,
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
        self.queue = KeyQueue(queue_size, width, generator) if queue_size else None
        self.temp = temp
        self.temp_target = temp_target
        self.coeff = coeff
        self.momentum = momentum
        self.momentum_end = momentum_end
        self.use_keys = use_keys
        self.mask_positive = mask_positive
        self.temp_target_start = temp_target if temp_target_start is None else temp_target_start
        self.coeff_start = coeff if coeff_start is None else coeff_start
        self.warmup = warmup
        self.symmetric = symmetric
        self.num_global = num_global

    @staticmethod
    def build(cfg: Any) -> SCE:
        """Build SCE and its networks as the recipe says."""
        options: SCEOptions = cfg.method_options
        same = ("temp", "temp_target", "coeff", "momentum", "momentum_end", "use_keys", "mask_positive", "symmetric")
        return SCE(
            siamese.build_encoder(cfg),
            queue_size=options.queue,
            width=cfg.model.projection,
            **{name: getattr(options, name) for name in (*same, "temp_target_start", "coeff_start")},
            warmup=options.warmup_epochs / cfg.optim.epochs,
            num_global=cfg.augment.global_views,
            generator=generator(cfg.seed, "queue"),
        )

    def temp_target_at(self, where: float) -> float:
        """Return the target's temperature at `where`."""
        if where >= self.warmup:
            return self.temp_target
        return schedules.cosine(where / self.warmup, self.temp_target_start, self.temp_target)

    def coeff_at(self, where: float) -> float:
        """Return the weight of the positive at `where`."""
        return self.coeff if where >= self.warmup else schedules.linear(where / self.warmup, self.coeff_start, self.coeff)

    def momentum_at(self, where: float) -> float:
        """Return the target's momentum at `where`: for an end of 1, 1 - (1 - momentum) (cos(pi where) + 1) / 2."""
        return schedules.cosine(where, self.momentum, self.momentum_end)

    def count_parts(self, num_views: int) -> int:
        """Return the number of online views: the loss of each depends on no other, so that each has its own backward pass."""
        return num_views if self.symmetric else num_views - 1

    def forward(
        self, views: Sequence[Tensor], batch: Rows, where: float, part: int | None = None, keys: Sequence[Tensor] = ()
    ) -> Step:
        """Return the loss of one micro-batch, or of one part: see `siamese.compare_views`."""
        step = siamese.compare_views(
            self.online,
            self.target,
            views,
            partial(self._loss, where),
            num_keys=self.num_global if self.symmetric else 1,
            first=0 if self.symmetric else 1,
            part=part,
            keys=keys,
        )
        return step._replace(figures=step.figures and {**step.figures, "ema_momentum": self.momentum_at(where)})

    def _loss(self, where: float, query: Tensor, key: Tensor) -> Tensor:
        fixed: Any = {"temp": self.temp, "temp_target": self.temp_target_at(where), "coeff": self.coeff_at(where)}
        if self.use_keys:
            fixed |= {"batch_keys": distributed.gather(key), "batch_offset": distributed.rank() * len(key)}
        queue = self.queue.keys if self.queue is not None else None
        return losses.sce(query, key, queue, **fixed, mask_positive=self.mask_positive)

    def after_step(self, keys: Sequence[Tensor], where: float) -> None:
        """Move the target towards the online encoder, then enqueue the keys of all ranks: see `siamese.follow`."""
        siamese.follow(self, keys, self.momentum_at(where))
