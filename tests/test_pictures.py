"""Pictures of runs and tests: what they show, that hostile names and figures do not stop them, that no half stays."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageFont

from sce_video.data.manifest import Video
from sce_video.errors import log
from sce_video.evaluation import pictures

HOSTILE = ["a" * 300, "naïve", "日本語", "tab\tnew\nline", "", "\udcff"]


def is_light(picture: Image.Image) -> bool:
    """Whether most of a picture is near white."""
    levels = picture.convert("L").histogram()
    return sum(levels[200:]) > sum(levels) / 2


def colours_in(picture: Image.Image, box: tuple[int, int, int, int]) -> set[Any]:
    return {color for _, color in picture.crop(box).getcolors(1 << 20) or []}


def test_curves_draw_a_panel_for_each_title_that_has_points() -> None:
    line = [(step, 1 / (step + 1)) for step in range(50)]
    one = pictures.curves({"loss": {"training": line}, "empty": {"nothing": []}}, "step")
    three = pictures.curves({"a": {"x": line}, "b": {"x": line}, "c": {"x": line, "y": line}}, "step")
    assert one.width == three.width == 800
    assert three.height == 2 * one.height
    assert is_light(three)
    blue = tuple(int(pictures.COLOURS[0][at : at + 2], 16) for at in (1, 3, 5))
    assert blue in colours_in(one, (54, 36, 380, 190))
    assert blue not in colours_in(one, (400, 0, 800, one.height)), "the empty panel is not drawn"


@pytest.mark.parametrize("values", [[math.nan, math.inf], [1.0], [0.0, 0.0, 0.0], [1e-30, 1e30], [math.nan, 1.0, -1.0]])
def test_curves_survive_any_figures(values: list[float]) -> None:
    pictures.curves({"loss": {name: list(enumerate(values)) for name in HOSTILE}}, "step")


@pytest.mark.parametrize("classes", [1, 3, 60, 400])
def test_confusion_is_readable_with_any_number_of_classes(classes: int) -> None:
    counts = (torch.eye(classes, dtype=torch.long) * 5).tolist()
    names = [HOSTILE[index % len(HOSTILE)] for index in range(classes)]
    picture = pictures.confusion(counts, names, "title")
    assert picture.width == 800
    assert picture.height < 4000
    assert is_light(picture)


def test_right_is_green_and_wrong_is_red_in_a_confusion() -> None:
    picture = pictures.confusion([[4, 0], [4, 0]], ["a", "b"], "title")
    size = 36
    first, second = picture.getpixel((170 + 5, 44 + 5)), picture.getpixel((170 + 5, 44 + size + 5))
    assert isinstance(first, tuple)
    assert isinstance(second, tuple)
    assert first[1] > first[0] + 50
    assert second[0] > second[1] + 50
    assert picture.getpixel((170 + size + 5, 44 + 5)) == (0xF6, 0xF8, 0xFA), "no video there"


def test_retrieved_marks_hits_and_draws_grey_for_what_cannot_be_read(videos: Path) -> None:
    path = str(next(videos.rglob("*.mp4")))
    picture = pictures.retrieved([(Video(path, "a"), [Video(path, "a"), Video("gone.mp4", "b")])], "title")
    found = colours_in(picture, (0, 0, picture.width, picture.height))
    for color in (pictures.GREEN, pictures.RED, pictures.GREY, "#d0d7de"):
        assert tuple(int(color[at : at + 2], 16) for at in (1, 3, 5)) in found


def test_views_show_every_view_of_every_video() -> None:
    views = [torch.full((2, 3, 4, 8, 8), level) for level in (0.2, 0.8)]
    found = colours_in(picture := pictures.views(views, HOSTILE[:2]), (0, 0, 800, 10_000))
    assert picture.width == 800
    assert {(51, 51, 51), (204, 204, 204)} <= found


def test_a_picture_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warned: list[str] = []
    monkeypatch.setattr(log, "warning", warned.append)

    class Half(Image.Image):
        def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
            Path(fp).write_bytes(b"half")
            raise OSError(28, "No space left on device")

    whole = Image.new("RGB", (2, 2), "white")
    pictures.save(whole, tmp_path / "x.png")
    before = (tmp_path / "x.png").read_bytes()
    pictures.save(Half(), tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
    assert warned == [f"{tmp_path / 'x.png'} cannot be written: No space left on device"]


def test_letters_that_a_font_has_not_lose_their_marks_or_become_escapes() -> None:
    built_in = ImageFont.load_default(12)
    assert pictures.letters("plain [x]", built_in) == "plain [x]"
    assert pictures.letters("\U0001fa80", built_in) == "\\U0001fa80"
    assert pictures.letters("\u00fcben", built_in) in ("\u00fcben", "uben")
    small = ImageFont.load_default_imagefont() if hasattr(ImageFont, "load_default_imagefont") else None
    assert small is None or pictures.letters("\u65e5", small) == "\\u65e5"
