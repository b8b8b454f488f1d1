"""Pictures of a run and of its tests, drawn with Pillow: curves, confusion, retrieved videos, views.

Each function returns a picture on white, readable at 800 pixels; `save` is atomic, and never ends a run.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..data.decode import DecodeError, open_row
from ..data.manifest import Video
from ..errors import log
from ..runs.files import replace_atomically

WIDTH = 800  # pixels
INK, GREY, GREEN, RED = "#24292f", "#8c959f", "#1a7f37", "#cf222e"
COLOURS = ("#0969da", "#cf222e", "#1a7f37", "#8250df", "#bc4c00", "#57606a")  # of lines
MAX_CLASSES = 200  # in a confusion picture
POINTS = 1000  # of a line
FROM_ZERO = ("scores, 0 to 1", "feature spread")  # panels
FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf")

Line = Sequence[tuple[float, float]]  # (x, y), x ascending


def save(picture: Image.Image, path: Path) -> None:
    """Write a picture atomically; warn where it cannot be written."""
    try:
        with replace_atomically(path) as work:
            picture.save(work)
    except OSError as error:
        log.warning(f"{path} cannot be written: {error.strerror or error}")


@lru_cache
def font(size: int = 12) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Return a font of the system with the letters of many languages, else Pillow's; without FreeType its small one."""
    for name in FONTS:
        with suppress(OSError, ImportError):
            return ImageFont.truetype(name, size - 1)
    try:
        return ImageFont.load_default(size)
    except (TypeError, OSError):  # Pillow 10.0, or built without FreeType
        return ImageFont.load_default()


