"""A step that is not finite changes nothing, on any rank; many of them stop the run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import TINY_RECIPE, compose_pretrain, records
from torch import nn

from sce_video import schedules
from sce_video.config.pretrain import PretrainConfig
from sce_video.errors import InputError, Stopped
from sce_video.methods.sce import SCE
from sce_video.programs.pretrain import build_method, pretrain
from sce_video.runs import checkpoint
from sce_video.training.monitor import CollapseAlarm
from sce_video.training.setup import restore, training_state
from sce_video.training.update import IN_A_ROW, Shared, Updates, share


def options(videos: Path, out: Path, *more: str) -> list[str]:
    return [*TINY_RECIPE, f"data.train={videos / 'train.csv'}", f"out={out}", *more]


def faults(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("SCE_VIDEO_ALLOW_FAULTS", "1")
    monkeypatch.setenv("SCE_VIDEO_FAULT", text)


def test_step_that_is_not_finite_is_skipped_whole_and_the_schedules_wait(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, target, queue, optimiser and batch-norm statistics after it are bitwise those before it."""
    faults(monkeypatch, "nan@step=5")
    out = tmp_path / "run"
    pretrain(compose_pretrain(*options(videos, out, "system.save_every=1", "system.keep=20")))
    states = {step: checkpoint.load(out / f"checkpoints/step_{step:08d}")[0] for step in (5, 6, 7)}
    for state in states.values():
        del state["optimizer"]["param_groups"]  # with the learning rate, which was set before the loss was seen
    digests = {step: checkpoint.state_digest(state) for step, state in states.items()}
    assert digests[5] == digests[6] != digests[7]
    assert all(value.isfinite().all() for value in states[7]["method"].values())
    told = {record["step"]: record for record in records(out)}
    assert 6 not in told, "no figures of the skipped step"
    assert told[5]["train/skipped"] == 0
    assert told[7]["train/skipped"] == told[12]["train/skipped"] == 1
    cfg = compose_pretrain(*options(videos, out))
    for step, taken in ((5, 4), (7, 5), (12, 10)):
        assert told[step]["train/lr"] == schedules.warmup_cosine(taken, base=cfg.optim.lr, warmup_steps=3, total_steps=12)
        assert told[step]["train/ema_momentum"] == pytest.approx(schedules.cosine(taken / 12, cfg.sce.momentum, 1.0))
    (record,) = [json.loads(line) for line in (out / "skipped_steps.jsonl").read_text().splitlines()]
    assert (record["step"], record["loss"], len(record["files"])) == (5, "nan", 8)
    assert checkpoint.load(out / "checkpoints/step_00000012")[1]["updates"]["skipped"] == 1


