"""Rows with `start,end`: the very frames of a forward decode at those times, in every program; what cannot be is named."""

from __future__ import annotations

import csv
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_RECIPE, run_tool
from long_files import all_frames, encode_scene, join
from test_data_prep_lists import program
from torch import Tensor

from sce_video.data import manifest
from sce_video.data.crops import Box
from sce_video.data.dataset import ClipDataset, EvaluationDataset
from sce_video.data.decode import DecodeError, open_row, open_video
from sce_video.data.manifest import Video
from sce_video.errors import InputError, log
from sce_video.evaluation.cache import identify
from sce_video.training import rows

SCENES, RATE = 5, 25  # of four seconds in a file, 25 frames a second
TIMES = [(0, 4), (3.96, 8.04), (8, 12), (12.02, 15.98), (17.5, 20)]


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of ten segments of two files of 20 seconds, joined by stream copy: MP4 and Matroska."""
    folder = tmp_path_factory.mktemp("long")
    lines = ["path,label,start,end"]
    for number, ending in enumerate(("mp4", "mkv")):
        scenes = [encode_scene(folder / f"{number}_{scene}.mp4", 10 * number + scene) for scene in range(SCENES)]
        join(scenes, folder / f"long_{number}.{ending}")
        lines += [f"long_{number}.{ending},{scene % 2},{start},{end}" for scene, (start, end) in enumerate(TIMES)]
    (folder / "ten.csv").write_text("\n".join(lines) + "\n")
    return folder / "ten.csv"


def frames_at(num_frames: int, start: float, end: float) -> list[int]:
    """The frames whose times i / 25 lie in [start, end), by exact fractions of the decimals as written."""
    low, high = Fraction(str(start)), Fraction(str(end))
    return [i for i in range(num_frames) if low <= Fraction(i, RATE) < high]


def whole(height: int, width: int, _: torch.Generator) -> Box:
    return Box(0, 0, height, width)


def positions(clip: Tensor, frames: Tensor) -> list[int]:
    """The number of each frame of a clip in a forward decode."""
    numbers = {frame.numpy().tobytes(): number for number, frame in enumerate(frames)}
    assert len(numbers) == len(frames)
    return [numbers[frame.numpy().tobytes()] for frame in clip]


def test_evaluation_takes_the_frames_that_a_forward_decode_shows_at_those_times(listed: Path) -> None:
    videos = manifest.read(listed)
    data = EvaluationDataset(videos, clips_per_video=1, num_frames=5, clip_seconds=1.0)
    for row, video in enumerate(videos):
        frames = all_frames(Path(video.path))
        assert video.start is not None
        assert video.end is not None
        inside = frames_at(len(frames), video.start, min(video.end, video.start + 1))
        wanted = [inside[i * (len(inside) - 1) // 4] for i in range(5)]
        assert torch.equal(torch.as_tensor(data[row].clips[0]), frames[wanted]), video.name


def test_training_clips_stay_within_their_segment_and_reach_all_of_it(listed: Path) -> None:
    videos = manifest.read(listed)
    data = ClipDataset(videos, num_frames=25, clip_seconds=1.0, draw_boxes=[whole, whole], seed=3)
    for row in (1, 3, 6):
        frames, video = all_frames(Path(videos[row].path)), videos[row]
        inside = frames_at(len(frames), video.start or 0, video.end or 0)
        met = set[int]()
        for epoch in range(40):
            for clip in data[epoch, row].clips:
                found = positions(torch.as_tensor(clip), frames)
                assert found == list(range(found[0], found[0] + 25)), "consecutive frames of the file"
                met |= set(found)
        assert met <= set(inside)
        assert len(met) > 0.9 * len(inside)


def test_a_segment_of_frame_numbers_is_the_segment_at_their_times(listed: Path) -> None:
    path = str(listed.parent / "long_1.mkv")
    with (
        open_row(Video(path, None, start=37, end=61, in_frames=True)) as one,
        open_row(Video(path, None, start=1.48, end=2.44)) as other,
    ):
        assert one.window(0, one.seconds) == other.window(0, other.seconds) == (37, 61)
        assert one.seconds == Fraction(24, 25)


def test_a_variable_rate_is_cut_by_the_times_of_its_frames(tmp_path: Path) -> None:
    """Frames at 0.2 s apart, then at 0.04 s: [1.0, 1.2) holds frame 5 and those of the fast part."""
    slow, fast = encode_scene(tmp_path / "a.mp4", 1, num_frames=5, rate=5), encode_scene(tmp_path / "b.mp4", 2, num_frames=50)
    joined = join([slow, fast], tmp_path / "both.mkv")
    with open_row(Video(str(joined), None, start=1.0, end=1.2)) as reader:
        assert reader.times is not None
        expected = [i for i, time in enumerate(reader.times.tolist()) if 1.0 - 1e-6 <= time < 1.2 - 1e-6]
        first, last = reader.window(0, reader.seconds)
        assert [*range(first, last)] == expected
        assert first == 5


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("path,start,end", "a.mp4,8,3", r"x.csv:2: the segment \[8, 3\) ends before it starts"),
        ("path,start,end", "a.mp4,3,3", r"x.csv:2: the segment \[3, 3\) ends before it starts"),
        ("path,start,end", "a.mp4,nan,3", r"x.csv:2: start 'nan' is not a number of seconds from 0"),
        ("path,start,end", "a.mp4,0,inf", r"x.csv:2: end 'inf' is not a number"),
        ("path,start,end", "a.mp4,-1,3", r"x.csv:2: start '-1' is not a number of seconds from 0"),
        ("path,start,end", "a.mp4,one,3", r"x.csv:2: start 'one' is not"),
        ("path,start_frame,end_frame", "a.mp4,1,2.5", r"x.csv:2: end_frame '2.5' is not a whole number of frames"),
        (
            "path,start,end,start_frame,end_frame",
            "a.mp4,1,2,25,50",
            r"x.csv:2: a segment in start,end and in start_frame,end_frame",
        ),
        ("path,strat,end", "a.mp4,1,2", r"x.csv:1: column 'strat' is not read: rename it to start"),
        ("path,Start,End", "a.mp4,1,2", r"x.csv:1: column 'Start' is not read: rename it to start"),
        ("path,start,stop", "a.mp4,1,2", r"x.csv:1: column 'stop' is not read: rename it"),
    ],
)
def test_what_is_no_segment_is_refused_by_file_and_line(header: str, row: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(f"{header}\n{row}\n")
    with pytest.raises(InputError, match=message):
        manifest.read(tmp_path / "x.csv")


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What the program logs: `messages`."""
    monkeypatch.setattr(log, "propagate", True)
    return caplog


