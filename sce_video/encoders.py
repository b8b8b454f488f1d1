"""Encoders from checkpoints, and untrained ones to compare them with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from . import checkpoint
from .errors import InputError
from .models import backbones
from .models.encoder import FrozenEncoder


def load_encoder(path: str | Path, backbone: str | None = None) -> FrozenEncoder:
    """Return the encoder of a run folder, checkpoint folder or weight file, in evaluation mode on the CPU.

    It maps uint8 or float (0..1) clips [B, 3, T, H, W] to features [B, width]. A weight file does not say which network
    it is for: name it by `backbone`; it then gets SCE's normalisation and clip length.
    """
    weights = checkpoint.read_backbone(path)
    if Path(path).is_file():
        if backbone is None:
            raise InputError(f"{path} is a weight file: say which network it is for (backbone=r3d18, ...)")
        about: dict[str, Any] = {
            "backbone": backbone,
            "mean": 0.45,
            "std": 0.225,
            "num_frames": 8,
            "clip_seconds": 2.56,
            "size": 224,
        }
    else:
        about = checkpoint.load(checkpoint.find(path))[1]["encoder"]
    network, _ = backbones.build(about["backbone"])
    missing, unexpected = network.load_state_dict(weights, strict=False)
    if missing:
        raise InputError(
            f"{path} fills {len(network.state_dict()) - len(missing)} of {len(network.state_dict())} tensors of "
            f"{about['backbone']}; missing e.g. {missing[0]}, left over e.g. {(unexpected or ['nothing'])[0]}"
        )
    clip = {name: about[name] for name in ("num_frames", "clip_seconds", "size")}
    return FrozenEncoder(network, about["backbone"], mean=about["mean"], std=about["std"], clip=clip)


def untrained_encoder(backbone: str, *, seed: int, mean: float, std: float, clip: dict[str, float]) -> FrozenEncoder:
    """Return the encoder with random weights: the floor that every learned one is compared with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network, _ = backbones.build(backbone)
    return FrozenEncoder(network, backbone, mean=mean, std=std, clip=clip)
