"""ReSSL: the similarities of two views to a queue should agree (Zheng et al., NeurIPS 2021, arXiv:2107.09282).

`losses.ressl` for every pair of an online view and another view's key. Differs from the paper: the loss is symmetric unless
`ressl.symmetric=false`, and no view is augmented weakly unless the recipe's `augment.view1`, then the only key, is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from .. import losses
from . import siamese


@dataclass
class ReSSLOptions:
    """Options of the section `ressl`. Defaults: the paper's."""

    temp: float = 0.1  # of the query's similarities
    temp_target: float = 0.04  # of the key's
    queue: int = 131072  # keys kept
    momentum: float = 0.999  # of the target encoder, constant
    projector_layers: int = 2  # linear layers
    predictor_layers: int = 0  # ReSSL has none
    symmetric: bool = True  # each view is the other's key; false: the paper's, view 1 is the key

    def check(self, cfg: Any) -> None:
        """Raise InputError for a queue that does not hold a step's keys."""
        siamese.check_queue(cfg, "ressl", self)


class ReSSL:
    """See `siamese.Siamese`."""

    Options = ReSSLOptions

    @staticmethod
    def build(cfg: Any) -> siamese.Siamese:
        """Build the method and its networks as the recipe says."""
        options: ReSSLOptions = cfg.method_options
        return siamese.build_with_queue("ReSSL", cfg, partial(losses.ressl, temp=options.temp, temp_target=options.temp_target))
