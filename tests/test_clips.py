"""Clip times and frame indices: exact, and equal to the reference's."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from sce_video.data.clips import (
    constant_clips,
    frame_window,
    jittered_subsample,
    neighbours,
    playback_speed,
    random_clip,
    uniform_subsample,
)
from sce_video.randomness import generator


def test_subsampling_is_the_references(conformance: dict[str, Any]) -> None:
    for case in conformance["uniform_temporal_subsample"]:
        indices = uniform_subsample(case["num_frames"], case["num_samples"])
        assert indices.dtype == torch.int64
        assert indices.tolist() == case["indices"]


@pytest.mark.parametrize("num_samples", [4, 8, 16, 32])
def test_subsampling_is_truncated_linspace(num_samples: int) -> None:
    for num_frames in range(1, 400):
        expected = np.linspace(0, num_frames - 1, num_samples).astype(int).tolist()
        assert uniform_subsample(num_frames, num_samples).tolist() == expected


def test_one_sample_is_the_first_frame() -> None:
    assert uniform_subsample(77, 1).tolist() == [0]


def test_frame_windows_are_the_references(conformance: dict[str, Any]) -> None:
    for case in conformance["frame_window_ceil_rule"]:
        end = Fraction(case["start"]) + Fraction(case["clip_duration"])
        window = frame_window(case["fps"], case["start"], end, int(case["video_duration"] * case["fps"]))
        assert window == (case["first_frame"], case["last_frame_exclusive"])


def test_twenty_five_frames_per_second_give_65_frames_from_zero() -> None:
    """The float 2.56 is slightly above 2.56, so frame 64, at exactly 2.56 s, lies before the clip's end."""
    assert frame_window(25, 0, Fraction(2.56), 250) == (0, 65)


def test_window_of_a_short_video_is_cut_and_never_empty() -> None:
    assert frame_window(30, 0, 2.56, 10) == (0, 10)
    assert frame_window(30, 100, 102.56, 10) == (9, 10)


def test_constant_clips_are_the_references(conformance: dict[str, Any]) -> None:
    cases = [case for case in conformance["clip_samplers"] if case["sampler"] == "ConstantClipsPerVideo"]
    assert cases
    for case in cases:
        clips = constant_clips(case["video_duration"], case["clip_duration"], case["clips_per_video"])
        repeated = [clip for clip in clips for _ in range(case["augs_per_clip"])]
        for (start, end), expected in zip(repeated, case["clips"], strict=True):
            assert (float(start), float(end)) == pytest.approx(expected[:2], abs=1e-8)


def test_random_clips_fill_the_video_uniformly() -> None:
    starts = [float(random_clip(10, 2.56, generator("test", i))[0]) for i in range(2000)]
    assert min(starts) >= 0
    assert max(starts) <= 7.44
    # Kolmogorov-Smirnov distance to the uniform distribution; 0.0365 is its 1 % point for 2,000 draws.
    distance = np.abs(np.sort(starts) / 7.44 - (np.arange(2000) + 0.5) / 2000).max()
    assert distance < 0.0365


def test_clip_of_a_short_video_starts_at_zero() -> None:
    assert random_clip(1.0, 2.56, generator("test")) == (0, Fraction(2.56))


def test_neighbours_follow_the_references_expansion(conformance: dict[str, Any]) -> None:
    for case in conformance["time_difference_expansion"][:1]:  # the other cases show its duplicate-frame defect
        indices = torch.tensor(case["indices"])
        pairs = neighbours(indices, 0, int(indices[-1]) + 1)
        assert sorted({*pairs[0].tolist(), *pairs[1].tolist()}) == case["expanded"]


def test_dense_neighbours_repeat_only_the_last_pair() -> None:
    first, second = neighbours(torch.tensor([0, 1, 2, 3]), 0, 4)
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == [(0, 1), (1, 2), (2, 3), (2, 3)]


def test_a_single_frame_has_no_neighbour() -> None:
    with pytest.raises(ValueError, match="needs two frames"):
        neighbours(torch.tensor([0]), 0, 1)


def test_jittered_frames_stay_in_the_window_in_order_and_near_their_place() -> None:
    draws = [jittered_subsample(77, 8, 1.0, generator("jitter", i)) for i in range(3000)]
    places = torch.stack(draws)
    assert places.min() >= 0
    assert places.max() <= 76
    assert (places.diff(dim=1) >= 0).all()
    even = torch.arange(8) * 76 / 7
    assert ((places - even).abs() <= 76 / 14 + 1).all()
    # Inner frames are uniform over the distance to their neighbours: 10.9 frames, as whole numbers.
    inner = (places[:, 1:7] - even[1:7] + 0.5) / (76 / 7)
    assert inner.mean().abs().item() < 0.01
    assert inner.var().item() == pytest.approx(1 / 12, abs=0.004)


def test_jitter_of_nothing_is_the_even_subsample_and_short_windows_work() -> None:
    assert torch.equal(jittered_subsample(77, 8, 0.0, generator("jitter")), uniform_subsample(77, 8))
    assert jittered_subsample(1, 8, 1.0, generator("jitter")).tolist() == [0] * 8
    assert jittered_subsample(30, 1, 1.0, generator("jitter")).dtype == torch.int64


def test_playback_speed_is_log_uniform() -> None:
    values = torch.tensor([playback_speed(0.5, 2.0, generator("speed", i)) for i in range(20_000)], dtype=torch.float64)
    shares = (values.log2() + 1).div(2).sort().values
    steps = torch.arange(1, 20_001, dtype=torch.float64) / 20_000
    assert (shares - steps).abs().max() < 0.0138  # Kolmogorov-Smirnov, 1e-3
