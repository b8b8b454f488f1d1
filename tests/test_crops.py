"""Boxes: the reference's offsets and shapes, and the distribution of random ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from sce_video.data.crops import Box, center_crop, random_resized, random_scaled, short_side, three_crops
from sce_video.randomness import generator


def test_three_crops_are_the_references(conformance: dict[str, Any]) -> None:
    for case in conformance["uniform_crop_offsets"]:
        boxes = three_crops(case["h"], case["w"], case["size"])
        assert [[box.left, box.top] for box in boxes] == case["xy_offsets"]


def test_portrait_crops_go_top_to_bottom() -> None:
    assert [box.top for box in three_crops(341, 256, 256)] == [0, 43, 85]
    assert center_crop(341, 256, 256) == Box(43, 0, 256, 256)


def test_crop_larger_than_the_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="scale the short side to 256 first"):
        three_crops(255, 300, 256)


def test_short_side_is_the_references(conformance: dict[str, Any]) -> None:
    for case in conformance["short_side_scale_shape"]:
        assert list(short_side(case["h"], case["w"], case["size"])) == case["out"]
        assert list(short_side(case["w"], case["h"], case["size"])) == case["out"][::-1]


def test_random_boxes_fit_and_have_the_stated_area_and_ratio() -> None:
    height, width = 256, 340
    boxes = [
        random_resized(height, width, area=(0.2, 0.5), ratio=(0.75, 4 / 3), generator=generator("box", i)) for i in range(4000)
    ]
    for box in boxes:
        assert 0 <= box.top <= height - box.height
        assert 0 <= box.left <= width - box.width
    ratios = np.array([math.log(box.width / box.height) for box in boxes])
    areas = np.array([box.width * box.height / (height * width) for box in boxes])
    assert areas.min() > 0.195
    assert areas.max() < 0.505
    assert abs(ratios).max() < math.log(4 / 3) + 0.02
    assert abs(areas.mean() - 0.35) < 0.005, "uniform: at this size every draw fits"


def test_frame_that_admits_no_box_gets_the_largest_centred_one() -> None:
    box = random_resized(10, 1000, area=(0.9, 1.0), ratio=(0.75, 4 / 3), generator=generator("box"))
    assert box == Box(0, 493, 10, 13)


@pytest.mark.parametrize(("height", "width"), [(256, 340), (240, 320), (720, 405), (50, 50)])
def test_random_scaled_boxes_are_crops_of_the_scaled_frame(height: int, width: int) -> None:
    """Scaling a box of side s to 224 pixels scales the short side h to 224 h / s, which must be in 256..320."""
    draws = [
        random_scaled(height, width, size=224, short_sides=(256, 320), generator=generator("scaled", i)) for i in range(4000)
    ]
    short = min(height, width)
    for box in draws:
        assert box.height == box.width
        assert 0 <= box.top <= height - box.height
        assert 0 <= box.left <= width - box.width
    sides = np.array([box.width for box in draws])
    assert sides.min() == round(224 * short / 320)
    assert sides.max() == round(224 * short / 256)
    lengths = np.array([round(224 * short / n) for n in range(256, 321)])  # every whole length is as likely
    assert abs(sides.mean() - lengths.mean()) < 0.01 * short
    lefts = np.array([box.left / max(1, width - box.width) for box in draws])
    tops = np.array([box.top / max(1, height - box.height) for box in draws])
    assert abs(lefts.mean() - 0.5) < 0.02
    assert abs(tops.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(lefts, tops)[0, 1]) < 0.05


def test_random_scaled_box_may_be_the_whole_frame() -> None:
    assert random_scaled(40, 40, size=32, short_sides=(32, 32), generator=generator("box")) == Box(0, 0, 40, 40)