def letters(text: str, face: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """Return `text` in letters that the font has: others lose their marks, or become escapes."""
    if not isinstance(face, ImageFont.FreeTypeFont):  # the small font is Latin-1
        return text.encode("latin-1", "backslashreplace").decode("latin-1")
    none = bytes(face.getmask("\U0010ffff"))

    def drawn(letter: str) -> str:
        plain = unicodedata.normalize("NFKD", letter)[0]
        known = (form for form in (letter, plain) if form.isascii() or bytes(face.getmask(form)) != none)
        return next(known, letter.encode("unicode_escape").decode())

    return "".join(letter if letter.isascii() else drawn(letter) for letter in text)


def write(pen: ImageDraw.ImageDraw, where: tuple[float, float], text: str, *, width: float = WIDTH, fill: str = INK) -> None:
    """Write one line, shortened at the end to `width` pixels; letters that the font has not become escapes."""
    face = font()
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    text = letters(text, face)
    while text and pen.textlength(text, font=face) > width:
        text = text[:-2].rstrip(".") + "." if len(text) > 2 else ""
    pen.text(where, text, fill=fill, font=face)


def curves(panels: Mapping[str, Mapping[str, Line]], x_name: str) -> Image.Image:
    """Draw lines over x, a panel for each title, two side by side. Values that are not finite are left out."""
    shown = {title: lines for title, lines in panels.items() if any(lines.values())}
    wide, high = WIDTH // 2, 230
    sheet = Image.new("RGB", (WIDTH, high * max(1, math.ceil(len(shown) / 2))), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (title, lines) in enumerate(shown.items()):
        left, top = number % 2 * wide + 54, number // 2 * high + 36
        _panel(pen, (left, top, left + wide - 74, top + high - 76), title, lines, x_name)
    return sheet


def _panel(pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int], title: str, lines: Mapping[str, Line], x_name: str) -> None:
    left, top, right, bottom = box
    kept = {name: [point for point in line if math.isfinite(point[1])] for name, line in lines.items()}
    points = [point for line in kept.values() for point in line] or [(0.0, 0.0)]
    (x0, x1), (y0, y1) = ((min(values), max(values)) for values in zip(*points, strict=True))
    y0 = min(y0, 0.0) if title in FROM_ZERO else y0  # else a small change looks like a large one
    x1, y1 = (x1 if x1 > x0 else x0 + 1), (y1 if y1 > y0 else y0 + max(abs(y0), 1e-9) / 10)
    pen.rectangle(box, outline="#d0d7de")
    write(pen, (left, top - 34), title)
    for value, height in ((y1, top), ((y0 + y1) / 2, (top + bottom) // 2), (y0, bottom)):
        pen.line((left, height, right, height), fill="#eaeef2")
        write(pen, (left - 52, height - 7), f"{value:.1e}" if 0 < abs(value) < 0.01 else f"{value:.4g}", fill=GREY, width=50)
    write(pen, (left, bottom + 4), f"{x0:g}", fill=GREY)
    write(pen, (right - 100, bottom + 4), f"{x_name} {x1:g}", fill=GREY, width=120)
    for number, (name, line) in enumerate(kept.items()):
        color = COLOURS[number % len(COLOURS)]
        every = max(1, len(line) // POINTS)
        scaled = [((x - x0) / (x1 - x0), (y - y0) / (y1 - y0)) for x, y in line[::every]]
        drawn = [(left + x * (right - left), bottom - y * (bottom - top)) for x, y in scaled]
        pen.line(drawn, fill=color, width=2) if len(drawn) > 1 else None
        for x, y in drawn if len(drawn) < 30 else ():
            pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill=color)
        write(pen, (left + number * (right - left) // len(kept), top - 18), name, fill=color, width=(right - left) / len(kept))


def confusion(counts: Sequence[Sequence[int]], classes: Sequence[str], title: str) -> Image.Image:
    """Draw rows of true classes over columns of predicted ones, dark where many, beside a bar of the share right per class."""
    classes, counts = classes[:MAX_CLASSES], [row[:MAX_CLASSES] for row in counts[:MAX_CLASSES]]
    names, bars, top = 170, 180, 44
    cell = line = max(2, min(36, (WIDTH - names - bars) // max(1, len(classes))))
    sheet = Image.new("RGB", (WIDTH, top + line * len(classes) + 10), "white")
    pen = ImageDraw.Draw(sheet)
    write(pen, (4, 2), title)
    write(pen, (names, 22), "predicted, in the order of the rows", fill=GREY, width=WIDTH - names - bars)
    write(pen, (WIDTH - bars + 10, 22), "share right", fill=GREY)
    every = max(1, math.ceil(13 / line))
    for row, (name, own) in enumerate(zip(classes, counts, strict=True)):
        y, total = top + row * line, sum(own)
        for column, count in enumerate(own):
            light = 235 - round(200 * count / max(total, 1))  # of this row's videos
            color = (light, 200, light) if row == column else (235, light, light)
            x = names + column * cell
            pen.rectangle(
                (x, y, x + cell - 1, y + line - 1), fill=tuple(max(level, 30) for level in color) if count else "#f6f8fa"
            )
        share = own[row] / total if total else 0.0
        pen.rectangle((WIDTH - bars + 10, y, WIDTH - bars + 10 + 100 * share, y + max(1, line - 2)), fill=GREEN)
        if row % every == 0:
            write(pen, (4, y + (line - 14) // 2), name, width=names - 8)
            write(pen, (WIDTH - bars + 116, y + (line - 14) // 2), f"{100 * share:.0f} % of {total}", fill=GREY, width=64)
    return sheet


def retrieved(rows: Sequence[tuple[Video, Sequence[Video]]], title: str) -> Image.Image:
    """Draw queries and their nearest videos: green where the class is the query's, red where not."""
    count = max(len(found) for _, found in rows) + 1
    side, line = (WIDTH - 20) // count - 8, 18
    sheet = Image.new("RGB", (WIDTH, 40 + len(rows) * (side + line + 8)), "white")
    pen = ImageDraw.Draw(sheet)
    write(pen, (4, 2), title)
    for number, (query, found) in enumerate(rows):
        top = 40 + number * (side + line + 8)
        for column, video in enumerate([query, *found]):
            left = 4 + column * (side + 8) + (12 if column else 0)
            right = video.label == query.label
            color = GREY if not column else GREEN if right else RED
            pen.rectangle((left, top, left + side - 1, top + side - 1), fill=color)
            sheet.paste(_thumbnail(video, side - 8), (left + 4, top + 4))
            mark = "query" if not column else "right" if right else "wrong"
            write(pen, (left, top + side + 1), f"{mark}: {video.label}", fill=color, width=side)
    return sheet


def views(clips: Sequence[Tensor], paths: Sequence[str]) -> Image.Image:
    """Draw the first videos of a batch. clips: a view each, float in 0..1 [B, 3, T, H, W], in the order of `paths`."""
    frames = 8
    side, line = WIDTH // frames, 18
    sheet = Image.new("RGB", (WIDTH, len(paths) * (line + len(clips) * (side + 4))), "white")
    pen = ImageDraw.Draw(sheet)
    for row, path in enumerate(paths):
        top = row * (line + len(clips) * (side + 4))
        write(pen, (2, top + 2), path)
        for number, view in enumerate(clips):
            picked = torch.linspace(0, view.shape[2] - 1, min(frames, view.shape[2])).round().long().tolist()
            for column, index in enumerate(picked):
                pixels = view[row, :, index].float().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu()
                image = Image.fromarray(pixels.numpy()).resize((side - 4, side - 4), Image.Resampling.BICUBIC)
                sheet.paste(image, (column * side, top + line + number * (side + 4)))
    return sheet


def _thumbnail(video: Video, side: int) -> Image.Image:
    """Return the middle frame's central square, or a grey one."""
    try:
        with open_row(video) as reader:
            frame = reader.read([sum(reader.window(0, reader.seconds)) // 2])[0]
    except DecodeError:
        return Image.new("RGB", (side, side), "#d0d7de")
    image = Image.fromarray(frame.numpy())
    left, top = (image.width - min(image.size)) // 2, (image.height - min(image.size)) // 2
    box = (left, top, left + min(image.size), top + min(image.size))
    return image.resize((side, side), Image.Resampling.BICUBIC, box=box)
