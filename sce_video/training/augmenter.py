"""How a training program augments a view: the recipe's choices of operations, size, normalisation and antialiasing, and
how it is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import augment
from ..augment import compilation
from ..config.shared import Compile, System
from ..data.synthetic import cache_folder
from ..distributed import warn


@dataclass(frozen=True)
class Augmenter:
    """`augment.apply` with everything that is the same in every step, for one of the views."""

    view: augment.View
    size: int
    mean: float
    std: float
    antialias: bool
    compiled: bool
    dtype: torch.dtype
    channels_last: bool

    def __call__(
        self,
        clips: Sequence[Tensor],
        generators: Sequence[torch.Generator],
        differences: Sequence[bool] | None = None,
    ) -> Tensor:
        """Draw from one generator per clip and apply; see `augment.pipeline.apply`."""
        drawn = augment.draw(self.view, generators)
        return augment.apply(clips=clips, parameters=drawn, differences=differences, **vars(self))


def build(
    views: Sequence[augment.View],
    sizes: Sequence[int],
    system: System,
    *,
    num_frames: int,
    mean: float,
    std: float,
    antialias: bool,
    device: torch.device,
    clips: int,
) -> list[Augmenter]:
    """Return what augments each view, compiled where system.compile says so; a note says why if that cannot be done.

    sizes: the pixels of each view. clips: how many of each view this process augments in the whole run, resumed or not.
    """
    how: dict[str, Any] = {
        "mean": mean,
        "std": std,
        "antialias": antialias,
        "dtype": torch.bfloat16 if system.bf16_clips else torch.float32,
        "channels_last": system.channels_last,
    }
    compiled, reason = set(), ""
    for size in dict.fromkeys(sizes):  # every size is built for itself, and has to pay for itself
        same = [view for view, pixels in zip(views, sizes, strict=True) if pixels == size]
        pays = compilation.pays(device, len(same) * clips * num_frames * size**2)
        if not reason and (system.compile is Compile.always or (system.compile is Compile.auto and pays)):
            different = [view for number, view in enumerate(same) if view not in same[:number]]
            reason = compilation.prepare(
                different, num_frames=num_frames, size=size, device=device, folder=cache_folder() / "passes", **how
            )
            compiled.add(size)
    if reason:
        warn([f"the augmentation is not compiled, so it is slower; its results are the same ({reason})"])
        compiled = set()
    return [Augmenter(view, size, compiled=size in compiled, **how) for view, size in zip(views, sizes, strict=True)]
