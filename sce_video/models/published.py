"""Backbones built by torchvision and pytorchvideo, without their classifiers; both libraries are imported here only, on demand.

Dropout and stochastic depth are off: a run draws nothing that its checkpoints do not reproduce. Features are the mean over
time and space (of the class token for MViT), so any clip is taken that the strides leave something of.
"""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .backbones import PooledBlocks

FAST_PER_SLOW = 4  # frames of SlowFast's fast pathway for each of its slow one


class SlowFast(nn.Module):
    """SlowFast's two pathways of one clip: every frame, and every fourth (evenly from the first to the last)."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.blocks = blocks
        for block in blocks:
            block.inplace = False  # type: ignore[assignment]  # else a block changes its input, which recomputation needs again

    def forward(self, clips: Tensor) -> Tensor:
        frames = clips.shape[2]
        slow = torch.linspace(0, frames - 1, -(-frames // FAST_PER_SLOW), device=clips.device).long()
        pathways = [clips.index_select(2, slow), clips]
        for block in self.blocks:
            pathways = block(pathways)
        return torch.cat([pathway.mean(dim=(2, 3, 4)) for pathway in pathways], dim=1)


class Gate(nn.Module):
    """S3D-G's feature gating: channels times sigmoid(W mean + b), mean over time and space (Xie et al., 2018, section 3.4)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        gates: Tensor = self.linear(x.mean(dim=(2, 3, 4))).sigmoid()
        return x * gates[:, :, None, None, None]


class PooledFeatures(nn.Module):
    """S3D's `features`, then the mean over time and space; torchvision's fixed 2 x 7 x 7 pooling needs 16 frames of 224 px."""

    def __init__(self, features: nn.Sequential) -> None:
        super().__init__()
        self.features = features

    def forward(self, clips: Tensor) -> Tensor:
        output: Tensor = self.features(clips).mean(dim=(2, 3, 4))
        return output


class MViT(nn.Module):
    """torchvision's MViT without its head, for clips of any size: its relative positions are interpolated where needed."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.conv_proj: nn.Module = network.conv_proj
        self.pos_encoding: nn.Module = network.pos_encoding
        self.blocks: nn.ModuleList = network.blocks
        self.norm: nn.Module = network.norm

    def forward(self, clips: Tensor) -> Tensor:
        patches = self.conv_proj(clips)
        thw = tuple(patches.shape[2:])
        tokens = self.pos_encoding(patches.flatten(2).transpose(1, 2))
        for block in self.blocks:
            tokens, thw = block(tokens, thw)
        output: Tensor = self.norm(tokens)[:, 0]
        return output


def build(name: str) -> tuple[nn.Module, int]:
    """Return a backbone of `published` without its classifier, and the width of its features."""
    network = published(name)
    for module in network.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout3d)) or type(module).__name__ == "StochasticDepth":
            module.p = 0.0  # type: ignore[assignment]
    blocks = getattr(network, "blocks", None)
    if name == "slowfast_r50":
        return SlowFast(blocks[:5]), 2304  # type: ignore[arg-type, index]
    if name in ("r3d50", "slow_r101"):
        return PooledBlocks(blocks), 2048  # type: ignore[arg-type]
    if name == "r2plus1d50" or name.startswith("x3d"):
        return PooledBlocks(blocks[:-1]), 192 if name.startswith("x3d") else 2048  # type: ignore[arg-type, index]
    if name in ("s3d", "s3dg"):
        return PooledFeatures(network.features), 1024  # type: ignore[arg-type]
    if name == "mvit_v2_s":
        return MViT(network), 768
    setattr(network, "head" if name == "swin3d_t" else "fc", nn.Identity())
    return network, 768 if name == "swin3d_t" else 512


def published(name: str) -> nn.Module:
    """Build a network as its library does, with that library's forward; s3dg is torchvision's S3D with gates.

    r3d50 and slow_r101 return feature maps [B, 2048, T, h, w], without a head; the others end in a classifier, [B, 400].
    """
    import_torchvision()  # pytorchvideo's heads import it
    return LIBRARY[name]()


def _pytorchvideo(module: str, builder: str, **options: object) -> nn.Module:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated")  # raised by its import
        found = importlib.import_module(f"pytorchvideo.models.{module}")
    network: nn.Module = getattr(found, builder)(**options)
    return network


def _x3d(frames: int, size: int) -> nn.Module:
    """Build X3D; pytorchvideo's own Swish calls what torch deprecates, torch's SiLU is the same function."""
    options = {"input_clip_length": frames, "input_crop_size": size, "inner_act": nn.SiLU}
    return _pytorchvideo("x3d", "create_x3d", **options)


def _torchvision(builder: str) -> nn.Module:
    network: nn.Module = getattr(importlib.import_module("torchvision.models.video"), builder)(weights=None)
    return network


def _s3d(*, gated: bool = False) -> nn.Module:
    """Build S3D, initialised Kaiming-normal (fan out) as SCE's, with a gate behind each branch for S3D-G.

    torchvision's batch norms average over thousands of steps (momentum 0.001); torch's default is set, which trains the same.
    """
    network = _torchvision("s3d")
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, nn.BatchNorm3d):
            module.momentum = 0.1
    for block in network.features if gated else ():  # type: ignore[union-attr]
        for number in range(4) if hasattr(block, "branch0") else ():
            branch = getattr(block, f"branch{number}")
            norms = [module for module in branch.modules() if isinstance(module, nn.BatchNorm3d)]
            setattr(block, f"branch{number}", nn.Sequential(branch, Gate(norms[-1].num_features)))
    return network


_SLOW = {"stem_conv_kernel_size": (1, 7, 7), "head": None}  # pytorchvideo's default stem is (3, 7, 7)
LIBRARY: dict[str, Callable[[], nn.Module]] = {
    "r3d50": partial(_pytorchvideo, "resnet", "create_resnet", model_depth=50, **_SLOW),
    "slow_r101": partial(_pytorchvideo, "resnet", "create_resnet", model_depth=101, **_SLOW),
    "r2plus1d50": partial(_pytorchvideo, "r2plus1d", "create_r2plus1d"),
    "slowfast_r50": partial(_pytorchvideo, "slowfast", "create_slowfast", head_pool_kernel_sizes=((8, 7, 7), (32, 7, 7))),
    "x3d_xs": partial(_x3d, 4, 160),
    "x3d_s": partial(_x3d, 13, 160),
    "x3d_m": partial(_x3d, 16, 224),
    "r2plus1d18": partial(_torchvision, "r2plus1d_18"),
    "r3d18_torchvision": partial(_torchvision, "r3d_18"),
    "s3d": _s3d,
    "s3dg": partial(_s3d, gated=True),
    "mvit_v2_s": partial(_torchvision, "mvit_v2_s"),
    "swin3d_t": partial(_torchvision, "swin3d_t"),
}


def import_torchvision() -> types.ModuleType:
    """Import torchvision, even its CUDA wheel beside a CPU-only torch.

    That pair fails with `operator torchvision::nms does not exist` while registering operators that we never call. With
    the two registration modules replaced by empty ones the rest works (verified with 2.13.0+cpu and 0.28.0).
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    for name in ("torchvision._meta_registrations", "torchvision._autograd_registrations"):
        sys.modules[name] = types.ModuleType(name)
    try:
        return importlib.import_module("torchvision")
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"torchvision does not work with this torch {torch.__version__} ({error}): install the torchvision of the "
            "same release and build, e.g. `pip install --force-reinstall torch torchvision` in a new environment"
        ) from error
