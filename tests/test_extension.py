"""A finished run is trained on by `extend=`: in a folder of its own, with all of its state, on a stated schedule."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY_RECIPE, compose_pretrain, losses, records, run_tool
from launch.command import read_command

from sce_video.errors import InputError, Preempted
from sce_video.programs.pretrain import pretrain
from sce_video.runs import checkpoint
from sce_video.training.extension import extension

STEPS = 3  # of an epoch


def options(videos: Path, out: Path, *more: str) -> list[str]:
    return [*TINY_RECIPE, f"data.train={videos / 'train.csv'}", "optim.epochs=2", f"out={out}", *more]


@pytest.fixture(scope="module")
def finished(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs, of which nothing may be lost."""
    return pretrain(compose_pretrain(*options(videos, tmp_path_factory.mktemp("finished") / "run", "monitor.videos=8")))


@pytest.fixture(scope="module")
def extended(finished: Path, videos: Path) -> Path:
    before = checkpoint.file_digest(checkpoint.find(finished) / "state.pt")
    folder = pretrain(compose_pretrain(*options(videos, finished, "extend=3", "monitor.videos=8")))
    assert folder == finished.with_name("run_extended_3")
    assert checkpoint.file_digest(checkpoint.find(finished) / "state.pt") == before
    return folder


def test_it_begins_with_all_of_the_state_and_the_stated_schedule(finished: Path, extended: Path, videos: Path) -> None:
    steps = [record for record in records(extended) if "train/lr" in record]
    base = 0.1 * 1.0 * 8 / 256
    rates = [base / 2 * (1 + math.cos(math.pi * step / (3 * STEPS))) for step in range(3 * STEPS)]
    assert [record["train/lr"] for record in steps] == pytest.approx(rates)
    cfg = compose_pretrain(*options(videos, finished, "extend=3", "monitor.videos=8"))
    changed = extension(cfg)
    assert (changed.seed, changed.optim.epochs, changed.optim.warmup_epochs, changed.extend) == (1, 3, 0, 0)
    with pytest.MonkeyPatch.context() as patch:  # saved after a step without an update, so that only reading is between
        patch.setenv("SCE_VIDEO_ALLOW_FAULTS", "1")
        patch.setenv("SCE_VIDEO_FAULT", "nan@step=0;term@step=0")
        changed.out = str(finished.with_name("held"))
        with pytest.raises(Preempted):
            pretrain(changed)
    old, new = (checkpoint.load(checkpoint.find(run))[0] for run in (finished, finished.with_name("held")))
    same = [name for name, value in old["method"].items() if torch.equal(value, new["method"][name])]
    assert {name for name in old["method"]} - set(same) <= {
        name for name in old["method"] if "running" in name or "num_b" in name
    }
    assert any("queue" in name for name in same)
    assert old["optimizer"]["state"].keys() == new["optimizer"]["state"].keys()


def test_scores_stay_beside_those_of_the_untrained_network(finished: Path, extended: Path) -> None:
    first = checkpoint.load(checkpoint.find(finished))[1]["untrained"]
    assert first
    assert checkpoint.load(checkpoint.find(extended))[1]["untrained"] == first


@pytest.mark.slow
def test_after_a_kill_it_goes_on_to_the_bit(finished: Path, extended: Path, videos: Path, tmp_path: Path) -> None:
    for name in ("run", "other"):
        shutil.copytree(finished, tmp_path / name)
    shutil.rmtree(tmp_path / "other")
    words = [*options(videos, tmp_path / "run"), "extend=3", "system.save_every=2"]
    text = (tmp_path / "run/config.yaml").read_text().replace(str(finished), str(tmp_path / "run"))
    (tmp_path / "run/config.yaml").write_text(text)
    for step in (1, 5):  # before its first checkpoint, and after it
        fault = {"SCE_VIDEO_ALLOW_FAULTS": "1", "SCE_VIDEO_FAULT": f"kill@step={step}"}
        assert run_tool("pretrain", *words, cwd=tmp_path, **fault).returncode == -9
    result = run_tool("pretrain", *words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "run_extended_3"
    assert losses(folder) == losses(extended)
    states = [checkpoint.load(checkpoint.find(run))[0] for run in (folder, extended)]
    assert checkpoint.state_digest(states[0]) == checkpoint.state_digest(states[1])


@pytest.mark.slow
def test_one_option_and_the_folder_are_enough_also_for_an_extension(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    result = run_tool("pretrain", "out=run", "extend=1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "with all of the state of run," in result.stderr
    again = run_tool("pretrain", "out=run_extended_1", "extend=1", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    first, second = (records(tmp_path / name)[-2]["train/lr"] for name in ("run_extended_1", "run_extended_1_extended_1"))
    assert first == second, "an extension keeps the rate of the one before it"
    none = run_tool("pretrain", "extend=1", cwd=tmp_path)
    assert none.returncode == 70
    assert "extend=1 trains a finished run on: name its folder, out=RUN" in none.stderr


def test_what_cannot_be_extended_is_refused(finished: Path, videos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"extend=1 trains a finished run on, and out=.*nowhere holds none: name its folder"):
        pretrain(compose_pretrain(*options(videos, tmp_path / "nowhere", "extend=1")))
    with pytest.raises(InputError, match=r"another recipe \(sce.temp: 0.1 there, 0.2 here\)"):
        pretrain(compose_pretrain(*options(videos, finished, "extend=1", "sce.temp=0.2")))
    with pytest.raises(InputError, match="extend=EPOCHS of tools/pretrain.py trains one on"):
        pretrain(compose_pretrain(*options(videos, finished, "optim.epochs=5")))
    with pytest.raises(InputError, match=r"extend \(-1\) must be"):
        compose_pretrain(*options(videos, finished, "extend=-1"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCE_VIDEO_ALLOW_FAULTS", "1")
        patch.setenv("SCE_VIDEO_FAULT", "term@step=2")
        with pytest.raises(Preempted):
            pretrain(compose_pretrain(*options(videos, tmp_path / "half")))
    with pytest.raises(InputError, match=r"half is not finished \(step 3 of 6\): give its command without extend= first"):
        pretrain(compose_pretrain(*options(videos, tmp_path / "half", "extend=1")))
    assert not (tmp_path / "half_extended_1").exists()


def test_the_launcher_restarts_the_extension(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished.parent)
    command = read_command([str(ROOT / "tools/pretrain.py"), "out=run", "extend=3"])
    assert command.run == str(finished.with_name("run_extended_3"))
    assert command.words[-2:] == ["extend=3", f"out={finished}"]
