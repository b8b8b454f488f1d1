"""A resumed run is the run that was never stopped, to the bit; whatever is left out of the checkpoint shows."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MULTI_CROP, TINY_RECIPE, compose_pretrain, losses

from sce_video.errors import Preempted
from sce_video.programs.pretrain import build_method, pretrain
from sce_video.runs import checkpoint


def options(videos: Path, out: Path, *more: str) -> list[str]:
    return [*TINY_RECIPE, f"data.train={videos / 'train.csv'}", "optim.epochs=7", f"out={out}", *more]


def state_of(folder: Path) -> checkpoint.State:
    return checkpoint.load(checkpoint.find(folder))[0]


def straight_and_stopped(videos: Path, folder: Path, *more: str) -> tuple[Path, Path]:
    """A run of 21 steps, and one that was stopped after 11 of them."""
    pretrain(compose_pretrain(*options(videos, folder / "straight", *more)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCE_VIDEO_ALLOW_FAULTS", "1")
        patch.setenv("SCE_VIDEO_FAULT", "term@step=10")
        with pytest.raises(Preempted):
            pretrain(compose_pretrain(*options(videos, folder / "stopped", *more)))
    return folder / "straight", folder / "stopped"


@pytest.fixture(scope="module")
def runs(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return straight_and_stopped(videos, tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("workers", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_resumed_run_is_the_straight_one(workers: int, runs: tuple[Path, Path], videos: Path, tmp_path: Path) -> None:
    straight, stopped = runs
    shutil.copytree(stopped, tmp_path / "run")
    pretrain(compose_pretrain(*options(videos, tmp_path / "run", f"system.workers={workers}")))
    assert losses(tmp_path / "run") == losses(straight)
    assert checkpoint.state_digest(state_of(tmp_path / "run")) == checkpoint.state_digest(state_of(straight))


def test_resumed_run_with_local_views_is_the_straight_one(runs: tuple[Path, Path], videos: Path, tmp_path: Path) -> None:
    straight, stopped = straight_and_stopped(videos, tmp_path, *MULTI_CROP)
    pretrain(compose_pretrain(*options(videos, stopped, *MULTI_CROP, "system.workers=2")))
    assert losses(stopped) == losses(straight)
    assert checkpoint.state_digest(state_of(stopped)) == checkpoint.state_digest(state_of(straight))
    assert losses(straight) != losses(runs[0]), "local views take part"


def fresh(cfg: Any, *parts: str) -> Callable[[checkpoint.State, dict[str, Any]], None]:
    """Put tensors as they are before training in the place of those whose names hold one of `parts`."""

    def leave_out(state: checkpoint.State, meta: dict[str, Any]) -> None:
        torch.manual_seed(cfg.seed)
        for name, value in build_method(cfg).state_dict().items():
            if any(part in name for part in parts):
                state["method"][name] = value

    return leave_out


def no_momentum(state: checkpoint.State, meta: dict[str, Any]) -> None:
    state["optimizer"]["state"] = {}


def one_step_less(state: checkpoint.State, meta: dict[str, Any]) -> None:
    meta["step"] -= 1


def skips_forgotten(state: checkpoint.State, meta: dict[str, Any]) -> None:
    meta["updates"]["skipped"] = 1


OMITTED = ["online", "target", "queue.keys", "queue.pointer", "running_", "optimizer", "step", "updates"]


@pytest.mark.slow
@pytest.mark.parametrize("part", OMITTED)
def test_part_left_out_of_the_checkpoint_shows(part: str, runs: tuple[Path, Path], videos: Path, tmp_path: Path) -> None:
    """Batch-norm statistics show in the digest only: training never reads them."""
    straight, stopped = runs
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    cfg = compose_pretrain(*options(videos, out))
    omit = {"optimizer": no_momentum, "step": one_step_less, "updates": skips_forgotten}.get(part, fresh(cfg, part))
    state, meta = checkpoint.load(checkpoint.find(out))
    before = checkpoint.state_digest(state), copy.deepcopy(meta)
    omit(state, meta)
    assert (checkpoint.state_digest(state), meta) != before, "something was left out"
    step = meta.pop("step")
    shutil.rmtree(out / "checkpoints")
    checkpoint.save(out / "checkpoints", step, state, {k: v for k, v in meta.items() if k != "sha256"}, keep=1)
    pretrain(cfg)
    assert checkpoint.state_digest(state_of(out)) != checkpoint.state_digest(state_of(straight))
    assert (losses(out) == losses(straight)) == (part == "running_")
