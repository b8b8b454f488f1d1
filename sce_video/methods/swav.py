"""SwAV: predict a view's assignment to prototypes from another view (Caron et al., NeurIPS 2020, arXiv:2006.09882).

The codes of global views come from `losses.sinkhorn` over the views of all ranks' videos in the micro-batch, without gradient;
`losses.swapped` compares them with the scores of every other view. The prototypes are trained with the encoder and have unit
length. Differs from the paper: no queue of earlier views helps small batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import distributed, losses
from ..models.encoder import Encoder
from . import Rows, Step, siamese


@dataclass
class SwAVOptions:
    """Options of the section `swav`. Defaults: the paper's."""

    prototypes: int = 3000  # appendix A
    temp: float = 0.1  # of the scores; appendix A
    epsilon: float = 0.05  # entropy of the codes; appendix A
    iterations: int = 3  # of Sinkhorn-Knopp; appendix A
    freeze_epochs: float = 1.0  # at the start, in which the prototypes get a gradient of 0; appendix A
    projector_layers: int = 2  # linear layers; appendix A


class SwAV(nn.Module):
    """One encoder and the prototypes [K, C], unit rows.

    num_global: views that give codes; further views only predict them. freeze: share of training without a gradient for the
    prototypes.
    """

    Options = SwAVOptions
    min_views = 2
    takes_local = True

    def __init__(self, online: Encoder, options: SwAVOptions, *, width: int, num_global: int = 2, freeze: float = 0.0) -> None:
        super().__init__()
        self.online = online
        self.prototypes = nn.Parameter(F.normalize(torch.randn(options.prototypes, width), dim=1))
        self.options = options
        self.num_global = num_global
        self.freeze = freeze

    @staticmethod
    def build(cfg: Any) -> SwAV:
        """Build the method and its networks as the recipe says."""
        options: SwAVOptions = cfg.method_options
        online = siamese.build_encoder(cfg, projector_norm=False)
        freeze = options.freeze_epochs / cfg.optim.epochs
        return SwAV(online, options, width=cfg.model.projection, num_global=cfg.augment.global_views, freeze=freeze)

    def forward(self, views: Sequence[Tensor], batch: Rows, where: float) -> Step:
        """Return the loss of one micro-batch: the mean over pairs of a view's codes and another view's scores."""
        # A gradient of 0 rather than none: several processes wait for every parameter's.
        prototypes = self.prototypes.detach() + 0 * self.prototypes if where < self.freeze else self.prototypes
        rows = [self.online(view) for view in views]
        scores = [view @ prototypes.to(view.dtype).T for view in rows]
        codes = [self._codes(view) for view in scores[: self.num_global]]
        pairs = [(scores[v], code) for i, code in enumerate(codes) for v in range(len(views)) if v != i]
        loss = torch.stack([losses.swapped(view, code, temp=self.options.temp) for view, code in pairs]).mean()
        return Step(loss, figures=siamese.figures(rows[1], rows[0]))

    def _codes(self, scores: Tensor) -> Tensor:
        options, first = self.options, distributed.rank() * len(scores)
        every = losses.sinkhorn(distributed.gather(scores), epsilon=options.epsilon, iterations=options.iterations)
        return every[first : first + len(scores)]

    @torch.no_grad()
    def after_step(self, keys: Sequence[Tensor], where: float) -> None:
        """Bring the prototypes back to unit length."""
        self.prototypes.copy_(F.normalize(self.prototypes, dim=1))
