"""Draw the input of the network: the first videos of the first step, each view as cropped and as augmented.

    python tools/pretrain.py recipe=sce_r3d18_ucf101 data.train=/data/ucf101/train.csv preview=views.png

Clips, boxes and drawn parameters are those of the run that the same command without `preview=` would begin.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .. import augment
from ..augment.rand_augment import OPERATIONS
from ..config.pretrain import PretrainConfig
from ..data import loader
from ..data.dataset import Sample
from ..data.decode import DecodeError
from ..data.packed import Packed
from ..errors import InputError
from ..evaluation import pictures
from . import rows as rows_of_run
from .setup import build_augmenter, build_dataset

VIDEOS = 4  # at most
FRAMES = 8  # of a clip, at most
SIDE = 99  # pixels of a frame, at most: 800 for a strip
LINE = 16  # pixels of a line of text
ENDINGS = (".png", ".jpg", ".jpeg")
JITTERS = ("brightness", "contrast", "saturation", "hue")  # the order of Parameters.factors

Row = tuple[str, Tensor | None]  # a line of text, and the frames below it: uint8 [T, side, side, 3]


def preview(cfg: PretrainConfig) -> Path:
    """Write the picture that `cfg.preview` names and return its path; nothing is trained.

    Raises InputError for a file that is there already or cannot be written, and where no video can be read.
    """
    path = Path(cfg.preview)
    if path.suffix.lower() not in ENDINGS:
        raise InputError(f"preview={path} must end in one of {', '.join(ENDINGS)}")
    if path.exists():
        raise InputError(f"preview={path} is there already: give another name, or remove it")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError("preview= is drawn by one process: start it without torchrun")
    try:
        picture = _drawn(list(_rows(cfg)))
    except DecodeError as error:
        raise InputError(f"nothing to show: {error}") from error
    try:
        picture.save(path)
    except OSError as error:
        with suppress(OSError):
            path.unlink()  # half of it, on a full disk
        raise InputError(f"preview={path} cannot be written: {error.strerror or error}") from error
    print(f"the first views of {cfg.name}, seed {cfg.seed}, are in {path}")
    return path


def _rows(cfg: PretrainConfig) -> Iterator[Row]:
    videos, _, sources = rows_of_run.read(cfg.data)
    loader.check_batch(len(videos), cfg.optim.batch, cfg.optim.accumulate, 1, rows_of_run.MORE)
    dataset = build_dataset(cfg, videos, torch.device("cpu"))
    augmenter = build_augmenter(cfg, torch.device("cpu"))
    keys = loader.step_keys(cfg.seed, 0, num_rows=len(videos), batch=cfg.optim.batch, sources=sources)
    for epoch, row in keys[:VIDEOS]:
        sample = dataset[epoch, row]
        yield sample.path, None
        for number, (view, size) in enumerate(zip(cfg.augment.views, cfg.augment.sizes, strict=True)):
            drawn = augmenter.draw(number, [(epoch, row)])
            yield from _view_rows(cfg, sample, number, view, drawn, size)


def _view_rows(
    cfg: PretrainConfig, sample: Sample, number: int, view: augment.View, drawn: augment.Parameters, size: int
) -> Iterator[Row]:
    clip = Packed.pack([sample.clips[number]]).unpack()[0]
    difference = sample.differences[number]
    shown = augment.apply(
        view,
        [clip],
        drawn,
        size=size,
        mean=cfg.augment.mean,
        std=cfg.augment.std,
        differences=[difference],
        antialias=cfg.augment.antialias,
    )[0]
    pixels = augment.unnormalize(shown, cfg.augment.mean, cfg.augment.std).clamp(0, 1).mul(255).round().byte()
    height, width = clip.shape[1:3]
    count = pixels.shape[1]
    times = ", ".join(f"{sample.times[number][index]:.2f}" for index in _shown(count))
    few = f"{min(count, FRAMES)} of its {count} frames, " if count > FRAMES else ""
    yield f"view {number + 1}, {width} x {height} pixels of the video, {few}at {times} s", clip[:count]
    yield f"at {size} pixels: {', '.join(words(drawn, difference)) or 'as it is'}", pixels.permute(1, 2, 3, 0)


def words(drawn: augment.Parameters, difference: bool = False) -> list[str]:
    """Describe the parameters drawn for the first clip, in the order of application."""
    said = ["temporal difference"] if difference else []
    said += ["mirrored"] if drawn.flip[0] else []
    for operation, magnitude in zip(drawn.operations[0].tolist(), drawn.magnitudes[0].tolist(), strict=True):
        said.append(f"{OPERATIONS[operation]} {magnitude:.2g}")
    if drawn.jitter[0]:
        said += [f"{JITTERS[which]} {drawn.factors[0, which]:.2f}" for which in drawn.order[0].tolist()]
    said += ["grey"] if drawn.gray[0] else []
    said += [f"blurred by {drawn.sigma[0]:.2f} px"] if drawn.blur[0] else []
    said += ["solarised"] if drawn.solarize[0] else []
    return said + (["a box erased"] if drawn.erased[0, 2] > 0 else [])


def _drawn(rows: list[Row]) -> Image.Image:
    strips = [(text, None if frames is None else _strip(frames)) for text, frames in rows]
    widths, heights = [4 * SIDE], [0]
    for _, strip in strips:
        widths.append(strip.width if strip else 0)
        heights.append(heights[-1] + LINE + (strip.height if strip else 0))
    sheet = Image.new("RGB", (max(widths), heights[-1]), "white")
    pen = ImageDraw.Draw(sheet)
    for (text, strip), top in zip(strips, heights, strict=False):
        pictures.write(pen, (2, top + 1), text, width=sheet.width - 4, fill="black" if strip else "darkred")
        if strip:
            sheet.paste(strip, (0, top + LINE))
    return sheet


def _shown(count: int) -> list[int]:
    """Return the frames of a clip that are drawn."""
    indices: list[int] = torch.linspace(0, count - 1, min(count, FRAMES)).round().long().tolist()
    return indices


def _strip(frames: Tensor) -> Image.Image:
    """Frames uint8 [T, h, w, 3] side by side, up to FRAMES of them, none larger than SIDE."""
    count, (height, width) = min(len(frames), FRAMES), frames.shape[1:3]
    scale = min(1.0, SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    strip = Image.new("RGB", (count * (size[0] + 1), size[1]), "white")
    for column, index in enumerate(_shown(len(frames))):
        frame = Image.fromarray(frames[index].numpy())
        strip.paste(frame if scale == 1 else frame.resize(size), (column * (size[0] + 1), 0))
    return strip
