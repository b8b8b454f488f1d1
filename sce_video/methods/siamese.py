"""Parts of methods that compare views of a video: their networks, and an online encoder against its moving average."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import distributed, schedules
from ..errors import given
from ..models import backbones, momentum
from ..models.encoder import MLP, Encoder
from ..models.momentum import KeyQueue, ema_update, momentum_copy
from ..randomness import generator
from . import Rows, Step


def build_encoder(cfg: Any, *, projector_norm: bool = True, predictor_norm: bool = False) -> Encoder:
    """Return an encoder with the backbone and the widths of `cfg.model`, and heads as `models.encoder.MLP` builds them.

    `projector_layers` and `predictor_layers` (0 or absent: none) of the method's options count linear layers. The norms follow
    the last ones.
    """
    backbone, width = backbones.build(cfg.model.backbone)
    hidden, projection = cfg.model.hidden, cfg.model.projection
    depth, further = cfg.method_options.projector_layers, getattr(cfg.method_options, "predictor_layers", 0)
    projector = MLP([width, *[hidden] * (depth - 1), projection], last_norm=projector_norm)
    if not further:
        return Encoder(backbone, projector)
    return Encoder(backbone, projector, MLP([projection, *[hidden] * (further - 1), projection], last_norm=predictor_norm))


def check_queue(cfg: Any, name: str, options: Any) -> None:
    """Raise InputError unless the queue in the options of section `name` holds the keys of a step."""
    batch: Any = getattr(cfg.optim, "batch", "???")
    if given(options.queue, batch):
        momentum.check_queue(options.queue, batch, getattr(cfg.augment, "global_views", 2) if options.symmetric else 1, name)


def compare_views(
    online: nn.Module,
    target: nn.Module,
    views: Sequence[Tensor],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    num_keys: int,
    first: int = 0,
    part: int | None = None,
    keys: Sequence[Tensor] = (),
) -> Step:
    """Return the mean loss over all pairs of an online view and another view's key, or the share of one online view in it.

    Each view passes alone, so batch norm sees one view at a time.

    views: global, then local. loss: of (query, key), unit rows [B, C]. num_keys: the first views, which `target` encodes without
    gradient. first: the first online view. part: the online view, counted from `first`; None: all. keys: part 0's, for others.
    """
    if not keys:
        with torch.no_grad():
            keys = [target(view) for view in views[:num_keys]]
    queries = {j: online(views[j]) for j in (range(first, len(views)) if part is None else [first + part])}
    pairs = [(query, key) for i, key in enumerate(keys) for j, query in queries.items() if j != i]
    total = sum(i != j for i in range(len(keys)) for j in range(first, len(views)))
    mean = torch.stack([loss(query, key) for query, key in pairs]).sum() / total
    return Step(mean, keys, figures(queries[1], keys[0]) if 1 in queries else {})


@torch.no_grad()
def figures(query: Tensor, key: Tensor) -> dict[str, Tensor | float]:
    """Return figures of two views' unit rows [B, C] for the log: the similarity of pairs, and the spread of keys."""
    return {
        "positive_similarity": (query * key).sum(dim=1).mean(),
        # 1 for unit vectors spread evenly over the sphere, 0 when all keys have become the same.
        "feature_std": key.std(dim=0).mean() * key.shape[1] ** 0.5,
    }


class Siamese(nn.Module):
    """A method with a momentum encoder: `compare_views` with a loss.

    Args:
        name: of the method, for messages.
        online: encoder; the target is a copy without predictor.
        loss: of (query, key), unit rows [B, C]; with a queue, also of queue=[K, C].
        momentum_start, momentum_end: of the target at the start and, on a cosine, at the end.
        num_global: views that both encode. symmetric: each of them is the others' key; False: view 1 is the only key.
    """

    min_views = 2
    takes_local = True

    def __init__(
        self,
        name: str,
        online: Encoder,
        loss: Callable[..., Tensor],
        *,
        momentum_start: float,
        momentum_end: float = 1.0,
        num_global: int = 2,
        symmetric: bool = True,
        queue: KeyQueue | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.online = online
        self.target = momentum_copy(Encoder(online.backbone, online.projector))
        self.queue = queue
        self.loss = loss
        self.momentum_start = momentum_start
        self.momentum_end = momentum_end
        self.num_keys = num_global if symmetric else 1
        self.first = 0 if symmetric else 1

    def count_parts(self, num_views: int) -> int:
        """Return the number of online views: each has its own backward pass."""
        return num_views - self.first

    def forward(
        self, views: Sequence[Tensor], batch: Rows, where: float, part: int | None = None, keys: Sequence[Tensor] = ()
    ) -> Step:
        """Return the loss of one micro-batch, or of one part: see `compare_views`."""
        loss = self.loss if self.queue is None else partial(self.loss, queue=self.queue.keys)
        networks = self.online, self.target
        return compare_views(*networks, views, loss, num_keys=self.num_keys, first=self.first, part=part, keys=keys)

    def after_step(self, keys: Sequence[Tensor], where: float) -> None:
        """Move the target towards the online encoder, then enqueue the keys of all ranks, view by view."""
        follow(self, keys, schedules.cosine(where, self.momentum_start, self.momentum_end))


def build_with_queue(name: str, cfg: Any, loss: Callable[..., Tensor]) -> Siamese:
    """Build a method with a queue and a constant momentum, `momentum`, `queue` and `symmetric` of its options."""
    options = cfg.method_options
    return Siamese(
        name,
        build_encoder(cfg),
        loss,
        momentum_start=options.momentum,
        momentum_end=options.momentum,
        num_global=cfg.augment.global_views,
        symmetric=options.symmetric,
        queue=KeyQueue(options.queue, cfg.model.projection, generator(cfg.seed, "queue")),
    )


@torch.no_grad()
def follow(method: Any, keys: Sequence[Tensor], momentum: float) -> None:
    """Move `method.target` towards `method.online`, then push the keys [b, C] of this rank, view by view, into its queue if any.

    The queue receives view 0 of all ranks in rank order, then view 1, and so on: the same on every rank.
    """
    ema_update(method.target, method.online, momentum)
    if method.queue is not None:
        method.queue.push(torch.cat([distributed.gather(view) for view in keys]))
