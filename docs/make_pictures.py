"""Draw the two pictures of the README from the built-in videos and a finished demo run.

    python tools/pretrain.py seed=0                     # writes runs/demo
    python docs/make_pictures.py runs/demo              # writes docs/pictures/views.png and docs/pictures/retrieval.png

`views.png`: frames of one video and the two augmented clips that the network compares. `retrieval.png`: the first test
video of every fourth class and its nearest training videos by the cosine of the encoder's centred features.
Green marks the query's class. The queries are not selected by their results; SEED is, so that both views show a change.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import sce_video
from sce_video import augment
from sce_video.data import clips, crops, manifest, synthetic
from sce_video.data.decode import open_video
from sce_video.evaluation.views import test_crops, test_size
from sce_video.randomness import generator
from sce_video.training.preview import words

FRAMES = 8  # of a clip, as in the demo's recipe
CLIP_SECONDS = 1.28
SIDE = 40  # pixels of a view, as in the demo's recipe
NEIGHBOURS = 6
SEED = 24  # of the views in the picture
COLOURS = 256  # of a picture: a third of the bytes
GAP = 6
GREY, GREEN, RED = "#57606a", "#1a7f37", "#cf222e"
VIEWS = [
    augment.View(blur_probability=0.5, blur_kernel=5, blur_sigma_max=1.0),
    augment.View(blur_probability=0.1, blur_kernel=5, blur_sigma_max=1.0, solarize_probability=0.2),
]


def read_clip(path: str, start: float = 0.0) -> Tensor:
    """Read FRAMES frames spread over CLIP_SECONDS from `start` seconds: uint8 [T, h, w, 3]."""
    with open_video(path) as reader:
        first, last = reader.window(start, start + CLIP_SECONDS)
        return reader.read((first + clips.uniform_subsample(last - first, FRAMES)).tolist())


def draw_views(path: Path, video: str) -> None:
    """Draw the video and its two views, one above the other."""
    with open_video(video) as reader:
        whole = reader.read(torch.linspace(0, reader.num_frames - 1, FRAMES).long().tolist())
    rows = [("One video without a label, 4 seconds", whole)]
    for number, (view, start) in enumerate(zip(VIEWS, (0.2, 2.4), strict=True)):
        clip = read_clip(video, start)
        drawn = generator(SEED, "picture", number)
        box = crops.random_resized(*clip.shape[1:3], area=(0.5, 1.0), ratio=(0.75, 4 / 3), generator=drawn)
        clip = clip[:, box.top : box.top + box.height, box.left : box.left + box.width].contiguous()
        parameters = augment.draw(view, [drawn])
        shown = augment.apply(view, [clip], parameters, size=SIDE, mean=0.0, std=1.0)[0]
        text = f"View {number + 1}, {CLIP_SECONDS} s: cropped, {', '.join(words(parameters))}"
        rows.append((text, (shown.clamp(0, 1) * 255).round().byte().permute(1, 2, 3, 0)))
    side, line = 88, 22
    sheet = Image.new("RGB", (FRAMES * (side + GAP) - GAP, len(rows) * (side + line + GAP) - GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (text, frames) in enumerate(rows):
        top = row * (side + line + GAP)
        pen.text((0, top + 2), text, fill="black", font=ImageFont.load_default(12))
        for column, frame in enumerate(frames):
            sheet.paste(thumbnail(frame, side), (column * (side + GAP), top + line))
    save(sheet, path)


def save(sheet: Image.Image, path: Path) -> None:
    """Write the sheet with a palette of COLOURS, dithered."""
    palette = sheet.quantize(COLOURS, method=Image.Quantize.MEDIANCUT)
    sheet.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)


def thumbnail(frame: Tensor, side: int) -> Image.Image:
    """Scale the central square of a frame uint8 [h, w, 3] to `side` pixels."""
    image = Image.fromarray(frame.numpy())
    left, top = (image.width - min(image.size)) // 2, (image.height - min(image.size)) // 2
    box = (left, top, left + min(image.size), top + min(image.size))
    return image.resize((side, side), Image.Resampling.BICUBIC, box=box)


@torch.no_grad()
def read_features(encoder: torch.nn.Module, videos: list[manifest.Video]) -> Tensor:
    """Return the features [N, width] of the centre crop of each video's first clip, the demo's protocol."""
    size = test_size(SIDE)
    return torch.cat([encoder(test_crops(read_clip(video.path), size=size, num_crops=1)) for video in videos])


def draw_retrieval(path: Path, run: str, folder: Path) -> None:
    """Draw test videos and their nearest training videos; print the share of right first neighbours."""
    encoder = sce_video.load_encoder(run)
    bank, queries = manifest.read(folder / "train.csv"), manifest.read(folder / "val.csv")
    bank_features, query_features = read_features(encoder, bank), read_features(encoder, queries)
    center = bank_features.mean(dim=0)
    cosines = torch.nn.functional.normalize(query_features - center) @ torch.nn.functional.normalize(bank_features - center).mT
    nearest = cosines.topk(NEIGHBOURS).indices.tolist()
    right = [queries[row].label == bank[found[0]].label for row, found in enumerate(nearest)]
    print(f"R@1 {100 * sum(right) / len(right):.1f} % of {len(right)} queries")
    side, line = 92, 34
    wide = (NEIGHBOURS + 1) * (side + GAP) + 18
    rows = range(0, len(synthetic.CLASS_NAMES), 4)
    sheet = Image.new("RGB", (wide, 24 + len(rows) * (side + line + GAP)), "white")
    pen, small = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    pen.text((0, 0), "Query", fill="black", font=ImageFont.load_default(14))
    pen.text((side + GAP + 18, 0), "Nearest training videos, nearest first", fill="black", font=ImageFont.load_default(14))
    for number, row in enumerate(rows):
        top = 24 + number * (side + line + GAP)
        shown = [queries[row], *[bank[found] for found in nearest[row]]]
        for column, video in enumerate(shown):
            left = column * (side + GAP) + (18 if column else 0)
            hit = video.label == queries[row].label
            color = GREY if not column else GREEN if hit else RED
            frame = read_clip(video.path)[FRAMES // 2]
            pen.rectangle((left, top, left + side - 1, top + side - 1), fill=color)
            sheet.paste(thumbnail(frame, side - 6), (left + 3, top + 3))
            shape, _, motion = str(video.label).partition("_")
            mark = "query" if not column else "right" if hit else "wrong"
            pen.text((left, top + side + 1), f"{shape} {motion}\n{mark}", fill=color, font=small, spacing=2)
    save(sheet, path)


def main() -> None:
    """Draw both pictures."""
    folder = synthetic.build()
    out = Path(__file__).parent / "pictures"
    out.mkdir(exist_ok=True)
    draw_views(out / "views.png", manifest.read(folder / "train.csv")[8].path)
    draw_retrieval(out / "retrieval.png", sys.argv[1], folder)


if __name__ == "__main__":
    main()
