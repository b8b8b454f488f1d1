"""MoCo v3: InfoNCE among the keys of one step, without a queue (Chen, Xie and He, ICCV 2021, arXiv:2104.02057, Algorithm 1).

`losses.in_batch` for every pair of an online view and another view's key. The negatives are the keys of the same view of all
ranks' videos in the micro-batch: `optim.accumulate` makes them fewer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from .. import distributed, losses
from . import siamese


@dataclass
class MoCoV3Options:
    """Options of the section `mocov3`. Defaults: the paper's."""

    temp: float = 1.0  # of the similarities; the authors' setting for ResNet-50 (0.2 for ViT)
    momentum: float = 0.99  # initial momentum of the target encoder, rising to 1 on a cosine
    projector_layers: int = 3  # linear layers, all followed by batch norm
    predictor_layers: int = 2  # linear layers, all followed by batch norm


class MoCoV3:
    """See `siamese.Siamese`."""

    Options = MoCoV3Options

    @staticmethod
    def build(cfg: Any) -> siamese.Siamese:
        """Build the method and its networks as the recipe says."""
        options: MoCoV3Options = cfg.method_options
        online = siamese.build_encoder(cfg, predictor_norm=True)
        loss = partial(among_all, temp=options.temp)
        return siamese.Siamese("MoCo v3", online, loss, momentum_start=options.momentum, num_global=cfg.augment.global_views)


def among_all(query: Tensor, key: Tensor, *, temp: float) -> Tensor:
    """Return `losses.in_batch` among the keys of all ranks; query, key: [B, C] of this rank."""
    return losses.in_batch(query, distributed.gather(key), temp=temp, offset=distributed.rank() * len(key))
