"""Building the passes of `fused` before they are needed: whether it pays, whether it is possible, and doing it.

torch.compile needs a C++ compiler (CPU) or Triton (GPU), and half a minute to a minute the first time; what it built is kept
in its cache on disk, and the next program takes it from there in seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from . import fused
from .draws import Parameters, draw
from .pipeline import apply
from .view import View

PAYS_FROM = (
    2e10  # pixels: 50,000 clips of 8 x 224 x 224, of which an hour is saved on one core for a minute of building
)


def pays(device: torch.device, pixels: float) -> bool:
    """Whether to compile for this many pixels in all (clips x frames x height x width, of one process): on a GPU always."""
    return device.type != "cpu" or pixels >= PAYS_FROM


def prepare(
    views: Sequence[View],
    *,
    num_frames: int,
    size: int,
    mean: float,
    std: float,
    device: torch.device,
    antialias: bool = False,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> str:
    """Build every pass that these views can need, and return "", or why it could not be done, in one line."""
    from torch._dynamo.exc import TorchDynamoException

    try:
        for view in views:
            clips, drawn = _samples(view, num_frames, size, device)
            apply(
                view,
                clips,
                drawn,
                size=size,
                mean=mean,
                std=std,
                antialias=antialias,
                compiled=True,
                dtype=dtype,
                channels_last=channels_last,
            )
    except TorchDynamoException as error:
        return str(error).strip().splitlines()[0]
    return ""


def _samples(view: View, num_frames: int, size: int, device: torch.device) -> tuple[list[torch.Tensor], Parameters]:
    """Clips and parameters that lead through every pass: each order of hue and contrast, each radius of the blur, none."""
    orders = [[3, 1, 0, 2], [0, 1, 2, 3]]
    sigmas = [0.0, *(radius / 5 for radius in fused.RADII), view.blur_sigma_max]
    cases = [(order, sigma) for sigma in sigmas for order in orders]
    drawn = replace(
        draw(view, [torch.Generator().manual_seed(0)] * len(cases)),
        order=torch.tensor([order for order, _ in cases]),
        sigma=torch.tensor([min(max(sigma, 0.1), view.blur_sigma_max) for _, sigma in cases], dtype=torch.float64),
        jitter=torch.full((len(cases),), view.jitter_probability > 0),
        blur=torch.tensor([sigma > 0 and view.blur_probability > 0 for _, sigma in cases]),
    )
    # Sides that are nothing else's: what is equal once would be taken for equal always.
    sides = [(size + 5 + i, size + 17 + 2 * i) for i in range(len(cases))]
    return [torch.zeros(num_frames, *side, 3, dtype=torch.uint8, device=device) for side in sides], drawn
