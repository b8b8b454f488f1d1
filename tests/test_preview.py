"""The picture of the first views shows what training is given, and nothing is trained or overwritten for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MULTI_CROP, TINY_RECIPE, compose_pretrain, run_tool
from PIL import Image

from sce_video import augment
from sce_video.data import loader, manifest
from sce_video.randomness import generator
from sce_video.training.preview import LINE, words
from sce_video.training.setup import build_dataset

COLOURFUL = ["augment.temporal_difference_probability=0.5", "augment.view1.rand_augment_operations=1", "seed=3"]


def test_sheet_shows_the_views_of_the_first_step(videos: Path, tmp_path: Path) -> None:
    """Strip by strip: the clip as it is cut, then as the network would get it, for every view of the first four videos."""
    options = [*TINY_RECIPE, *MULTI_CROP, *COLOURFUL, f"data.train={videos}/train.csv"]
    result = run_tool("pretrain", *options, "preview=views.png", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "views.png" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["views.png"], "no run folder"
    sheet = np.asarray(Image.open(tmp_path / "views.png"))

    cfg = compose_pretrain(*options)
    rows = manifest.read(videos / "train.csv")
    dataset = build_dataset(cfg, rows, torch.device("cpu"))
    first = loader.step_keys(cfg.seed, 0, num_rows=len(rows), batch=cfg.optim.batch)
    top, compared = 0, 0
    for epoch, row in first[:4]:
        top += LINE
        sample = dataset[epoch, row]
        assert all(len(times) == 4 and times[0] >= 0 and 0.3 < times[3] - times[0] < 0.8 for times in sample.times)
        for number, (view, size) in enumerate(zip(cfg.augment.views, cfg.augment.sizes, strict=True)):
            clip, difference = sample.clips[number], sample.differences[number]
            assert isinstance(clip, torch.Tensor)
            drawn = augment.draw(view, [generator(cfg.seed, "augment", epoch, row, number)])
            how = {"size": size, "mean": cfg.augment.mean, "std": cfg.augment.std, "differences": [difference]}
            seen = augment.apply(view, [clip], drawn, **how)[0]  # type: ignore[arg-type]
            seen = ((seen * cfg.augment.std + cfg.augment.mean) * 255).permute(1, 2, 3, 0).numpy()
            for frames in (clip[: len(seen)].numpy(), seen):
                top += LINE
                count, height, width = frames.shape[:3]
                for place in range(count):
                    left = place * (width + 1)
                    shown = sheet[top : top + height, left : left + width].astype(float)
                    assert np.abs(shown - np.clip(frames[place], 0, 255)).max() <= 0.51
                    compared += 1
                top += height
    assert sheet.shape[0] == top
    assert compared == 4 * 4 * 2 * 4, "videos, views, strips, frames"


def test_words_name_what_was_drawn_in_its_order() -> None:
    view = augment.View(jitter_probability=1, gray_probability=1, solarize_probability=1, flip_probability=1)
    drawn = augment.draw(view, [generator(0, "words")])
    said = words(drawn, difference=True)
    assert said[:2] == ["temporal difference", "mirrored"]
    factors = dict(zip(("brightness", "contrast", "saturation", "hue"), drawn.factors[0].tolist(), strict=True))
    assert said[2:6] == [f"{name} {factors[name]:.2f}" for name in np.array(list(factors))[drawn.order[0].numpy()]]
    assert said[6:] == ["grey", f"blurred by {drawn.sigma[0]:.2f} px", "solarised"]
    nothing = augment.View(jitter_probability=0, gray_probability=0, blur_probability=0, flip_probability=0)
    assert words(augment.draw(nothing, [generator(0, "words")])) == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["preview=views.gif"], "must end in one of .png"),
        (["preview=there.png"], "there already"),
        (["preview=no/folder/views.png"], "cannot be written: No such file"),
        (["preview=there.png/views.png"], "cannot be written: Not a directory"),
        (["preview=views.png", "optim.batch=32", "sce.queue=64"], "larger than the data"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(more: list[str], message: str, videos: Path, tmp_path: Path) -> None:
    (tmp_path / "there.png").write_bytes(b"mine")
    result = run_tool("pretrain", *TINY_RECIPE, f"data.train={videos}/train.csv", *more, cwd=tmp_path)
    assert result.returncode == 70
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("there.png", b"mine")]
