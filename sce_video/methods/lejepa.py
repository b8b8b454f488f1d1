"""LeJEPA: views agree, and their embeddings are normally distributed; no momentum encoder, queue, predictor or temperature.

Balestriero and LeCun, 2025, arXiv:2511.08544. The loss is `(1 - weight) * invariance + weight * SIGReg`: the mean squared
distance of every view's embedding, global or local, from the mean embedding of the video's global views, and `losses.sigreg`,
which pushes the embeddings of each view over all videos of the micro-batch and all ranks towards a standard normal distribution.
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
from ..randomness import generator
from . import Rows, Step, siamese


@dataclass
class LeJEPAOptions:
    """Options of the section `lejepa`. Defaults: the paper's."""

    weight: float = 0.05  # lambda, of SIGReg against invariance; the paper's recommendation
    directions: int = 256  # random directions of a step; the paper's listing
    projector_layers: int = 3  # linear layers; the paper


class LeJEPA(nn.Module):
    """One encoder, whose projections are compared as they are, not normalised. num_global: views that are the target."""

    Options = LeJEPAOptions
    min_views = 2
    takes_local = True

    def __init__(self, online: Encoder, options: LeJEPAOptions, *, width: int, num_global: int = 2, seed: int = 0) -> None:
        super().__init__()
        self.online = online
        self.options = options
        self.width = width
        self.num_global = num_global
        self.seed = seed

    @staticmethod
    def build(cfg: Any) -> LeJEPA:
        """Build the method and its networks as the recipe says."""
        options: LeJEPAOptions = cfg.method_options
        online = siamese.build_encoder(cfg, projector_norm=False)
        return LeJEPA(online, options, width=cfg.model.projection, num_global=cfg.augment.global_views, seed=cfg.seed)

    def forward(self, views: Sequence[Tensor], batch: Rows, where: float) -> Step:
        """Return the loss of one micro-batch."""
        rows = [self.online.projector(self.online.backbone(view)) for view in views]
        rows = [view.to(torch.promote_types(view.dtype, torch.float32)) for view in rows]
        centre = torch.stack(rows[: self.num_global]).mean(dim=0)
        invariance = torch.stack([(view - centre) ** 2 for view in rows]).mean()
        # The same directions on all ranks and after a resumption, others in every step.
        directions = torch.randn(self.width, self.options.directions, generator=generator(self.seed, "directions", repr(where)))
        directions = F.normalize(directions, dim=0).to(rows[0].device)
        normality = [losses.sigreg(distributed.gather_with_gradient(view), directions) for view in rows]
        regulariser = torch.stack(normality).mean()
        figures = {"invariance": invariance.detach(), "sigreg": regulariser.detach()}
        alike = siamese.figures(F.normalize(rows[1], dim=1), F.normalize(rows[0], dim=1))
        return Step((1 - self.options.weight) * invariance + self.options.weight * regulariser, figures={**alike, **figures})

    def after_step(self, keys: Sequence[Tensor], where: float) -> None:
        """Do nothing."""
