"""Video backbones: clips [B, 3, T, H, W] -> pooled features [B, width], by name or from a user's function.

| name              | from                                  | parameters | width | temporal stride |
|-------------------|---------------------------------------|-----------:|------:|-----------------|
| r3d18             | here: SCE's R3D-18                    | 20,023,872 |   512 | 1               |
| r3d50             | pytorchvideo: "Slow-only" R3D-50      | 31,634,496 |  2048 | 1               |
| r2plus1d18        | torchvision: R(2+1)D-18               | 31,300,125 |   512 | 8               |
| r3d18_torchvision | torchvision: R3D-18                   | 33,166,272 |   512 | 8               |
| tiny3d            | here: for demos and tests on CPUs     |    291,984 |   128 | 4               |

r3d18 and r3d50 have pytorchvideo's state keys (`blocks.0.conv.weight`, ...), r2plus1d18 and r3d18_torchvision those of
torchvision, so that weights can be exchanged (`weights/layouts.py`, `export.py`). Both libraries are imported here only, on
demand. To add a backbone: a function `-> (module, width)` and a line in BACKBONES, or `model.backbone=my.module:function`.
"""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import InputError
from .named import is_named, load_named


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


def r3d50() -> tuple[nn.Module, int]:
    """Build pytorchvideo's Slow-only R3D-50 with a (1, 7, 7) stem instead of the default (3, 7, 7)."""
    return PooledBlocks(published("r3d50").blocks), 2048  # type: ignore[arg-type]


def r2plus1d18() -> tuple[nn.Module, int]:
    """Build torchvision's R(2+1)D-18 (Tran et al., 2018) without its classifier."""
    network = published("r2plus1d18")
    network.fc = nn.Identity()
    return network, 512


def r3d18_torchvision() -> tuple[nn.Module, int]:
    """Build torchvision's R3D-18 (Tran et al., 2018) without its classifier; SCE's is the smaller `r3d18`."""
    network = published("r3d18_torchvision")
    network.fc = nn.Identity()
    return network, 512


def published(name: str) -> nn.Module:
    """Build r3d50, r2plus1d18 or r3d18_torchvision as its library does, with that library's forward.

    r3d50 returns feature maps [B, 2048, T, h, w], without a head; the others end in the classifier `fc`, [B, 400].
    """
    import_torchvision()  # pytorchvideo's heads import it
    if name == "r3d50":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated")  # raised by its import
            from pytorchvideo.models.resnet import create_resnet

        network: nn.Module = create_resnet(model_depth=50, stem_conv_kernel_size=(1, 7, 7), head=None)
        return network
    from torchvision.models import video

    builder: Callable[..., nn.Module] = {"r2plus1d18": video.r2plus1d_18, "r3d18_torchvision": video.r3d_18}[name]
    return builder(weights=None)


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


BACKBONES: dict[str, Callable[[], tuple[nn.Module, int]]] = {
    "r3d18": r3d18,
    "r3d50": r3d50,
    "r2plus1d18": r2plus1d18,
    "r3d18_torchvision": r3d18_torchvision,
    "tiny3d": tiny3d,
}


def build(name: str) -> tuple[nn.Module, int]:
    """Build a backbone and return it with its feature width; name: one of BACKBONES, or a user's `module:function`
    or `file.py:function`.

    The function takes no arguments and returns (module, width); the module maps float [B, 3, T, H, W] to [B, width].
    """
    if name in BACKBONES:
        return BACKBONES[name]()
    if not is_named(name):
        raise InputError(f"backbone {name!r} is not one of {', '.join(BACKBONES)}, nor module:function or file.py:function")
    function = load_named(name, "backbone")
    module, width = function()
    return module, width


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
