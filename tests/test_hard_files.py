"""Files of the kinds that users reported are read as a decode of the freshly opened file shows them, or refused truly.

The oracle opens each file anew, never seeks, and turns pictures pixel by pixel as the display matrix says.
"""

from __future__ import annotations

import os
import platform
import random
import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.sidedata.sidedata import Type
from conftest import SHARED
from media.copy_form import Form
from media.examine import examine
from media.probe import probe
from media.transcode import shrink
from odd_streams import ODD
from reported_files import REFUSED, REPORTED, SLOW_THEN_FAST
from reported_files import build as build_reported

from sce_video.data.crops import Box
from sce_video.data.decode import DecodeError, open_video
from sce_video.data.readers.pyav import PyAVReader

NAMES = [name for kind in [*REPORTED.values(), *ODD.values()] for name in kind]
HARD = SHARED / "hard_inputs"
# The number of the video stream to read, where it is not the first.
STREAM = {"cover_hevc.mov": 1, "cover_png.mp4": 1, "second_by_default.mkv": 1, "cover_before_video.mp4": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reported")


def build(name: str, folder: Path) -> Path:
    builder = next((kind[name] for kind in ODD.values() if name in kind), None)
    return builder(folder / name) if builder else build_reported(name, folder)


def path_of(name: str, folder: Path) -> Path:
    return folder / name if (folder / name).exists() else build(name, folder)


def forward_decode(path: Path) -> np.ndarray:
    """Return all frames of a decode from a freshly opened file, as displayed: uint8 [N, H, W, 3]."""
    with av.open(str(path)) as container:
        return np.stack([shown(frame) for frame in container.decode(container.streams.video[STREAM.get(path.name, 0)])])


def shown(frame: Any) -> np.ndarray:
    """Move every pixel as the display matrix says; a matrix that does not map pixels one to one moves none."""
    stored = frame.to_ndarray(format="rgb24")
    found = frame.side_data.get(Type.DISPLAYMATRIX)
    a, b, _, c, d = (number / 65536 for number in struct.unpack("=9i", bytes(found))[:5]) if found else (1, 0, 0, 0, 1)
    if a * d == b * c:
        return stored
    height, width = stored.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    x, y = (a * columns + c * rows).astype(int), (b * columns + d * rows).astype(int)
    x, y = x - x.min(), y - y.min()
    display = np.zeros((y.max() + 1, x.max() + 1, 3), dtype=np.uint8)
    display[y, x] = stored
    return display


def index_sets(num_frames: int, seed: str) -> list[list[int]]:
    draw = random.Random(seed)
    sets = [[draw.randrange(num_frames) for _ in range(count)] for count in (1, 1, 1, 2, 8, 16)]
    return [[0], [1 % num_frames], [num_frames - 1], list(range(num_frames)), *sets]


@pytest.mark.parametrize("name", NAMES)
def test_random_access_is_the_forward_decode_to_the_bit(name: str, folder: Path) -> None:
    """Each set of frames by a new reader, so that no answer profits from the one before; and by every lower path."""
    path = path_of(name, folder)
    expected = forward_decode(path)
    for indices in index_sets(len(expected), name):
        with open_video(str(path)) as video:
            assert (video.num_frames, video.height, video.width) == expected.shape[:3]
            assert np.array_equal(video.read(indices).numpy(), expected[indices]), (indices, video.found_by)  # type: ignore[attr-defined]
    with open_video(str(path)) as video:
        assert isinstance(video, PyAVReader)
        ways = [video.found_by]
        while video.found_by != "counting":
            video._step_down()
            ways.append(video.found_by)
            for indices in index_sets(len(expected), name)[:5]:
                assert np.array_equal(video.read(indices).numpy(), expected[indices]), (indices, ways)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="FFmpeg's scaler has this arithmetic on x86")
@pytest.mark.parametrize("name", NAMES)
def test_planes_are_the_same_pictures_to_the_bit(name: str, folder: Path) -> None:
    path = path_of(name, folder)
    with open_video(str(path)) as video:
        clips = [torch.arange(0, video.num_frames, 7), torch.arange(video.num_frames - 1, -1, -5)]
        boxes = [Box(0, 0, video.height, video.width), Box(5, 3, video.height - 11, video.width - 20)]
        planes = video.read_planes(clips, boxes)
        if video.height % 2 or video.width % 2:
            assert planes is None
        for clip, frames in zip(planes or (), video.read_clips(clips, boxes), strict=False):
            assert torch.equal(clip.rgb(), frames)


@pytest.mark.parametrize("height", [46, 48, 50, 62, 64])
@pytest.mark.parametrize("width", [50, 62, 64, 66, 70])
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="FFmpeg's scaler has this arithmetic on x86")
def test_planes_of_every_even_size_are_the_same_pictures(height: int, width: int, tmp_path: Path) -> None:
    from hard_files import encode
    from reported_files import odd_frames

    path = encode(tmp_path / "a.mp4", frames=odd_frames(height, width)[:3], pix_fmt="yuv420p")
    with open_video(str(path)) as video:
        clip, box = [torch.arange(3)], [Box(0, 0, height, width)]
        planes = video.read_planes(clip, box)
        assert planes is not None
        assert torch.equal(planes[0].rgb(), video.read_clips(clip, box)[0])


