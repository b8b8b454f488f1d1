"""Image backbones: torchvision's ResNets on clips of one frame, [B, 3, 1, H, W] -> pooled features [B, width].

Weights have torchvision's state keys (`conv1.weight`, `layer1.0.conv1.weight`, ...), so they can be exchanged. With the CIFAR
stem, the first convolution is 3 x 3 with stride 1 and the pooling behind it is left out (SimCLR, appendix B.9; SCE's runs on
CIFAR): pictures of 32 pixels would shrink to 1.
"""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor, nn

from ..errors import InputError
from .published import import_torchvision

WIDTHS = {"resnet18": 512, "resnet50": 2048}


def build(name: str) -> tuple[nn.Module, int]:
    """Return the network and its width. name: resnet18 or resnet50 (He et al., 2015), with `_cifar` behind it for that stem."""
    kind = name.removesuffix("_cifar")
    import_torchvision()
    network: Any = getattr(importlib.import_module("torchvision.models.resnet"), kind)(weights=None)
    network.fc = nn.Identity()
    if kind != name:
        network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's
        network.maxpool = nn.Identity()
    network.register_forward_pre_hook(_take_frame)
    return network, WIDTHS[kind]


def _take_frame(network: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """Turn clips of one frame [B, 3, 1, H, W] into images [B, 3, H, W]."""
    (clips,) = inputs
    if clips.shape[2] != 1:
        raise InputError(f"a ResNet takes images, got clips of {clips.shape[2]} frames: use a video backbone such as r3d18")
    return clips.squeeze(2)
