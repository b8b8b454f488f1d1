"""BYOL in one file outside the package (Grill et al., 2020): a momentum encoder's output on the other view is predicted.

    python tools/pretrain.py method=examples/byol.py:OwnBYOL OwnBYOL.momentum=0.9 out=runs/own_byol
    python tools/evaluate.py checkpoint=runs/own_byol train=synthetic test=synthetic

The contract is the page `sce_video/methods/__init__.py`. The fields of `Options` are options of the command line.
"""

from dataclasses import dataclass

import torch
from torch import nn

from sce_video import losses, schedules
from sce_video.methods import Step
from sce_video.models import backbones
from sce_video.models.encoder import MLP, Encoder
from sce_video.models.momentum import ema_update, momentum_copy


class OwnBYOL(nn.Module):
    """Online encoder with predictor, and its moving average without."""

    min_views = 2

    @dataclass
    class Options:
        """Options of the section `OwnBYOL`."""

        momentum: float = 0.996  # initial momentum of the target, rising to 1

    @staticmethod
    def build(cfg):
        """Return the method with the networks that the recipe names."""
        backbone, width = backbones.build(cfg.model.backbone)
        hidden, projection = cfg.model.hidden, cfg.model.projection
        projector = MLP([width, hidden, projection], last_norm=False)
        predictor = MLP([projection, hidden, projection], last_norm=False)
        return OwnBYOL(Encoder(backbone, projector, predictor), cfg.method_options.momentum)

    def __init__(self, online, momentum):
        super().__init__()
        self.online = online
        self.target = momentum_copy(Encoder(online.backbone, online.projector))
        self.momentum = momentum

    def forward(self, views, batch, where):
        """Return the mean of both directions' distances."""
        with torch.no_grad():
            keys = [self.target(view) for view in views[:2]]
        first, second = (self.online(view) for view in views[:2])
        return Step((losses.byol(first, keys[1]) + losses.byol(second, keys[0])) / 2)

    def after_step(self, keys, where):
        """Move the target towards the online encoder."""
        ema_update(self.target, self.online, schedules.cosine(where, self.momentum, 1.0))
