"""Options of a view's augmentation and of multi-crop's local views, with their checks."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import InputError


@dataclass
class View:
    """Augmentation of one view. Probabilities are per clip, in [0, 1]."""

    jitter_probability: float = 0.8  # brightness, contrast, saturation and hue in random order
    brightness: float = 0.8  # factor uniform in [max(0, 1 - x), 1 + x]; so are the next two
    contrast: float = 0.8
    saturation: float = 0.4
    hue: float = 0.2  # shift uniform in [-x, x] of the colour circle, at most 0.5
    gray_probability: float = 0.2
    blur_probability: float = 1.0
    blur_kernel: int = 23  # taps per direction, odd; frames must be larger than half of it
    blur_sigma_min: float = 0.1  # pixels
    blur_sigma_max: float = 2.0
    solarize_probability: float = 0.0
    solarize_threshold: float = 0.5
    flip_probability: float = 0.5  # horizontal
    rand_augment_operations: int = 0  # number of RandAugment operations, the same on all frames; 0: none
    rand_augment_magnitude: int = 9  # 0..30
    erase_probability: float = 0.0  # random erasing: sets a random box to the mean colour in all frames
    erase_area_min: float = 0.02  # the box's share of the frame
    erase_area_max: float = 0.33
    erase_ratio_min: float = 0.3  # width / height
    erase_ratio_max: float = 3.3

    def __post_init__(self) -> None:
        for name in ("jitter", "gray", "blur", "solarize", "flip", "erase"):
            value = getattr(self, f"{name}_probability")
            if not 0 <= value <= 1:
                raise InputError(f"{name}_probability ({value}) must be in [0, 1]")
        for name in ("brightness", "contrast", "saturation"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} ({getattr(self, name)}) must be at least 0")
        if not 0 <= self.hue <= 0.5:
            raise InputError(f"hue ({self.hue}) must be in [0, 0.5]: half a turn of the circle reaches every colour")
        if not 0 < self.blur_sigma_min <= self.blur_sigma_max:
            raise InputError(f"blur sigma range [{self.blur_sigma_min}, {self.blur_sigma_max}] must be positive")
        if not 0 <= self.rand_augment_magnitude <= 30 or self.rand_augment_operations < 0:
            raise InputError(
                f"rand_augment_magnitude ({self.rand_augment_magnitude}) must be in [0, 30], "
                f"rand_augment_operations ({self.rand_augment_operations}) at least 0"
            )
        if not 0 < self.erase_area_min <= self.erase_area_max <= 1:
            raise InputError(f"erase_area_min..max [{self.erase_area_min}, {self.erase_area_max}] must be within (0, 1]")
        if not 0 < self.erase_ratio_min <= self.erase_ratio_max:
            raise InputError(f"erase_ratio_min..max [{self.erase_ratio_min}, {self.erase_ratio_max}] must be positive")

    def check_size(self, size: int, name: str) -> None:
        """Raise InputError if frames of `size` pixels are too small for the blur; `name` is the view's option."""
        if self.blur_probability > 0 and (self.blur_kernel % 2 == 0 or self.blur_kernel // 2 >= size):
            raise InputError(f"{name}.blur_kernel ({self.blur_kernel}) must be odd and under twice the clip's side ({size})")


@dataclass
class Crop:
    """Size and area of a local view."""

    size: int  # pixels, square
    area_min: float  # random resized crop: share of the frame; ratio as for the global views
    area_max: float

    def __post_init__(self) -> None:
        if self.size < 16:
            raise InputError(f"augment.local.size ({self.size}) must be at least 16 pixels")
        if not 0 < self.area_min <= self.area_max <= 1:
            raise InputError(
                f"augment.local.area_min..area_max ({self.area_min}..{self.area_max}) must rise and be within (0, 1]: "
                "shares of the frame"
            )


@dataclass
class Local:
    """Multi-crop: additional smaller views of smaller parts of the frame, used as queries only.

    They have the duration and number of frames of the global views and random starts of their own. Defaults suit a global
    crop of 224 pixels with an area of 0.2 to 0.766: both areas times 96 / 224, blur and solarize as in SCE's image recipe.
    """

    views: int = 0  # per video; 0: none
    size: int = 96  # pixels, square
    area_min: float = 0.086  # random resized crop: share of the frame; ratio as for the global views
    area_max: float = 0.328
    crops: list[Crop] = field(default_factory=list)  # views of different sizes, in place of `views` equal ones
    view: View = field(default_factory=lambda: View(blur_probability=0.5, solarize_probability=0.2))

    def __post_init__(self) -> None:
        if self.views < 0:
            raise InputError(f"augment.local.views ({self.views}) must be at least 0; 0 is no multi-crop")
        if self.views > 1000:  # before a list of so many is made
            raise InputError(f"augment.local.views ({self.views}) must be at most 1000")
        if self.views and self.crops:
            raise InputError("augment.local.views and augment.local.crops must not be given together")
        for crop in self.all_crops() if isinstance(self.view, View) else ():  # not while a schema is built
            self.view.check_size(crop.size, "augment.local.view")

    def all_crops(self) -> list[Crop]:
        """Return size and area of each local view."""
        return self.crops or [Crop(self.size, self.area_min, self.area_max)] * self.views
