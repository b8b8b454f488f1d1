"""Clip augmentation on the device, one parameter set per clip: draw the parameters, then apply them.

`pipeline` composes the operations of `geometry`, `color` and `blur` in the order of SCE's recipe. Each operation equals
torchvision's functional one applied frame by frame with the same parameters (`tests/test_augment.py`).
"""

from .blur import gaussian_blur
from .color import adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation, grayscale, solarize
from .draws import Parameters, draw
from .geometry import Channels, resize, temporal_difference, unnormalize
from .pipeline import apply, erase
from .view import View

__all__ = [
    "Channels",
    "Parameters",
    "View",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "apply",
    "draw",
    "erase",
    "gaussian_blur",
    "grayscale",
    "resize",
    "solarize",
    "temporal_difference",
    "unnormalize",
]
