"""One view's augmentation: `draw` parameters for a batch, then `apply` them to its clips.

Order (SCE, section 4 of the recipe): [temporal difference] - resize - colour jitter - grey - blur - solarise - flip -
normalise. One parameter set per clip, shared by its frames: a static clip stays static. Draws are independent per clip
and come from one generator per clip, so a clip's parameters do not depend on its batch, rank or device.
The clips are augmented one after another: on a CPU one clip's frames stay in the cache, a whole batch's do not
(measured 7 times slower).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from .blur import gaussian_blur
from .color import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    grayscale,
    solarize,
)
from .geometry import resize, temporal_difference

JITTERS = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


@dataclass
class View:
    """How one of the views is augmented. Probabilities are per clip, in [0, 1]."""

    jitter_probability: float = 0.8  # brightness, contrast, saturation and hue in random order
    brightness: float = 0.8  # factor uniform in [max(0, 1 - x), 1 + x]; so are the next two
    contrast: float = 0.8
    saturation: float = 0.4
    hue: float = 0.2  # turn uniform in [-x, x] of the colour circle, at most 0.5
    gray_probability: float = 0.2
    blur_probability: float = 1.0
    blur_kernel: int = 23  # taps per direction, odd; frames must be larger than half of it
    blur_sigma_min: float = 0.1  # pixels
    blur_sigma_max: float = 2.0
    solarize_probability: float = 0.0
    solarize_threshold: float = 0.5
    flip_probability: float = 0.5  # horizontal

    def __post_init__(self) -> None:
        for name in ("jitter", "gray", "blur", "solarize", "flip"):
            value = getattr(self, f"{name}_probability")
            if not 0 <= value <= 1:
                raise InputError(f"{name}_probability ({value}) must be in [0, 1]")
        if not 0 <= self.hue <= 0.5:
            raise InputError(f"hue ({self.hue}) must be in [0, 0.5]: half a turn reaches every colour")
        if not 0 < self.blur_sigma_min <= self.blur_sigma_max:
            raise InputError(f"blur sigma range [{self.blur_sigma_min}, {self.blur_sigma_max}] must be positive")


class Parameters(NamedTuple):
    """What was drawn for a batch of B clips, on the CPU."""

    factors: Tensor  # float64 [B, 4]: brightness, contrast, saturation factors and hue turn
    order: Tensor  # int64 [B, 4]: in which order the four are applied
    sigma: Tensor  # float64 [B]: blur, pixels
    jitter: Tensor  # bool [B], as are the following
    gray: Tensor
    blur: Tensor
    solarize: Tensor
    flip: Tensor


def draw(view: View, generators: Sequence[torch.Generator]) -> Parameters:
    """Draw the parameters of one clip from each generator (the same number of draws whatever the view)."""
    uniform = torch.stack([torch.rand(14, generator=g, dtype=torch.float64) for g in generators])  # [B, 14]
    strength = torch.tensor([view.brightness, view.contrast, view.saturation, view.hue], dtype=torch.float64)
    center = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    low = center - strength
    low[:3].clamp_(min=0)
    return Parameters(
        factors=low + (center + strength - low) * uniform[:, 0:4],
        order=uniform[:, 4:8].argsort(dim=1),
        sigma=view.blur_sigma_min + (view.blur_sigma_max - view.blur_sigma_min) * uniform[:, 8],
        jitter=uniform[:, 9] < view.jitter_probability,
        gray=uniform[:, 10] < view.gray_probability,
        blur=uniform[:, 11] < view.blur_probability,
        solarize=uniform[:, 12] < view.solarize_probability,
        flip=uniform[:, 13] < view.flip_probability,
    )


def apply(
    view: View,
    clips: Sequence[Tensor],
    parameters: Parameters,
    *,
    size: int,
    mean: float,
    std: float,
    differences: Sequence[bool] | None = None,
) -> Tensor:
    """Augment B clips: uint8 [T, h, w, 3], each of its own size, -> float32 [B, 3, T, size, size], normalised.

    differences: for each clip, whether it becomes a temporal difference; it then holds 2 T frames, the T frames
    followed by their T native successors.
    """
    output = []
    for b, frames in enumerate(clips):
        clip = frames.permute(3, 0, 1, 2).float()  # [T, h, w, 3] -> [3, T, h, w]
        if differences is not None and differences[b]:
            half = clip.shape[1] // 2
            clip = temporal_difference(clip[:, :half], clip[:, half:])
        clip = resize(clip, (size, size))[None] / 255  # [1, 3, T, S, S]
        one = Parameters(*(value[b : b + 1] for value in parameters))
        output.append((_apply_one(view, clip, one) - mean) / std)
    return torch.cat(output)


def _apply_one(view: View, clip: Tensor, one: Parameters) -> Tensor:
    if one.jitter:
        for operation in one.order[0].tolist():
            clip = JITTERS[operation](clip, one.factors[:, operation])
    if one.gray:
        clip = grayscale(clip)
    if one.blur:
        clip = gaussian_blur(clip, one.sigma, view.blur_kernel)
    if one.solarize:
        clip = solarize(clip, view.solarize_threshold)
    return clip.flip(-1) if one.flip else clip