@pytest.mark.parametrize("name", list(REPORTED["rate"]))
def test_frame_times_are_those_of_the_packets_and_not_of_the_header(name: str, folder: Path) -> None:
    """2.56 seconds of a variable rate are 2.56 seconds, for the clip sampler, the doctor and the probe."""
    with open_video(str(path_of(name, folder))) as video:
        if name.startswith("doubled"):
            assert video.fps == (25 if "mpeg4." in name and "ms" not in name else 30)
            assert video.times is None
        elif name.startswith("slow"):
            assert video.times == pytest.approx(SLOW_THEN_FAST, abs=0.02)
            assert float(video.seconds) == pytest.approx(70 * SLOW_THEN_FAST[-1] / 69, abs=0.05)
            assert video.window(0.5, 3.06) == (1, 4)
            assert video.window(20.01, 20.49) == (21, 50)
            assert video.window(12.2, 12.4) == (12, 13)
        else:
            assert float(video.seconds) == pytest.approx(86400 * 11 / 10, abs=10)
            assert video.fps > 0
        rate = float(video.fps)
    assert float(probe(str(folder / name)).frames_per_second or 0) == pytest.approx(rate, rel=0.001)


@pytest.mark.parametrize(("name", "axes"), [("matrix_-1001.mov", "mirror"), ("matrix_0110.mov", "transpose")])
def test_a_mirror_is_a_mirror_as_the_ffmpeg_program_shows_it(name: str, axes: str, folder: Path) -> None:
    with av.open(str(path_of(name, folder))) as container:
        stored = next(container.decode(video=0)).to_ndarray(format="rgb24")
    with open_video(str(folder / name)) as video:
        assert np.array_equal(video.read([0])[0].numpy(), stored[:, ::-1] if axes == "mirror" else stored.transpose(1, 0, 2))


@pytest.mark.parametrize("name", NAMES)
def test_the_doctor_calls_them_sound(name: str, folder: Path) -> None:
    for quick in (False, True):
        row = examine(str(path_of(name, folder)), lambda: None, quick=quick, min_frames=8)
        assert row["status"] == "ok", (quick, row["reason"])
        with open_video(str(folder / name)) as video:
            assert (row["height"], row["width"]) == (video.height, video.width)
            assert quick or row["frames"] == video.num_frames
        if STREAM.get(name):
            assert row["reason"] == f"stream {STREAM[name]} is read of 2 with pictures"


QUICK = [
    "negative_mpeg4.mkv",
    "drifting.mov",
    "no_key_ts.mkv",
    "broken_link.mp4",
    "edit_in_a_group_mpeg4.mov",
    "slow_then_fast.webm",
]


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in NAMES])
def test_copies_show_the_same_frames_at_the_same_times(name: str, folder: Path, tmp_path: Path) -> None:
    source, copy = str(path_of(name, folder)), tmp_path / "copy.mp4"
    row = shrink(source, copy, tmp_path / "work.mp4", Form(256), lambda: None)
    assert row["status"] == "ok", row["reason"]
    with open_video(source) as one, open_video(str(copy)) as other:
        assert one.num_frames == other.num_frames
        times = [np.arange(v.num_frames) / float(v.fps) if v.times is None else v.times for v in (one, other)]
        assert np.abs(times[0] - times[1]).max() < 0.5 / float(one.fps)


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_is_not_read_is_refused_with_the_reason(name: str, folder: Path) -> None:
    _, reason = REFUSED[name]
    with pytest.raises(DecodeError, match=f"{name}: .*{reason}"):
        open_video(str(path_of(name, folder)))
    row = examine(str(folder / name), lambda: None, quick=False, min_frames=8)
    assert row["status"] in ("unreadable", "no video stream", "not a video")
    assert reason in row["reason"]


FRAMES = {"h264_pts_dts_diverge.mp4": 59, "mp4_mkv_mp4_remux.mp4": 48, "raw_pal8.avi": 20, "one_wild_timestamp.mp4": 11}
SECONDS = {"vfr.flv": 21, "vfr_1_then_60.mkv": 21, "h264_mp4_to_avi.avi": 2}
NOT_READ = {"audio_with_cover.mp4": "no video stream", "encrypted_cenc.mp4": "encrypted", "unknown_codec.avi": "no decoder"}


@pytest.mark.skipif(not HARD.is_dir(), reason="the shared videos are not here")
@pytest.mark.parametrize("path", sorted(HARD.glob("*.*[4ivst]")), ids=lambda path: path.name)
def test_files_from_reports_are_read_as_their_list_says(path: Path, tmp_path: Path) -> None:
    if path.name in NOT_READ:
        with pytest.raises(DecodeError, match=NOT_READ[path.name]):
            open_video(str(path))
        return
    expected = forward_decode(path)
    assert len(expected) == FRAMES.get(path.name, 60)
    for indices in index_sets(len(expected), path.name):
        with open_video(str(path)) as video:
            assert (video.num_frames, video.height, video.width) == expected.shape[:3]
            assert np.array_equal(video.read(indices).numpy(), expected[indices]), indices
            if path.name in SECONDS:
                assert float(video.seconds) == pytest.approx(SECONDS[path.name], abs=0.1)
    assert examine(str(path), lambda: None, quick=False, min_frames=8)["status"] == "ok"
    row = shrink(str(path), tmp_path / "copy.mp4", tmp_path / "work.mp4", Form(256), lambda: None)
    assert (row["status"], row["frames"]) == ("ok", len(expected)), row["reason"]


@pytest.mark.parametrize("name", ["hidden_av1.mkv", "hidden_av1.mp4"])
def test_making_a_file_leaves_the_priority_of_the_tests_alone(name: str, tmp_path: Path) -> None:
    """A test process with real-time priority, and all that it starts, takes the machine from everything else."""
    next(kind[name] for kind in ODD.values() if name in kind)(tmp_path / name)
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