def test_columns_that_look_like_times_are_named(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    (tmp_path / "x.csv").write_text("path,begin_s,end_s,seconds,state\na.mp4,1,2,3,x\n")
    assert not manifest.read(tmp_path / "x.csv")[0].segment
    (message,) = said.messages
    assert "x.csv:1: not read: begin_s, end_s; whole videos are taken" in message


def test_two_segments_of_a_video_are_two_rows(listed: Path, tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    videos = manifest.read(listed)
    assert said.messages == [], "no row is a repeated one"
    assert len({video.name for video in videos}) == len({identify(video) for video in videos}) == 10
    assert rows.digest(videos) != rows.digest([video._replace(start=None, end=None) for video in videos])
    (tmp_path / "again.csv").write_text("path,time_start,time_end\na.mp4,0,2\na.mp4,2,4\na.mp4,0,2\n")
    manifest.read(tmp_path / "again.csv")
    assert "1 rows list a video again, e.g." in said.messages[0]
    kept, held = manifest.hold_out(videos, 0.5)
    assert not {video.path for video in kept} & {video.path for video in held}, "a recording is on one side only"


def test_the_same_seconds_in_two_lists_are_told_from_the_same_recording() -> None:
    train = [Video("/a", "0", 2, start=0, end=5), Video("/a", "1", 3, start=5, end=9)]
    (both,) = manifest.compare(train, [Video("/a", "1", 2, start=8, end=12), Video("/b", "0", 3)])
    assert both.startswith("1 of 2 test videos are in the train list too, e.g. /a [8, 12) (line 3 of the train list")
    (beside,) = manifest.compare(train, [Video("/a", "1", 2, start=9, end=12), Video("/b", "0", 3)])
    assert beside.startswith("1 of 2 test segments are of videos with training segments")


def test_segments_outside_their_file_are_unreadable_rows_and_named(listed: Path) -> None:
    """Of [18, 30) two seconds are in the file: less than half. Of [18, 21) more than half: it ends with the file."""
    path = str(listed.parent / "long_0.mp4")
    for start, end in ((18, 30), (20, 21), (25, None)):
        with pytest.raises(DecodeError, match=r"segment \[.*\) \(x.csv:7\) lies outside the file by more than half"):
            open_row(Video(path, None, start=start, end=end, where="x.csv:7")).__enter__()
    with open_row(Video(path, None, start=18, end=21)) as reader:
        assert reader.window(0, reader.seconds) == (450, 500)
    with pytest.raises(DecodeError, match="has no frame"):
        open_row(Video(path, None, start=1.01, end=1.03)).__enter__()
    bad = [Video(path, None, start=30, end=40, where="x.csv:2"), Video(path, None, start=2, end=4)]
    sample = EvaluationDataset(bad, clips_per_video=1, num_frames=2, clip_seconds=1.0)[0]
    assert [failure.path for failure in sample.failures] == [f"{path} [30, 40)"]
    substituted = ClipDataset(bad, num_frames=2, clip_seconds=1.0, draw_boxes=[whole], seed=0)[0, 0]
    assert substituted.source == 1
    assert substituted.path == f"{path} [2, 4)"


@pytest.mark.slow
def test_ten_segments_pretrain_evaluate_and_retrieve(listed: Path, tmp_path: Path) -> None:
    lists = [f"data.train={listed}", "out=run", "optim.batch=4", "sce.queue=16", "data.clip_seconds=1"]
    result = run_tool("pretrain", *TINY_RECIPE, *lists, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "10 videos" in result.stderr
    scored = ["checkpoint=run", f"train={listed}", f"test={listed}", "clips_per_video=1", "num_crops=1", "workers=0"]
    result = run_tool("evaluate", *scored, "shots=[]", "linear=false", "k=1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    written = json.loads(next((tmp_path / "run").glob("evaluate_*.json")).read_text())
    assert written["rows"]["checkpoint"]["knn_top1"] == 1.0, "the nearest row of a segment is itself"
    result = run_tool("retrieval", *scored, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "0 of 20 videos decoded" in result.stderr, "the cache knows each segment"
    result = run_tool("features", "checkpoint=run", f"data={listed}", "out=x.npz", *scored[3:], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    with np.load(tmp_path / "x.npz") as found:
        assert len(np.unique(found["features"].round(4), axis=0)) == 10
        assert [*zip(found["start"][:5], found["end"][:5], strict=True)] == TIMES


@pytest.mark.slow
def test_predictions_name_the_segment(listed: Path, tmp_path: Path) -> None:
    options = [
        "backbone=tiny3d",
        "data.num_frames=4",
        "data.clip_seconds=1",
        "augment.size=32",
        "optim.batch=4",
        "optim.epochs=1",
    ]
    options += ["testing.clips_per_video=1", "testing.num_crops=1", "system.device=cpu", "system.workers=0"]
    result = run_tool(
        "finetune", "recipe=demo", f"train={listed}", f"test={listed}", "checkpoint=''", "out=f", *options, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    with open(tmp_path / "f/predictions.csv", newline="") as file:
        rows_written = list(csv.DictReader(file))
    assert [(float(row["start"]), float(row["end"])) for row in rows_written[:5]] == TIMES


@pytest.mark.slow
def test_the_doctor_keeps_segments_and_lists_those_outside(listed: Path, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(listed.read_text() + "long_0.mp4,1,50,60\n")
    result = program("doctor", tmp_path / "x.csv", "--root", listed.parent, "--out", tmp_path / "health", "--jobs", "1")
    assert result.returncode == 0, result.stderr
    clean = manifest.read(tmp_path / "health/clean.csv")
    assert sorted(video.name for video in clean) == sorted(video.name for video in manifest.read(listed))
    assert "x.csv:12" in (tmp_path / "health/quarantine.csv").read_text()


@pytest.mark.slow
def test_small_copies_show_the_same_frames_at_the_same_times(listed: Path, tmp_path: Path) -> None:
    result = program("shrink", listed, "--out", tmp_path / "small", "--short-side", "48", "--jobs", "1")
    assert result.returncode == 0, result.stderr
    for copy, video in zip(manifest.read(tmp_path / "small/manifest.csv"), manifest.read(listed), strict=True):
        with open_row(copy) as one, open_row(video) as other:
            assert one.window(0, one.seconds) == other.window(0, other.seconds)
            assert one.num_frames == other.num_frames


@pytest.mark.slow
def test_lists_and_whole_videos_of_kinetics_become_segments(listed: Path, tmp_path: Path) -> None:
    result = program("lists", "--lists", listed, "--videos", listed.parent, "--out", tmp_path / "lists")
    assert result.returncode == 0, result.stderr
    assert [v.name for v in manifest.read(tmp_path / "lists/ten.csv")] == [v.name for v in manifest.read(listed)]
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/abcdefghijk.mp4").symlink_to(listed.parent / "long_0.mp4")
    table = "label,youtube_id,time_start,time_end,split\nrun,abcdefghijk,2,12,train\nwalk,abcdefghijk,8,18,train\n"
    (tmp_path / "k.csv").write_text(table)
    arguments: list[Any] = ["--lists", tmp_path / "k.csv", "--videos", tmp_path / "videos", "--out", tmp_path / "k"]
    refused = program("kinetics", *arguments)
    assert refused.returncode == 70
    assert "--untrimmed" in refused.stderr
    result = program("kinetics", *arguments, "--untrimmed")
    assert result.returncode == 0, result.stderr
    assert [(v.label, v.start, v.end) for v in manifest.read(tmp_path / "k/train.csv")] == [("run", 2, 12), ("walk", 8, 18)]


def test_whole_videos_are_read_as_before(listed: Path) -> None:
    path = str(listed.parent / "long_0.mp4")
    with open_video(path) as plain, open_row(Video(path, None)) as row:
        assert plain.window(1, 2.5) == row.window(1, 2.5)
        assert (row.seconds, row.begin) == (plain.seconds, 0)
