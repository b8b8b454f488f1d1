"""How a training program augments: the recipe's choices of size, normalisation and antialiasing, and how it is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import augment
from .augment import compilation
from .choices import Compile
from .config import System
from .log import warn


@dataclass(frozen=True)
class Augmenter:
    """`augment.apply` with everything that is the same in every step."""

    size: int
    mean: float
    std: float
    antialias: bool
    compiled: bool
    dtype: torch.dtype
    channels_last: bool

    def __call__(
        self,
        view: augment.View,
        clips: Sequence[Tensor],
        generators: Sequence[torch.Generator],
        differences: Sequence[bool] | None = None,
    ) -> Tensor:
        """Draw from one generator per clip and apply; see `augment.pipeline.apply`."""
        return augment.apply(view, clips, augment.draw(view, generators), differences=differences, **vars(self))


def build(
    views: Sequence[augment.View],
    system: System,
    *,
    num_frames: int,
    size: int,
    mean: float,
    std: float,
    antialias: bool,
    device: torch.device,
    clips: int,
) -> Augmenter:
    """Return what augments a run, compiled where system.compile says so; a note says why if that cannot be done.

    clips: how many this process augments in the whole run, resumed or not.
    """
    how = {
        "size": size,
        "mean": mean,
        "std": std,
        "antialias": antialias,
        "dtype": torch.bfloat16 if system.bf16_clips else torch.float32,
        "channels_last": system.channels_last,
    }
    compiled = system.compile is Compile.always or (
        system.compile is Compile.auto and compilation.pays(device, clips * num_frames * size**2)
    )
    if compiled and (reason := compilation.prepare(views, num_frames=num_frames, device=device, **how)):  # type: ignore[arg-type]
        warn([f"the augmentation is not compiled, so it is slower; its results are the same ({reason})"])
        compiled = False
    return Augmenter(compiled=compiled, **how)  # type: ignore[arg-type]
