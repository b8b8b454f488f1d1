"""The augmentation of one view: `draw` parameters for a batch, then `apply` them to its clips.

Order (SCE, section 4): [temporal difference] - resize - flip - [RandAugment] - colour jitter - grey - blur -
solarise - normalise - [erase]. The reference flips last, with the same result: its operations treat left and right alike.
All frames of a clip share one parameter set: a static clip stays static. Draws are independent per clip.

Clips are augmented one after another: on a CPU one clip's frames fit into the cache, a batch's do not (measured 7 times
slower).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import rand_augment
from .blur import check_kernel, gaussian_blur
from .color import adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation, grayscale, solarize
from .draws import Parameters
from .geometry import Channels, normalize, resize, temporal_difference
from .view import View

JITTERS = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


def apply(
    view: View,
    clips: Sequence[Tensor],
    parameters: Parameters,
    *,
    size: int,
    mean: Channels,
    std: Channels,
    differences: Sequence[bool] | None = None,
    antialias: bool = False,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> Tensor:
    """Augment and normalise B clips: uint8 [T, h, w, 3] of any sizes -> [B, 3, T, size, size].

    Args:
        view: the view that the parameters were drawn for; only its blur kernel and solarize threshold are used here.
        clips: all with the same T, on one device.
        parameters: see `draws.draw`.
        size, mean, std: side in pixels and normalisation of the result, (clip - mean) / std of values in 0..1; numbers,
            or one for each channel.
        differences: whether each clip becomes a temporal difference; it then holds T frames and their T successors.
        antialias: whether to antialias when downscaling; the reference does not.
        dtype, channels_last: type and memory format of the result; it is computed in float32 and rounded once.

    Raises ValueError for clips of another type or shape, and for a blur kernel too large for `size`.
    """
    differences = [False] * len(clips) if differences is None else differences
    frames = _check(view, clips, parameters, differences, size)
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    out = torch.empty(
        (len(clips), 3, frames, size, size), dtype=dtype, device=clips[0].device, memory_format=layout
    )  # fmt: skip
    for b, (clip, difference) in enumerate(zip(clips, differences, strict=True)):
        resized = _resize(clip, size, difference=difference, antialias=antialias)
        augmented = _apply_one(view, resized, parameters[b : b + 1]).contiguous()  # grey ones share the memory of channels
        out[b] = normalize(augmented, mean, std)[0]
    erase(out, parameters.erased)
    return out


def erase(clips: Tensor, boxes: Tensor) -> None:
    """Set a box of each clip [B, C, T, H, W] to 0, the mean colour of normalised clips, in place.

    boxes: [B, 4], top, left, height and width as shares of the side, rounded to pixels; height 0: no box.
    """
    height, width = clips.shape[-2:]
    for clip, (top, left, tall, wide) in zip(clips, boxes.tolist(), strict=True):
        if tall > 0:
            lines = slice(round(top * height), round((top + tall) * height))
            clip[..., lines, round(left * width) : round((left + wide) * width)] = 0


def _check(view: View, clips: Sequence[Tensor], parameters: Parameters, differences: Sequence[bool], size: int) -> int:
    """Raise ValueError for clips that `apply` does not accept; return T."""
    if not len(clips) == len(parameters) == len(differences) > 0:
        raise ValueError(
            f"{len(clips)} clips, {len(parameters)} rows of parameters and {len(differences)} differences: there must be "
            "one of each per clip, and at least one clip"
        )
    frames = len(clips[0]) // 2 if differences[0] else len(clips[0])
    for number, (clip, difference) in enumerate(zip(clips, differences, strict=True)):
        if clip.dtype != torch.uint8:
            raise ValueError(f"clip {number} is {clip.dtype}, not torch.uint8: pass bytes in 0..255, `apply` scales them")
        if clip.dim() != 4 or clip.shape[-1] != 3 or 0 in clip.shape:
            raise ValueError(f"clip {number} has shape {list(clip.shape)}, not [T, h, w, 3] with all sides above 0")
        if len(clip) != frames * (2 if difference else 1):
            raise ValueError(
                f"clip {number} has {len(clip)} frames, not {frames * (2 if difference else 1)}: all clips of a batch have "
                "the same number, temporal differences twice as many"
            )
    if parameters.blur.any():
        check_kernel(view.blur_kernel, size, size)
    return frames


def _resize(clip: Tensor, size: int, *, difference: bool, antialias: bool) -> Tensor:
    """Resize uint8 [T, h, w, 3] to float [1, 3, T, size, size] in 0..1."""
    planes = clip.permute(3, 0, 1, 2).float()
    if difference:
        half = planes.shape[1] // 2
        planes = temporal_difference(planes[:, :half], planes[:, half:])
    return resize(planes, (size, size), antialias=antialias)[None] / 255


def _apply_one(view: View, clip: Tensor, one: Parameters) -> Tensor:
    if one.flip:
        clip = clip.flip(-1)
    clip = rand_augment.apply_drawn(clip, one.operations, one.magnitudes)
    if one.jitter:
        for operation in one.order[0].tolist():
            clip = JITTERS[operation](clip, one.factors[:, operation])
    if one.gray:
        clip = grayscale(clip)
    if one.blur:
        clip = gaussian_blur(clip, one.sigma, view.blur_kernel)
    return solarize(clip, view.solarize_threshold) if one.solarize else clip
