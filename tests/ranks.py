"""Run by tests under torchrun: pretrain with the given overrides, then save every rank's whole state.

torchrun --nproc-per-node 2 tests/ranks.py FOLDER float32|float64 key=value ...
"""

import sys
from pathlib import Path

import torch
from conftest import compose_pretrain
from torch import nn

from sce_video import distributed
from sce_video.programs.pretrain import build_method, pretrain


def smooth() -> tuple[nn.Module, int]:
    """A backbone without kinks: in float32 a rounding error that moves a ReLU across 0 changes the gradient for good."""
    blocks = []
    for fan_in, fan_out in ((3, 8), (8, 16)):
        blocks += [nn.Conv3d(fan_in, fan_out, 3, (1, 2, 2), 1, bias=False), nn.BatchNorm3d(fan_out), nn.Tanh()]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool3d(1), nn.Flatten()), 16


def main(folder: str, dtype: str, *overrides: str) -> None:
    built = []

    def build(cfg):
        # Ranks that start from different weights must not matter: rank 0's are broadcast.
        torch.manual_seed(cfg.seed + distributed.rank())
        method = build_method(cfg).to(getattr(torch, dtype))
        method.register_forward_pre_hook(lambda _, x: ([view.to(getattr(torch, dtype)) for view in x[0]], *x[1:]))
        built.extend([method, distributed.rank()])
        return method

    pretrain(compose_pretrain(*overrides), build)
    torch.save(built[0].state_dict(), Path(folder) / f"rank{built[1]}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
