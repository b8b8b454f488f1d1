"""Video backbones: clips [B, 3, T, H, W] -> pooled features [B, width], by name or from a user's function.

| name              | from                                      | parameters | width | stride |
|-------------------|-------------------------------------------|-----------:|------:|-------:|
| r3d18             | here: SCE's R3D-18                        | 20,023,872 |   512 |      1 |
| tiny3d            | here: for demos and tests on CPUs         |    291,984 |   128 |      4 |
| r3d50             | pytorchvideo: "Slow-only" R3D-50          | 31,634,496 |  2048 |      1 |
| slow_r101         | pytorchvideo: the same with 101 layers    | 59,539,520 |  2048 |      1 |
| r2plus1d50        | pytorchvideo: R(2+1)D-50                  | 27,288,000 |  2048 |      4 |
| slowfast_r50      | pytorchvideo: SlowFast-R50, one clip in   | 33,644,488 |  2304 |   4, 1 |
| x3d_xs            | pytorchvideo: X3D-XS, for 4 frames        |  2,006,130 |   192 |      1 |
| x3d_s             | the same network, for 13 frames           |  2,006,130 |   192 |      1 |
| x3d_m             | the same network, for 16 frames of 224 px |  2,006,130 |   192 |      1 |
| r2plus1d18        | torchvision: R(2+1)D-18                   | 31,300,125 |   512 |      8 |
| r3d18_torchvision | torchvision: R3D-18                       | 33,166,272 |   512 |      8 |
| s3d               | torchvision: S3D, from 8 frames on        |  7,910,048 |  1024 |      8 |
| s3dg              | the same with feature gating: S3D-G       |  9,098,000 |  1024 |      8 |
| mvit_v2_s         | torchvision: MViT v2-S                    | 34,230,144 |   768 |      2 |
| swin3d_t          | torchvision: Video Swin-T                 | 27,850,470 |   768 |      2 |
| resnet18          | torchvision: ResNet-18, for images        | 11,176,512 |   512 |      1 |
| resnet18_cifar    | the same with the stem for CIFAR          | 11,168,832 |   512 |      1 |
| resnet50          | torchvision: ResNet-50, for images        | 23,508,032 |  2048 |      1 |

`stride` is in time; tools/models.py adds cost and speed. State keys are those of the libraries, pytorchvideo's for r3d18 too
(`blocks.0.conv.weight`, ...), so that weights can be exchanged (`weights/layouts.py`, `programs/export.py`). To add a backbone: a
function `-> (module, width)` and a line in BACKBONES, or `model.backbone=my.module:function` (also `my_file.py:function`).
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ..errors import InputError
from .named import is_named, load_named

PROBE = (8, 64, 64)  # frames, height and width of the clip that probes a network of one's own


class _Branch(nn.Module):
    def __init__(self, fan_in: int, fan_out: int, temporal: int, stride: int) -> None:
        super().__init__()
        padding = (temporal // 2, 1, 1)
        self.conv_a = nn.Conv3d(fan_in, fan_out, (temporal, 3, 3), (1, stride, stride), padding, bias=False)
        self.norm_a = nn.BatchNorm3d(fan_out)
        self.act_a = nn.ReLU(inplace=True)
        self.conv_b = nn.Conv3d(fan_out, fan_out, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.norm_b = nn.BatchNorm3d(fan_out)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.norm_b(self.conv_b(self.act_a(self.norm_a(self.conv_a(x)))))
        return output


class _BasicBlock(nn.Module):
    def __init__(self, fan_in: int, fan_out: int, temporal: int, stride: int) -> None:
        super().__init__()
        self.branch1_conv: nn.Module | None = None
        if stride != 1 or fan_in != fan_out:
            self.branch1_conv = nn.Conv3d(fan_in, fan_out, 1, (1, stride, stride), bias=False)
            self.branch1_norm = nn.BatchNorm3d(fan_out)
        self.branch2 = _Branch(fan_in, fan_out, temporal, stride)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.branch1_conv is None else self.branch1_norm(self.branch1_conv(x))
        output: Tensor = self.activation(shortcut + self.branch2(x))
        return output


class _Stem(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, width, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False)
        self.norm = nn.BatchNorm3d(width)
        self.activation = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.pool(self.activation(self.norm(self.conv(x))))
        return output


class _Stage(nn.Module):
    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.res_blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.res_blocks:
            x = block(x)
        return x


class PooledBlocks(nn.Module):
    """A sequence of blocks, then the mean over time and space: every network with `blocks.N` keys."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, clips: Tensor) -> Tensor:
        for block in self.blocks:
            clips = block(clips)
        return clips.mean(dim=(2, 3, 4))


