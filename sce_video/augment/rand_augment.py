"""RandAugment on clips (Cubuk et al., 2020): the same random operations with one magnitude on all frames of a clip.

Operations, magnitudes (31 steps) and signs are torchvision's, with its definitions for float frames. Contrast,
auto-contrast and equalisation use each frame's own values. Shifts and rotations fill with black.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .color import adjust_brightness, adjust_contrast, adjust_saturation, solarize

STEPS = 30  # the highest strength
SIGNED = {  # largest magnitude; the sign is random
    "shear_x": 0.3,
    "shear_y": 0.3,
    "translate_x": 150 / 331,  # of the side
    "translate_y": 150 / 331,
    "rotate": 30.0,  # degrees
    "brightness": 0.9,  # factor 1 + magnitude, as the next three
    "saturation": 0.9,
    "contrast": 0.9,
    "sharpness": 0.9,
}
OPERATIONS = ("identity", *SIGNED, "posterize", "solarize", "auto_contrast", "equalize")
GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
Jitter = Callable[[Tensor, Tensor], Tensor]
JITTERS: dict[str, Jitter] = {"brightness": adjust_brightness, "saturation": adjust_saturation, "contrast": adjust_contrast}


def draw(count: int, strength: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw `count` operations with replacement; return their indices in OPERATIONS (int64) and magnitudes (float64)."""
    operations = torch.randint(len(OPERATIONS), (count,), generator=generator)
    negative = torch.rand(count, generator=generator, dtype=torch.float64) < 0.5
    values = [magnitude(OPERATIONS[i], strength) for i in operations.tolist()]
    signed = torch.tensor([OPERATIONS[i] in SIGNED for i in operations.tolist()])
    magnitudes = torch.tensor(values, dtype=torch.float64)
    return operations, torch.where(negative & signed, -magnitudes, magnitudes)


def magnitude(operation: str, strength: int) -> float:
    """Return the unsigned magnitude for a strength of 0..30: see SIGNED; posterise: bits kept; solarise: threshold."""
    share = strength / STEPS
    if operation == "posterize":
        return float(round(8 - 4 * share))
    if operation == "solarize":
        return 1 - share
    return SIGNED.get(operation, 0.0) * share


def apply_drawn(clips: Tensor, operations: Tensor, magnitudes: Tensor) -> Tensor:
    """Apply to N clips [N, 3, T, H, W] their own operations [N, R] with magnitudes [N, R], one after another."""
    if operations.shape[1] == 0:
        return clips
    changed = []
    for n in range(len(clips)):
        clip = clips[n : n + 1]
        for operation, magnitude in zip(operations[n].tolist(), magnitudes[n].tolist(), strict=True):
            clip = apply(clip, operation, magnitude)
        changed.append(clip)
    return torch.cat(changed)


def apply(clips: Tensor, operation: int, magnitude: float) -> Tensor:
    """Apply one operation to float clips [N, 3, T, H, W] in 0..1; the result is in 0..1."""
    name = OPERATIONS[operation]
    if name in GEOMETRIC:
        height, width = clips.shape[-2:]
        source = torch.tensor(source_matrix(name, magnitude, height, width), dtype=clips.dtype, device=clips.device)
        return move(clips, source.expand(len(clips), 2, 3))
    if name in JITTERS:
        return JITTERS[name](clips, torch.full((len(clips),), 1 + magnitude, dtype=torch.float64))
    if name == "sharpness":
        return sharpen(clips, torch.full((len(clips),), 1 + magnitude, dtype=torch.float64))
    if name == "posterize":
        return posterize(clips, torch.full((len(clips),), magnitude, dtype=torch.float64))
    if name == "solarize":
        return solarize(clips, magnitude)
    if name == "auto_contrast":
        return auto_contrast(clips)
    return equalize(clips) if name == "equalize" else clips


