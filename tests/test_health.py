"""What the doctor found is known to training and evaluation, as long as the files are what they were."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY_RECIPE, numbered_frames, records, run_tool
from jobs.manifest_items import items_of
from media import health_report as results
from media.examine import examine
from test_decode import encode
from test_doctor import doctor
from test_frame_folder import about, folder_of, zip_of

from sce_video.data import health, loader, manifest
from sce_video.data.dataset import EvaluationDataset
from sce_video.data.manifest import Video
from sce_video.errors import InputError
from sce_video.evaluation.cache import identify


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`all.csv` with good, short, truncated and unreadable videos and pictures, and the doctor's results in health/."""
    folder = tmp_path_factory.mktemp("health")
    frames = numbered_frames(20)
    encode(folder / "good.mp4", frames)
    encode(folder / "short.mp4", frames[:2])
    whole = encode(folder / "cut.avi", frames, "mpeg4", g="12")
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    (folder / "page.mp4").write_text("<html>" * 99)
    pictures = folder_of(folder / "good.frames", frames, json=about(frames))
    zip_of(pictures)
    broken = shutil.copytree(pictures, folder / "cut.frames")
    (broken / "000011.jpg").unlink()
    folder_of(folder / "hole.frames", frames[:9], json=b'{"fps": 25}')
    (folder / "hole.frames/000004.jpg").unlink()
    names = sorted(path.name for path in folder.iterdir())
    (folder / "all.csv").write_text("path,label\n" + "".join(f"{name},{name[0]}\n" for name in names))
    items = items_of(manifest.read(folder / "all.csv"))
    rows = [examine(item["id"], lambda: None, quick=False, min_frames=8) for item in items]
    (folder / "health").mkdir()
    results.write(folder / "health", items, rows, drop_short=False, quick=False)
    return folder


EXPECTED = {
    "good.mp4": "ok",
    "good.frames": "ok",
    "good.frames.zip": "ok",
    "short.mp4": "short",
    "cut.avi": "truncated",
    "cut.frames": "truncated",
    "hole.frames": "unreadable",
    "page.mp4": "not a video",
}


def read(folder: Path, known_health: str, *, training: bool = False) -> dict[str, str]:
    videos = loader.read_videos(str(folder / "all.csv"), split="train", known_health=known_health, training=training)
    return {os.path.basename(video.path): health.status_of(video) for video in videos}


def test_the_doctor_examines_pictures_like_videos(folder: Path) -> None:
    with open(folder / "health/health.csv", newline="") as file:
        rows = {os.path.basename(row["path"]): row for row in csv.DictReader(file)}
    assert {name: row["status"] for name, row in rows.items()} == EXPECTED
    assert "no picture number 4" in rows["hole.frames"]["reason"]
    assert rows["cut.frames"]["reason"].startswith("breaks off at frame 11 of 20: 000011.jpg")
    for name in ("good.frames", "good.frames.zip"):
        assert (rows[name]["frames"], rows[name]["width"], rows[name]["height"]) == ("20", "64", "48")
        assert float(rows[name]["fps"]) == pytest.approx(30000 / 1001)


