"""SimCLR: two views of a video against all other videos of the step (Chen et al., ICML 2020, arXiv:2002.05709).

`losses.nt_xent` for every pair of views, averaged over pairs. The negatives are the views of all ranks' videos in the
micro-batch: `optim.accumulate` makes them fewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from .. import distributed, losses
from ..models.encoder import Encoder
from . import Rows, Step, siamese


@dataclass
class SimCLROptions:
    """Options of the section `simclr`. Defaults: the paper's."""

    temp: float = 0.1  # of the similarities; sec. 5.1
    projector_layers: int = 2  # linear layers; the paper


class SimCLR(nn.Module):
    """One encoder; there is no momentum branch."""

    Options = SimCLROptions
    min_views = 2

    def __init__(self, online: Encoder, options: SimCLROptions) -> None:
        super().__init__()
        self.online = online
        self.options = options

    @staticmethod
    def build(cfg: Any) -> SimCLR:
        """Build the method and its networks as the recipe says."""
        return SimCLR(siamese.build_encoder(cfg), cfg.method_options)

    def forward(self, views: Sequence[Tensor], batch: Rows, where: float) -> Step:
        """Return the loss of one micro-batch of two or more views."""
        rows = [self.online(view) for view in views]
        every = [distributed.gather_with_gradient(view) for view in rows]
        fixed: Any = {"temp": self.options.temp, "offset": distributed.rank() * len(rows[0])}
        pairs = [losses.nt_xent(rows[i], rows[j], every[i], every[j], **fixed) for i, j in combinations(range(len(rows)), 2)]
        return Step(torch.stack(pairs).mean(), figures=siamese.figures(rows[0], rows[1]))

    def after_step(self, keys: Sequence[Tensor], where: float) -> None:
        """Do nothing."""