def sharpen(clips: Tensor, factors: Tensor) -> Tensor:
    """Blend with a 3 x 3 mean that weights the centre five times; factors [N], 1 is the unchanged clip, borders never change."""
    if min(clips.shape[-2:]) < 3:
        return clips
    kernel = torch.ones(3, 3, dtype=clips.dtype, device=clips.device)
    kernel[1, 1] = 5
    frames = clips.reshape(-1, 1, *clips.shape[-2:])
    smooth = frames.clone()
    smooth[..., 1:-1, 1:-1] = F.conv2d(frames, kernel.view(1, 1, 3, 3) / 13)
    weight = factors.to(clips.device, clips.dtype).view(-1, 1, 1, 1, 1)
    return torch.lerp(smooth.view(clips.shape), clips, weight).clamp(0, 1)


def auto_contrast(clips: Tensor) -> Tensor:
    """Stretch each channel of each frame to 0..1; a constant channel is unchanged."""
    low, high = clips.amin(dim=(-2, -1), keepdim=True), clips.amax(dim=(-2, -1), keepdim=True)
    flat = high == low
    low = low.masked_fill(flat, 0.0)
    stretched: Tensor = (clips - low) / (high - low).masked_fill(flat, 1.0)
    return stretched.clamp(0, 1)


def equalize(clips: Tensor) -> Tensor:
    """Equalise the histogram of each channel of each frame on 256 levels, by Pillow's rule.

    With n pixels, c of them in the highest level used, and step = (n - c) // 255, level v becomes
    (pixels below v + step // 2) // step, at most 255. A channel with step 0 is only rounded to the levels.
    """
    levels = (clips * (256 - 1e-3)).long()  # torchvision's conversion of float frames to integers
    flat = levels.flatten(0, -3).flatten(1)  # [frames and channels, H * W]
    counts = torch.zeros(len(flat), 256, dtype=torch.long, device=clips.device)
    counts.scatter_add_(1, flat, torch.ones_like(flat))
    highest = counts.gather(1, flat.amax(dim=1, keepdim=True))
    step = (flat.shape[1] - highest) // 255
    below = counts.cumsum(dim=1) - counts
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    table = torch.where(step > 0, table, torch.arange(256, device=clips.device))
    return (table.gather(1, flat).view(clips.shape) / 255).to(clips.dtype)


def posterize(clips: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest bits [N] of each clip's values."""
    levels = (2.0 ** bits.to(clips.device, clips.dtype)).view(-1, 1, 1, 1, 1)
    return (clips * levels).floor().minimum(levels - 1) / levels


def source_matrix(name: str, magnitude: float, height: int, width: int) -> list[list[float]]:
    """Return the 2 x 3 matrix from output to source coordinates, x before y, in pixels from the centre of the frame.

    Shears are about the top left corner, shifts by integer pixels, rotations about the centre.
    """
    x, y = 0.0, 0.0  # shift of the source
    across, down = (1.0, 0.0), (0.0, 1.0)
    if name == "shear_x":
        across, x = (1.0, magnitude), magnitude * height / 2
    elif name == "shear_y":
        down, y = (magnitude, 1.0), magnitude * width / 2
    elif name == "translate_x":
        x = -float(int(magnitude * width))
    elif name == "translate_y":
        y = -float(int(magnitude * height))
    else:
        sine, cosine = math.sin(math.radians(magnitude)), math.cos(math.radians(magnitude))
        across, down = (cosine, -sine), (sine, cosine)
    return [[*across, x], [*down, y]]


def move(clips: Tensor, matrices: Tensor) -> Tensor:
    """Move the pixels of clips [N, 3, T, H, W] by matrices [N, 2, 3] (see `source_matrix`), nearest pixels, black outside."""
    count, channels, frames, height, width = clips.shape
    columns = torch.arange(width, dtype=clips.dtype, device=clips.device) - (width - 1) / 2
    lines = torch.arange(height, dtype=clips.dtype, device=clips.device)[:, None] - (height - 1) / 2
    across, down = matrices[..., None, None].unbind(dim=1)  # [N, 3, 1, 1] each
    x = (across[:, 0] * columns + across[:, 1] * lines + across[:, 2]) / (width / 2)
    y = (down[:, 0] * columns + down[:, 1] * lines + down[:, 2]) / (height / 2)
    grid = torch.stack([x, y], dim=-1)  # [N, H, W, 2] in -1..1
    # All frames of a clip share a grid, so that they can be its channels.
    flat = clips.reshape(count, channels * frames, height, width)
    moved = F.grid_sample(flat, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return moved.view(clips.shape)
