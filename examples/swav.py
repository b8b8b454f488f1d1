"""SwAV in one file outside the package (Caron et al., 2020), with prototypes outside `online`, which are trained with it.

python tools/pretrain.py method=examples/swav.py:OwnSwAV OwnSwAV.prototypes=64 out=runs/own_swav
python tools/evaluate.py checkpoint=runs/own_swav train=synthetic test=synthetic
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from sce_video import distributed, losses
from sce_video.methods import Step
from sce_video.models import backbones
from sce_video.models.encoder import MLP, Encoder


class OwnSwAV(nn.Module):
    """An encoder and a linear layer whose rows are the prototypes."""

    min_views = 2

    @dataclass
    class Options:
        """Options of the section `OwnSwAV`."""

        prototypes: int = 64
        temp: float = 0.1  # of the scores

    @staticmethod
    def build(cfg):
        """Return the method with the networks that the recipe names."""
        backbone, width = backbones.build(cfg.model.backbone)
        projector = MLP([width, cfg.model.hidden, cfg.model.projection], last_norm=False)
        return OwnSwAV(Encoder(backbone, projector), cfg.model.projection, cfg.method_options)

    def __init__(self, online, width, options):
        super().__init__()
        self.online = online
        self.prototypes = nn.Linear(width, options.prototypes, bias=False)
        self.temp = options.temp
        self.after_step([], 0.0)

    def forward(self, views, batch, where):
        """Return the mean of both directions' cross-entropies."""
        scores = [self.prototypes(self.online(view)) for view in views[:2]]
        first = distributed.rank() * len(scores[0])
        codes = [losses.sinkhorn(distributed.gather(one), epsilon=0.05, iterations=3)[first:][: len(one)] for one in scores]
        pairs = zip(scores, reversed(codes), strict=True)
        return Step(sum(losses.swapped(one, code, temp=self.temp) for one, code in pairs) / 2)

    @torch.no_grad()
    def after_step(self, keys, where):
        """Bring the prototypes back to unit length."""
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))