def _initialise(module: nn.Module) -> None:
    """Initialise convolutions Kaiming-normal (fan out), the last norm of each residual branch to 0 (Goyal et al., 2017)."""
    for child in module.modules():
        if isinstance(child, nn.Conv3d):
            nn.init.kaiming_normal_(child.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(child, _Branch):
            nn.init.zeros_(child.norm_b.weight)


def r3d18() -> tuple[nn.Module, int]:
    """Build SCE's R3D-18: 2D kernels in the first two stages, (3, 3, 3) in the last two; no temporal stride."""
    blocks: list[nn.Module] = [_Stem(64)]
    fan_in = 64
    for fan_out, temporal, stride in ((64, 1, 1), (128, 1, 2), (256, 3, 2), (512, 3, 2)):
        first = _BasicBlock(fan_in, fan_out, temporal, stride)
        blocks.append(_Stage([first, _BasicBlock(fan_out, fan_out, temporal, 1)]))
        fan_in = fan_out
    network = PooledBlocks(nn.ModuleList(blocks))
    _initialise(network)
    return network, 512


def tiny3d() -> tuple[nn.Module, int]:
    """Build four convolutions for clips of about 8 x 40 x 40, which train on two CPU cores in minutes.

    The first layer standardises each clip's channels, which removes most of the variation by colour augmentation. Without
    it a network of this size learns nothing in the few minutes of the demo (measured, see `data/synthetic.py`).
    """
    blocks: list[nn.Module] = [nn.InstanceNorm3d(3)]
    for fan_in, fan_out, kernel, stride in (
        (3, 16, (1, 5, 5), (1, 2, 2)),
        (16, 32, (3, 3, 3), (2, 2, 2)),
        (32, 64, (3, 3, 3), (1, 2, 2)),
        (64, 128, (3, 3, 3), (2, 2, 2)),
    ):
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        conv = nn.Conv3d(fan_in, fan_out, kernel, stride, padding, bias=False)
        blocks.append(nn.Sequential(conv, nn.BatchNorm3d(fan_out), nn.ReLU(inplace=True)))
    network = PooledBlocks(nn.ModuleList(blocks))
    _initialise(network)
    return network, 128


# Built on demand by models/published.py, which imports their libraries.
PUBLISHED = (
    *("r3d50", "slow_r101", "r2plus1d18", "r2plus1d50", "r3d18_torchvision", "slowfast_r50", "x3d_xs", "x3d_s", "x3d_m"),
    *("s3d", "s3dg", "mvit_v2_s", "swin3d_t"),
)


IMAGE_BACKBONES = ("resnet18", "resnet18_cifar", "resnet50")  # built on demand by models/images.py


def _build_from(module: str, name: str) -> tuple[nn.Module, int]:
    network, width = importlib.import_module(f"{__package__}.{module}").build(name)
    return network, width


BACKBONES: dict[str, Callable[[], tuple[nn.Module, int]]] = {
    "r3d18": r3d18,
    "tiny3d": tiny3d,
    **{name: partial(_build_from, "published", name) for name in PUBLISHED},
    **{name: partial(_build_from, "images", name) for name in IMAGE_BACKBONES},
}


def build(name: str) -> tuple[nn.Module, int]:
    """Build a backbone and return it with its feature width.

    name: one of BACKBONES, or a user's `module:function` or `file.py:function`. The function takes no arguments and returns
    the module, which maps float [B, 3, T, H, W] to [B, width], or (module, width).

    Raises InputError for an unknown name, and for a function that gives neither.
    """
    if name in BACKBONES:
        return BACKBONES[name]()
    if not is_named(name):
        close = difflib.get_close_matches(name, BACKBONES, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise InputError(f"backbone {name!r} is not one of {', '.join(BACKBONES)}, nor module:function or file.py:function{hint}")
    built = load_named(name, "backbone")()
    if isinstance(built, nn.Module):
        return built, probe_width(built, name)
    if not (isinstance(built, tuple) and len(built) == 2 and isinstance(built[0], nn.Module) and isinstance(built[1], int)):
        raise InputError(f"backbone {name!r} gave {type(built).__name__}: the function must return a module, or (module, width)")
    return built


@torch.no_grad()
def probe_width(network: nn.Module, name: str) -> int:
    """Return the width of a network's features by a forward pass of one small black clip. Raises InputError if it fails."""
    clip, mode = torch.zeros(1, 3, *PROBE), network.training
    try:
        features = network.eval()(clip)
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"backbone {name!r} cannot take a clip {list(clip.shape)} ({reason}): return (module, width)") from error
    network.train(mode)
    if not isinstance(features, Tensor) or features.ndim != 2:
        given = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise InputError(f"backbone {name!r} maps clips {list(clip.shape)} to {given}: it must pool them to [batch, width]")
    return features.shape[1]