def test_five_in_a_row_stop_the_run_with_everything_as_it_was(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults(monkeypatch, "nan@from=4")  # neither step= nor rank=: every step
    out = tmp_path / "run"
    with pytest.raises(Stopped, match=r"loss nan and gradient norm nan at step 4 .*, 5 in a row: nothing was updated.*\.mp4"):
        pretrain(compose_pretrain(*options(videos, out)))
    lines = (out / "skipped_steps.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2, 3, 4]


def made(updates: Updates, loss: float, step: int, scaler: torch.amp.GradScaler | None = None, norm: float = 1.0) -> bool:
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.ones(1)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    return updates.make(Shared(loss, norm, False), optimizer, scaler, ["a"], lambda _: None, step=step, lr=0.1)


def test_more_than_one_percent_of_a_thousand_steps_stop_the_run(tmp_path: Path) -> None:
    often = Updates(tmp_path, nn.Linear(1, 1))
    for step in range(0, 1000, 100):
        assert not made(often, math.nan, step)
        assert made(often, 1.0, step + 1)
    with pytest.raises(Stopped, match="11 in 1000 steps"):
        made(often, math.inf, 999)
    seldom = Updates(tmp_path, nn.Linear(1, 1))
    for step in range(0, 5000, 110):
        assert not made(seldom, math.nan, step)
        assert made(seldom, 1.0, step + 1)


def test_counts_go_on_after_a_resume(tmp_path: Path) -> None:
    first, second = Updates(tmp_path, nn.Linear(1, 1)), Updates(tmp_path, nn.Linear(1, 1))
    for step in range(IN_A_ROW - 1):
        made(first, math.nan, step)
    second.resume(json.loads(json.dumps(first.state())))
    assert second.skipped == IN_A_ROW - 1
    with pytest.raises(Stopped, match="5 in a row"):
        made(second, math.nan, IN_A_ROW)


def test_overflow_under_a_scaler_lowers_its_scale_and_is_no_divergence(tmp_path: Path) -> None:
    """Many in a row are how fp16 begins; the optimiser is not stepped, and the scale is part of the state."""
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    updates = Updates(tmp_path, nn.BatchNorm1d(1))
    for step in range(16):
        scaler.scale(weight.sum() * torch.inf).backward()
        shared = share([torch.tensor(1.0)], nn.ParameterList([weight]), optimizer, scaler, stop=False)()
        assert shared.gradient_norm == math.inf
        assert not updates.make(shared, optimizer, scaler, [], lambda _: None, step=step, lr=0.1)
        optimizer.zero_grad()
        assert weight == 1
        assert scaler.get_scale() == 2.0 ** (15 - step)
    assert updates.in_a_row == 0
    assert updates.skipped == 16
    module, again = nn.Linear(1, 1), torch.amp.GradScaler("cpu")
    restore(training_state(module, optimizer, scaler), module, optimizer, again)
    assert again.get_scale() == 1.0


def test_collapse_is_told_or_stops_and_health_is_not() -> None:
    said: list[str] = []
    alarm = CollapseAlarm(0.05, 500, stop=False)
    for step in range(100, 2000, 100):
        alarm.look(step, 1.0, said.append)
        alarm.look(step, 0.01 if step == 700 else 0.9, said.append)  # for a moment
    assert said == []
    for step in range(100, 1100, 100):
        alarm.look(step, 0.001, said.append)
    assert len(said) == 1
    assert "feature_std has been below 0.05 since step 100 (it is 0.001 at step 600)" in said[0]
    alarm = CollapseAlarm(0.05, 500, stop=True)
    alarm.look(100, 0.001, said.append)
    with pytest.raises(Stopped, match="collapse"):
        alarm.look(600, 0.001, said.append)
    never = CollapseAlarm(0.05, 0, stop=True)
    for step in range(0, 5000, 100):
        never.look(step, 0.0, said.append)


@pytest.mark.slow
def test_collapsed_network_raises_the_alarm_and_a_fresh_one_does_not(videos: Path, tmp_path: Path) -> None:
    alarm = ["monitor.collapse_steps=6", "monitor.stop_on_collapse=true", "optim.lr_per_256=0.0001"]

    def collapsed(cfg: PretrainConfig) -> SCE:  # every clip gets the same key
        method = build_method(cfg)
        nn.init.zeros_(method.target.projector.layers[-2].weight)  # then comes a batch norm, which leaves zeros
        return method

    pretrain(compose_pretrain(*options(videos, tmp_path / "fresh", *alarm)))
    with pytest.raises(Stopped, match="collapse: feature_std has been below 0.05 since step 1 .* at step 7"):
        pretrain(compose_pretrain(*options(videos, tmp_path / "collapsed", *alarm, "sce.momentum=1.0")), collapsed)


def test_checkpoint_without_a_queue_is_refused(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    pretrain(compose_pretrain(*options(videos, out, "optim.epochs=1")))
    path = checkpoint.find(out)
    state, meta = checkpoint.load(path)
    del state["method"]["queue.keys"]
    checkpoint.save(out / "checkpoints", 3, state, {k: meta[k] for k in ("videos", "untrained", "updates")}, keep=1)
    with pytest.raises(InputError, match=r'(?s)does not fit this network: .*Missing key.*"queue.keys"'):
        pretrain(compose_pretrain(*options(videos, out, "optim.epochs=1")))
