"""A `FrameReader` on one picture: JPEG, PNG or WebP as a video of one frame, decoded by Pillow.

Pixels are what a viewer shows, in 8 bits: EXIF orientation applied, palettes and greyscale as RGB, transparent pixels laid
on white, 16-bit values cut to their high byte, CMYK by Pillow's plain formula. Colour profiles are ignored, as by
torchvision. Animations, other formats and more than MAX_PIXELS are refused before a pixel is decoded.

A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size in a fraction of the time (libjpeg's scaled transform). That differs
from scaling the full picture, so it is done only where a smallest size is given: see `read_clips`.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from ..crops import Box
from .frame_folder import MAX_PICTURE_BYTES, PICTURE_ERRORS, read_file
from .media import DecodeError, TooLarge, reason_of
from .orientation import UPRIGHT, Orientation
from .reader import FrameReader

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 1 << 26  # 67 megapixels, 200 MB decoded
# EXIF orientation -> how stored pixels become displayed ones.
TURNS = {
    **{2: Orientation(False, True, False), 3: Orientation(False, True, True), 4: Orientation(False, False, True)},
    **{5: Orientation(True, False, False), 6: Orientation(True, True, False)},
    **{7: Orientation(True, True, True), 8: Orientation(True, False, True)},
}


class Picture(FrameReader):
    """Reads one picture file. Raises DecodeError for no such file, another format, an animation; TooLarge above MAX_PIXELS."""

    decoder = "picture"
    num_frames = 1
    fps = Fraction(1)  # a rate that no clip depends on: clips of images span 0 seconds

    def __init__(self, path: str) -> None:
        super().__init__(path)
        try:
            self._content = read_file(path, MAX_PICTURE_BYTES)
            with self._open() as image:
                self._turn = _find_orientation(image)
                width, height = image.size
        except PICTURE_ERRORS as error:
            raise DecodeError(f"{path}: {reason_of(error)}") from error
        self.height, self.width = (width, height) if self._turn.transpose else (height, width)

    def read_clips(
        self, clips: Sequence[Tensor], boxes: Sequence[Box], *, no_smaller_than: Sequence[int] | None = None
    ) -> list[Tensor]:
        """Return each clip's frames, cropped to its box; see `FrameReader.read_clips`.

        no_smaller_than: one size per clip; a JPEG may then be decoded at 1/2, 1/4 or 1/8, while no box becomes smaller
        than its size in either direction.
        """
        ratios = [min(box.height, box.width) // size for box, size in zip(boxes, no_smaller_than or (), strict=False)]
        scale = max([factor for factor in (2, 4, 8) if ratios and factor <= min(ratios)], default=1)
        if scale == 1:
            return super().read_clips(clips, boxes)
        image = self._decode(scale)
        scale = round(self.height / image.shape[0])  # 1 for formats other than JPEG
        found = []
        for clip, (top, left, height, width) in zip(clips, boxes, strict=True):
            rows, columns = slice(top // scale, (top + height) // scale), slice(left // scale, (left + width) // scale)
            found.append(torch.from_numpy(np.ascontiguousarray(image[rows, columns])).expand(len(clip), -1, -1, -1))
        return found

    def _images(self, indices: Sequence[int]) -> Iterator[tuple[int, Any]]:
        for index in indices:
            yield index, self._decode()

    def _decode(self, scale: int = 1) -> Any:
        """Return the displayed pixels, uint8 [height, width, 3], of a JPEG divided by `scale`."""
        try:
            with self._open() as image:
                if scale > 1:
                    image.draft(None, (image.width // scale, image.height // scale))  # does nothing for other formats
                return self._turn.apply(_to_rgb(image))
        except PICTURE_ERRORS as error:
            raise DecodeError(f"{self.path}: {reason_of(error)}") from error

    def _open(self) -> Image.Image:
        """Parse the header, without decoding a pixel."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit follows
            warnings.simplefilter("ignore", UserWarning)  # about damaged EXIF, which then counts as none
            image = Image.open(io.BytesIO(self._content), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise TooLarge(f"{self.path}: {image.width}x{image.height} pixels are more than the {MAX_PIXELS} allowed")
        if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
            raise DecodeError(f"{self.path}: an animation; only single pictures are read")
        return image


def write_png(path: str | os.PathLike[str], pixels: Any) -> None:
    """Write uint8 RGB [height, width, 3] as a PNG file."""
    Image.fromarray(pixels).save(path, "PNG")


def _find_orientation(image: Image.Image) -> Orientation:
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1), UPRIGHT)
    except (*PICTURE_ERRORS, struct.error, KeyError, TypeError):  # damaged EXIF: viewers ignore it too
        return UPRIGHT


def _to_rgb(image: Image.Image) -> Any:
    """Return decoded pixels as uint8 RGB [height, width, 3]."""
    if image.mode.startswith("I"):  # 16-bit greyscale, which Pillow would clip at 255
        values = np.asarray(image)
        return np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.array(image.convert("RGB"))