def test_training_leaves_broken_videos_out_and_says_how_many(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound = {name: status for name, status in EXPECTED.items() if status in ("ok", "short")}
    assert read(folder, str(folder / "health"), training=True) == sound
    told = capsys.readouterr().err
    assert f"{folder}/health/health.csv: 4 of 8 videos left out (1 unreadable, 1 not a video, 2 truncated)" in told
    assert "not in it" not in told
    assert read(folder, "none", training=True) == dict.fromkeys(EXPECTED, "")
    assert read(folder, "auto", training=True) == dict.fromkeys(EXPECTED, "")  # there is none beside the list
    clean = loader.read_videos(str(folder / "health/clean.csv"), split="train", known_health="auto", training=True)
    assert [health.status_of(video) for video in clean].count("ok") == 3  # beside the doctor's own list there is


def test_evaluation_keeps_all_and_opens_nothing_that_is_unreadable(folder: Path) -> None:
    assert read(folder, str(folder / "health")) == EXPECTED
    path = str(folder / "good.mp4")
    videos = [Video(path, None), Video(path, None, health="hang: no progress for 30 s"), Video(path, None, health="truncated")]
    dataset = EvaluationDataset(videos, clips_per_video=1, num_frames=2, clip_seconds=0.5)
    samples = [dataset[row] for row in range(3)]
    assert [len(sample.clips) for sample in samples] == [1, 0, 1]
    assert samples[1].failures[0].reason == f"{path}: hang: no progress for 30 s (as data_prep/doctor.py found)"


def test_a_file_that_changed_counts_as_not_looked_at(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copy2)
    table = tmp_path / "copy/health/health.csv"
    table.write_text(table.read_text().replace(str(folder), str(tmp_path / "copy")))
    encode(tmp_path / "copy/page.mp4", numbered_frames(20))  # downloaded again
    picture = tmp_path / "copy/good.frames/000003.jpg"
    picture.write_bytes(picture.read_bytes())  # written again in place: the folder's own time does not tell
    found = read(tmp_path / "copy", str(table), training=True)
    assert found["page.mp4"] == found["good.frames"] == ""
    assert found["good.mp4"] == "ok"
    assert "2 are not in it or have changed since" in capsys.readouterr().err


def test_features_of_a_folder_are_known_by_all_its_pictures(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder / "good.frames", tmp_path / "a.frames"))
    video = Video(str(copy), None)
    before = identify(video)
    assert before == identify(video)
    latest = max(path.stat().st_mtime_ns for path in (copy, *copy.iterdir()))
    for step, name in enumerate(("000002.jpg", ".", "000001.jpg"), start=1):
        os.utime(copy / name, ns=(0, latest + step))
        assert identify(video) != before
        before = identify(video)
    assert identify(Video(str(tmp_path / "none"), None)) is None


def test_what_no_doctor_saw_is_tried_first(folder: Path, tmp_path: Path) -> None:
    good = [Video(str(folder / "good.mp4"), None, health="ok") for _ in range(40)]
    unseen = [Video(str(tmp_path / f"{i}.mp4"), None) for i in range(32)]
    loader.check_readable(good, seed=0, decoder="auto")
    with pytest.raises(InputError, match=r"none of 32 videos tried \(of 72\)"):
        loader.check_readable([*good, *unseen], seed=0, decoder="auto")


def test_tables_that_are_none_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no table of data_prep/doctor.py: give its health.csv"):
        read(folder, str(tmp_path / "gone"))
    (tmp_path / "health.csv").write_text("path,status\na,ok\n")
    with pytest.raises(InputError, match="is no table of data_prep/doctor.py .*: run it again"):
        read(folder, str(tmp_path))
    (tmp_path / "bad.csv").write_text(f"path\n{folder}/page.mp4\n")
    with pytest.raises(InputError, match="none of the 1 videos is sound, e.g. not a video"):
        loader.read_videos(str(tmp_path / "bad.csv"), split="train", known_health=str(folder / "health"), training=True)


RANKS = """
import sys
from sce_video import distributed
from sce_video.data import health, loader, manifest
with distributed.session("cpu"):
    if distributed.rank() == 1:
        health.stamp = lambda path: None  # as on a machine whose disk shows other times of change
    table = f"{sys.argv[1]}/health"
    videos = loader.read_videos(f"{sys.argv[1]}/all.csv", split="train", known_health=table, training=True)
    print("LIST", sorted(video.path for video in videos), flush=True)
"""


@pytest.mark.slow
def test_all_ranks_train_on_the_same_list(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "ranks.py").write_text(RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", str(tmp_path / "ranks.py"), str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    lists = [line for line in result.stdout.splitlines() if line.startswith("LIST")]
    assert len(lists) == 2, result.stderr
    assert lists[0] == lists[1]
    assert lists[0].count("good") == 3
    assert result.stderr.count("left out") == 1


@pytest.mark.slow
def test_a_run_leaves_out_what_the_doctor_found(videos: Path, tmp_path: Path) -> None:
    shutil.copytree(videos, tmp_path / "videos")
    for path in sorted((tmp_path / "videos").rglob("*.mp4"))[:3]:
        path.write_bytes(b"not a video" * 99)
    assert doctor(tmp_path / "videos/train.csv", "--out", tmp_path / "health").returncode == 0
    options = [*TINY_RECIPE, "optim.epochs=1", f"data.train={tmp_path}/videos/train.csv"]
    run = run_tool("pretrain", *options, f"data.health={tmp_path}/health", f"out={tmp_path}/run", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "3 of 24 videos left out (3 not a video)" in run.stderr
    assert not (tmp_path / "run/skipped_videos.csv").exists()
    assert any("train/loss" in record for record in records(tmp_path / "run"))
