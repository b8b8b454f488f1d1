"""BYOL: predict the momentum encoder's output on another view, without negatives (Grill et al., NeurIPS 2020, arXiv:2006.07733).

`losses.byol` for every pair of an online view and another view's key; the mean over pairs instead of the sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .. import losses
from . import siamese


@dataclass
class BYOLOptions:
    """Options of the section `byol`. Defaults: the paper's."""

    momentum: float = 0.996  # initial momentum of the target encoder, rising to 1 on a cosine
    projector_layers: int = 2  # linear layers
    predictor_layers: int = 2  # linear layers


class BYOL:
    """See `siamese.Siamese`."""

    Options = BYOLOptions

    @staticmethod
    def build(cfg: Any) -> siamese.Siamese:
        """Build the method and its networks as the recipe says."""
        online = siamese.build_encoder(cfg, projector_norm=False)
        momentum, views = cfg.method_options.momentum, cfg.augment.global_views
        return siamese.Siamese("BYOL", online, losses.byol, momentum_start=momentum, num_global=views)
