"""Cases of `augment.py`: the same augmentation by other libraries, with the parameters that we drew.

Each case follows the library's own video or batch transforms (torchaug: groups of one order, then the clips to blur, grey,
...; kornia: frames as a batch; torchvision: clip by clip). Like the reference, all cut crops first and resize them with
`torch.nn.functional.interpolate`. This file imports only torch and one library: it also runs in another Python, where the
rest of this package cannot be imported.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import peak_bytes

CONTRAST, SATURATION, HUE = 1, 2, 3  # columns of the factors; 0 is the brightness
Drawn = dict[str, Tensor]
MODULES = {
    "torchvision": ["torchvision.transforms.v2.functional"],
    "kornia": ["kornia"],
    "torchaug": ["torchaug.batch_transforms.functional", "torchaug.transforms.functional"],
}


def rival(library: str, source: str, view: str, threads: int, target: str) -> Callable[[], list[float]]:
    """Return the function to time: `library` augments all clips of the file `source`; writes the first result to `target`.

    The function returns the mean of the result, and the growth of peak memory since the imports, in bytes.
    """
    torch.set_num_threads(threads)
    data = torch.load(source, weights_only=True)
    crops = [
        clip[:, top : top + height, left : left + width]
        for clip, (top, left, height, width) in zip(data["clips"], data["boxes"].tolist(), strict=True)
    ]
    drawn, fixed = data[view], data["fixed"]
    for module in MODULES[library]:
        importlib.import_module(module)
    augment = {"torchvision": _torchvision, "kornia": _kornia, "torchaug": _torchaug}[library]
    written: list[str] = []
    before = peak_bytes()

    def timed() -> list[float]:
        result = augment(crops, drawn, fixed)
        if not written:
            torch.save(result, target)
            written.append(target)
        return [result.mean().item(), peak_bytes() - before]

    return timed


def _resize(crops: list[Tensor], size: int) -> Tensor:
    """Resize uint8 crops [T, h, w, 3] -> float [B, T, 3, size, size] in 0..1."""
    frames = [clip.permute(0, 3, 1, 2).float() for clip in crops]
    return torch.stack([F.interpolate(clip, size=(size, size), mode="bilinear") for clip in frames]) / 255


def _torchvision(crops: list[Tensor], drawn: Drawn, fixed: dict[str, float]) -> Tensor:
    functional: Any = importlib.import_module("torchvision.transforms.v2.functional")
    jitters = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation, functional.adjust_hue)
    result = []
    for b, crop in enumerate(crops):
        clip = _resize([crop], int(fixed["size"]))[0]
        if drawn["jitter"][b]:
            for operation in drawn["order"][b].tolist():
                clip = jitters[operation](clip, drawn["factors"][b, operation].item())
        if drawn["gray"][b]:
            clip = functional.rgb_to_grayscale(clip, 3)
        if drawn["blur"][b]:
            kernel = int(fixed["kernel"])
            clip = functional.gaussian_blur(clip, [kernel, kernel], [drawn["sigma"][b].item()] * 2)
        if drawn["solarize"][b]:
            clip = functional.solarize(clip, fixed["threshold"])
        if drawn["flip"][b]:
            clip = functional.horizontal_flip(clip)
        result.append(functional.normalize(clip, [fixed["mean"]] * 3, [fixed["std"]] * 3))
    return torch.stack(result).transpose(1, 2)


def _by_order(clips: Tensor, drawn: Drawn, jitters: dict[int, Callable[[Tensor, Tensor], Tensor]]) -> None:
    """Apply the jitters in place to each group of clips [B, ...] with the same order, as the libraries do."""
    orders: dict[tuple[int, ...], list[int]] = {}
    for b in drawn["jitter"].nonzero().flatten().tolist():
        orders.setdefault(tuple(drawn["order"][b].tolist()), []).append(b)
    for order, rows in orders.items():
        group = clips[rows]
        for operation in order:
            group = jitters[operation](group, drawn["factors"][rows, operation].float())
        clips[rows] = group


def _torchaug(crops: list[Tensor], drawn: Drawn, fixed: dict[str, float]) -> Tensor:
    batch: Any = importlib.import_module("torchaug.batch_transforms.functional")
    single: Any = importlib.import_module("torchaug.transforms.functional")
    functional: Any = importlib.import_module("torchvision.transforms.v2.functional")
    clips = _resize(crops, int(fixed["size"]))
    jitters = {
        0: batch.batch_adjust_brightness,
        CONTRAST: batch.batch_adjust_contrast,
        SATURATION: batch.batch_adjust_saturation,
        HUE: batch.batch_adjust_hue,
    }
    _by_order(clips, drawn, jitters)
    gray, blur, solarize, flip = (drawn[name] for name in ("gray", "blur", "solarize", "flip"))
    clips[gray] = functional.rgb_to_grayscale(clips[gray], 3)
    kernel = int(fixed["kernel"])
    clips[blur] = batch.batch_gaussian_blur(clips[blur], [kernel, kernel], drawn["sigma"][blur].float())
    clips[solarize] = single.solarize(clips[solarize], fixed["threshold"])
    clips[flip] = clips[flip].flip(-1)
    return single.normalize(clips, [fixed["mean"]] * 3, [fixed["std"]] * 3, inplace=True).transpose(1, 2)  # type: ignore[no-any-return]


def _kornia(crops: list[Tensor], drawn: Drawn, fixed: dict[str, float]) -> Tensor:
    kornia: Any = importlib.import_module("kornia")
    enhance = kornia.enhance
    clips = _resize(crops, int(fixed["size"]))
    frames = clips.shape[1]

    def on_frames(operation: Callable[..., Tensor], scale: float = 1.0) -> Callable[[Tensor, Tensor], Tensor]:
        def jitter(group: Tensor, factor: Tensor) -> Tensor:
            return operation(group.flatten(0, 1), (scale * factor).repeat_interleave(frames)).view(group.shape)

        return jitter

    jitters = {
        0: on_frames(enhance.adjust_brightness_accumulative),
        CONTRAST: on_frames(enhance.adjust_contrast_with_mean_subtraction),
        SATURATION: on_frames(enhance.adjust_saturation_with_gray_subtraction),
        HUE: on_frames(enhance.adjust_hue, 2 * math.pi),
    }
    _by_order(clips, drawn, jitters)
    gray, blur, solarize, flip = (drawn[name] for name in ("gray", "blur", "solarize", "flip"))
    if gray.any():
        clips[gray] = kornia.color.rgb_to_grayscale(clips[gray]).expand(-1, -1, 3, -1, -1)
    if blur.any():
        kernel = int(fixed["kernel"])
        sigma = drawn["sigma"][blur].float().repeat_interleave(frames)[:, None].expand(-1, 2)
        blurred = kornia.filters.gaussian_blur2d(clips[blur].flatten(0, 1), (kernel, kernel), sigma)
        clips[blur] = blurred.view(-1, *clips.shape[1:])
    if solarize.any():
        clips[solarize] = enhance.solarize(clips[solarize].flatten(0, 1), fixed["threshold"]).view(-1, *clips.shape[1:])
    clips[flip] = kornia.geometry.hflip(clips[flip])
    mean, std = (torch.full((3,), fixed[name]) for name in ("mean", "std"))
    return enhance.normalize(clips.flatten(0, 1), mean, std).view(clips.shape).transpose(1, 2)  # type: ignore[no-any-return]
