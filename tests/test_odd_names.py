"""Control characters in file names never reach a terminal or a log raw: they can clear the screen or forge a line."""

from __future__ import annotations

import csv
import logging
import os
from pathlib import Path

import pytest
import torch
from conftest import TINY_RECIPE, compose_pretrain, run_tool

from sce_video.data import manifest
from sce_video.errors import log, printable
from sce_video.programs.pretrain import pretrain
from sce_video.runs import checkpoint
from sce_video.weights import inspect

NAME = "bad\x1b[2J\x07\nerror: forged\r.mp4"
ESCAPED = r"bad\x1b[2J\x07\nerror: forged\r.mp4"


def control_characters(text: str) -> set[str]:
    return {char for char in text if not char.isprintable()} - {"\n"}


@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING, logging.ERROR])
def test_message_is_one_line(level: int, capsys: pytest.CaptureFixture[str]) -> None:
    log.log(level, "cannot read %s", NAME)
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert control_characters(told) == set()
    assert ESCAPED in told


def test_names_stay_apart_and_readable() -> None:
    assert printable("Übung 3 日本.mp4") == "Übung 3 日本.mp4"
    assert printable(os.fsdecode(b"\xff.mp4")) == r"\xff.mp4"
    assert printable("\x9b\x7f\u2028") == r"\x9b\x7f\u2028"


def test_reports_of_a_run_name_the_file_in_one_line(videos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for video in manifest.read(videos / "train.csv")[:9]:
        (tmp_path / "videos").mkdir(exist_ok=True)
        os.link(video.path, tmp_path / "videos" / Path(video.path).name)
    (tmp_path / "videos" / NAME).write_bytes(b"no video")
    out = tmp_path / "run"
    options = [*TINY_RECIPE, f"data.train={tmp_path}/videos", "data.max_bad_fraction=0.5", f"out={out}"]
    pretrain(compose_pretrain(*options))
    told = capfd.readouterr()
    for text in (told.out, told.err, *((out / name).read_text() for name in ("log.txt", "log.jsonl", "status.json"))):
        assert control_characters(text) == set()
        assert not any(line.startswith("error: forged") for line in text.splitlines())
    assert ESCAPED in (out / "log.txt").read_text()
    with open(out / "skipped_videos.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["path"] == f"{tmp_path}/videos/{ESCAPED}"
    assert row["count"] == "4"


@pytest.mark.slow
def test_programs_that_score_name_the_file_in_one_line(videos: Path, tmp_path: Path) -> None:
    for video in manifest.read(videos / "train.csv")[:4]:
        (tmp_path / "videos").mkdir(exist_ok=True)
        os.link(video.path, tmp_path / "videos" / Path(video.path).name)
    (tmp_path / "videos" / NAME).write_bytes(b"no video")
    state = {"method": {"online.backbone.blocks.9\x1b[2J.w": torch.zeros(1)}}
    path = checkpoint.save(tmp_path / "odd", 1, state, {}, keep=1)
    assert control_characters(inspect.describe(path)) == set()
    run = tmp_path / "run"
    pretrain(compose_pretrain(*TINY_RECIPE, f"data.train={videos}/train.csv", f"out={run}", "optim.epochs=1"))
    options = [f"checkpoint={run}", "workers=0", "clips_per_video=1", "num_crops=1", "cache=false"]
    ended = run_tool("features", *options, f"data={tmp_path}/videos", f"out={tmp_path}/x.npz", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert control_characters(ended.stdout + ended.stderr) <= {"\r"}, "tqdm's"
    assert ESCAPED in ended.stderr
