"""MoCo v2: InfoNCE against a queue of a momentum encoder's outputs (He et al., CVPR 2020; Chen et al., 2020, arXiv:2003.04297).

`losses.info_nce` for every pair of an online view and another view's key. Differs from the paper: the loss is symmetric unless
`moco.symmetric=false`, and the projector has batch norms, as for all methods here. It is SCE with coeff 1 where the other
options are equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from .. import losses
from . import siamese


@dataclass
class MoCoOptions:
    """Options of the section `moco`. Defaults: the papers'."""

    temp: float = 0.2  # of the similarities; arXiv:2003.04297
    queue: int = 65536  # keys kept; He et al.
    momentum: float = 0.999  # of the target encoder, constant; He et al.
    projector_layers: int = 2  # linear layers; arXiv:2003.04297
    predictor_layers: int = 0  # MoCo v2 has none
    symmetric: bool = True  # each view is the other's key, as in MoCo v3; false: the papers', view 1 is the key

    def check(self, cfg: Any) -> None:
        """Raise InputError for a queue that does not hold a step's keys."""
        siamese.check_queue(cfg, "moco", self)


class MoCo:
    """See `siamese.Siamese`."""

    Options = MoCoOptions

    @staticmethod
    def build(cfg: Any) -> siamese.Siamese:
        """Build the method and its networks as the recipe says."""
        options: MoCoOptions = cfg.method_options
        return siamese.build_with_queue("MoCo", cfg, partial(losses.info_nce, temp=options.temp))
