"""1 x 8, 2 x 4 and 4 x 2 clips per step are one training, and each classic mistake would show."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gloo
import pytest
import torch
from conftest import MULTI_CROP, TINY_RECIPE, losses
from test_distributed import GENTLE, ROUGH
from torch import nn

from sce_video import distributed
from sce_video.data import loader
from sce_video.methods import sce, siamese
from sce_video.programs import pretrain
from sce_video.runs import checkpoint, rank_check
from sce_video.runs.status import read_status
from sce_video.training import setup

STEPS = 21


def options(videos: Path, out: Path, *more: str) -> list[str]:
    return [*TINY_RECIPE, f"data.train={videos / 'train.csv'}", "optim.momentum=0", f"out={out}", *ROUGH, *more]


def distance(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> float:
    """The largest difference of any element of any tensor whose name begins with prefix."""
    assert one["state"].keys() == other["state"].keys()
    names = [name for name in one["state"] if name.startswith(prefix)]
    return max((one["state"][name].double() - other["state"][name].double()).abs().max().item() for name in names)


@pytest.fixture(scope="module")
def alone(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[float]]:
    """One process in float64."""
    folder = tmp_path_factory.mktemp("alone")
    (result,) = gloo.run(1, folder, options(videos, folder / "run"), dtype="float64")
    return result, losses(folder / "run")


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_processes_is_one_training(
    world: int, alone: tuple[dict[str, Any], list[float]], videos: Path, tmp_path: Path
) -> None:
    ranks = gloo.run(world, tmp_path, options(videos, tmp_path / "run"), dtype="float64")
    curve = losses(tmp_path / "run")
    assert len(curve) == STEPS
    assert max(abs(a - b) for a, b in zip(curve, alone[1], strict=True)) < 1e-10
    for rank in ranks:
        assert distance(rank, alone[0]) < 1e-10
        assert all(torch.equal(value, ranks[0]["state"][name]) for name, value in rank["state"].items()), "to the bit"


@pytest.mark.slow
def test_local_views_are_one_training_too(videos: Path, tmp_path: Path) -> None:
    results = []
    for world in (1, 2):
        folder = tmp_path / str(world)
        few = [*options(videos, folder / "run"), *MULTI_CROP, "optim.epochs=2"]
        results.append((gloo.run(world, folder, few, dtype="float64"), losses(folder / "run")))
    (alone, curve), (ranks, shared) = results
    assert len(curve) == 6
    assert max(abs(a - b) for a, b in zip(curve, shared, strict=True)) < 1e-10
    assert max(distance(rank, alone[0]) for rank in ranks) < 1e-10
    assert torch.equal(ranks[0]["state"]["queue.keys"], ranks[1]["state"]["queue.keys"])


@pytest.mark.slow
def test_float32_agrees_too(videos: Path, tmp_path: Path) -> None:
    """On the network without kinks, see test_distributed."""
    results = []
    for world in (1, 2, 4):
        folder = tmp_path / str(world)
        results.append((gloo.run(world, folder, options(videos, folder / "run", *GENTLE))[0], losses(folder / "run")))
    for result, curve in results[1:]:
        assert max(abs(a - b) for a, b in zip(curve, results[0][1], strict=True)) < 2e-5
        assert distance(result, results[0][0]) < 2e-4


def _norms_alone(_: int) -> None:
    setup.distributed.synchronise_batch_norm = lambda module: module


def _own_keys(_: int) -> None:
    sce.distributed.gather = lambda tensor: tensor.detach()


def _sum_for_mean(_: int) -> None:
    _scale_loss(float)


def _loss_times_processes(_: int) -> None:
    _scale_loss(lambda rows: float(distributed.world_size()))


def _scale_loss(factor: Callable[[int], float]) -> None:
    right = sce.losses.sce
    sce.losses.sce = lambda query, *rest, **named: factor(len(query)) * right(query, *rest, **named)


def _own_target(rank: int) -> None:
    """After DDP, which would mend it: it broadcasts everything once."""
    right = distributed.parallel

    def parallel(module: nn.Module, device: torch.device, **named: Any) -> nn.Module:
        network = right(module, device, **named)
        if rank:
            for parameter in module.target.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, dtype=parameter.dtype))
        return network

    pretrain.distributed.parallel = parallel


def _target_in_eval_mode(_: int) -> None:
    right = pretrain.build_method

    def build(cfg: Any) -> nn.Module:
        method = right(cfg)
        method.target.eval()
        return method

    gloo.build_method = build


def _same_data(_: int) -> None:
    right = loader.StepSampler
    loader.StepSampler = lambda **named: right(**{**named, "rank": 0})


def _ema_on_one_rank(rank: int) -> None:
    if rank:
        siamese.ema_update = lambda *_: None


BUGS = {
    "batch norm not synchronised": _norms_alone,
    "queue of own keys": _own_keys,
    "sum for mean": _sum_for_mean,
    "loss times processes": _loss_times_processes,
    "target not that of rank 0": _own_target,
    "target in eval mode": _target_in_eval_mode,
    "same data on all ranks": _same_data,
    "EMA on one rank": _ema_on_one_rank,
}


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_planted_bug_is_seen(bug: str, alone: tuple[dict[str, Any], list[float]], videos: Path, tmp_path: Path) -> None:
    """The test above would fail by far: every one of them moves the networks by more than 1e-3."""
    ranks = gloo.run(2, tmp_path, options(videos, tmp_path / "run"), dtype="float64", plant=BUGS[bug])
    assert "error" not in ranks[0], ranks[0]
    curve = losses(tmp_path / "run")
    assert max(abs(a - b) for a, b in zip(curve, alone[1], strict=True)) > 1e-3
    assert max(distance(rank, alone[0], "online") for rank in ranks) > 1e-3


@pytest.mark.slow
def test_not_a_number_on_one_rank_is_skipped_by_all(videos: Path, tmp_path: Path) -> None:
    environment = {"SCE_VIDEO_ALLOW_FAULTS": "1", "SCE_VIDEO_FAULT": "nan@step=6,rank=1"}
    ranks = gloo.run(2, tmp_path, options(videos, tmp_path / "run", "optim.epochs=3"), environment=environment)
    assert distance(ranks[0], ranks[1]) == 0
    assert all(value.isfinite().all() for value in ranks[0]["state"].values())
    _, meta = checkpoint.load(checkpoint.find(tmp_path / "run"))
    assert meta["updates"] == {"skipped": 1, "in_a_row": 0, "recent": [6]}
    assert len((tmp_path / "run/skipped_steps.jsonl").read_text().splitlines()) == 1


def _one_loss_not_a_number(rank: int) -> None:
    """The first of the two of step 6."""
    right, calls = sce.losses.sce, itertools.count()

    def loss(*arguments: Any, **named: Any) -> torch.Tensor:
        return right(*arguments, **named) * (torch.nan if next(calls) == 12 and rank == 1 else 1)

    sce.losses.sce = loss


@pytest.mark.slow
def test_loss_of_one_rank_that_is_not_a_number_is_skipped_by_all(videos: Path, tmp_path: Path) -> None:
    """Clips that are not numbers reach the other rank through batch norm; here its own loss is fine."""
    out = tmp_path / "run"
    ranks = gloo.run(2, tmp_path, options(videos, out, "optim.epochs=3"), plant=_one_loss_not_a_number)
    assert distance(ranks[0], ranks[1]) == 0
    assert all(value.isfinite().all() for value in ranks[0]["state"].values())
    (record,) = [json.loads(line) for line in (out / "skipped_steps.jsonl").read_text().splitlines()]
    assert (record["step"], len(record["files"])) == (6, 4), "those of the guilty rank"


@pytest.mark.slow
def test_rank_that_drifts_is_named(videos: Path, tmp_path: Path) -> None:
    environment = {"SCE_VIDEO_ALLOW_FAULTS": "1", "SCE_VIDEO_FAULT": "drift@step=5,rank=1"}
    overrides = options(videos, tmp_path / "run", "system.agree_every=6", "optim.epochs=3")
    ranks = gloo.run(2, tmp_path, overrides, environment=environment)
    for rank in ranks:
        assert rank["error"] == "Stopped"
        assert "at step 6 online." in rank["message"]
        assert "of rank 1 is not that of rank 0" in rank["message"]
    assert read_status(tmp_path / "run")["exit_code"] == 70


def test_signal_to_one_rank_stops_all_at_the_same_step(videos: Path, tmp_path: Path) -> None:
    environment = {"SCE_VIDEO_ALLOW_FAULTS": "1", "SCE_VIDEO_FAULT": "term@step=4,rank=1"}
    ranks = gloo.run(2, tmp_path, options(videos, tmp_path / "run"), environment=environment)
    assert [rank["error"] for rank in ranks] == ["Preempted", "Preempted"]
    assert [rank["message"] for rank in ranks] == [
        "another process was asked to stop: saved at step 5",
        "SIGTERM: saved at step 5",
    ]
    assert read_status(tmp_path / "run")["step"] == 5


def test_machine_without_the_data_is_named_on_all_ranks(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "root0").symlink_to(videos)
    (tmp_path / "root1").mkdir()
    ranks = gloo.run(2, tmp_path, options(videos, tmp_path / "run", f"data.root={tmp_path}/root<rank>"))
    for rank in ranks:
        assert rank["error"] == "InputError"
        assert "none of 24 videos tried (of 24) can be read" in rank["message"]
        assert "(on 1 of 2 processes, first rank 1 on host " in rank["message"]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_lost_rank_ends_the_others_and_the_run_goes_on_from_its_checkpoint(
    alone: tuple[dict[str, Any], list[float]], videos: Path, tmp_path: Path
) -> None:
    """Rank 1 is killed before step 12; resumed from step 10 by one process, then the curve is that of one."""
    out = tmp_path / "run"
    overrides = options(videos, out, "system.save_every=5")
    environment = {"SCE_VIDEO_ALLOW_FAULTS": "1", "SCE_VIDEO_FAULT": "kill@step=12,rank=1"}
    began = time.monotonic()
    ranks = gloo.run(2, tmp_path, overrides, dtype="float64", environment=environment, seconds=60)
    assert time.monotonic() - began < 60
    assert ranks[0]["error"] in ("RuntimeError", "DistBackendError")
    assert ranks[1] == {}
    status = read_status(out)
    assert (status["status"], status["exit_code"]) == ("failed", 1)
    assert checkpoint.find(out).name == "step_00000010"
    (result,) = gloo.run(1, tmp_path, overrides, dtype="float64")
    assert max(abs(a - b) for a, b in zip(losses(out), alone[1], strict=True)) < 1e-10
    assert distance(result, alone[0]) < 1e-10


@pytest.mark.slow
def test_run_of_two_is_continued_by_four(alone: tuple[dict[str, Any], list[float]], videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    environment = {"SCE_VIDEO_ALLOW_FAULTS": "1", "SCE_VIDEO_FAULT": "term@step=10"}
    gloo.run(2, tmp_path, options(videos, out), dtype="float64", environment=environment)
    assert read_status(out)["step"] == 11
    ranks = gloo.run(4, tmp_path, options(videos, out), dtype="float64")
    assert max(abs(a - b) for a, b in zip(losses(out), alone[1], strict=True)) < 1e-10
    assert max(distance(rank, alone[0]) for rank in ranks) < 1e-10
    (refused,) = gloo.run(1, tmp_path, options(videos, out, "optim.batch=4"))
    assert refused["error"] == "InputError"
    assert "another recipe (optim.batch: 8 there, 4 here)" in refused["message"]


@pytest.mark.slow
def test_rank_that_stands_still_ends_the_step_with_its_stacks(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    overrides = options(videos, out, "system.read_timeout=1", "system.step_timeout=12")
    environment = {"SCE_VIDEO_ALLOW_FAULTS": "1", "SCE_VIDEO_FAULT": "stop@step=5,rank=1"}
    processes = gloo.start(2, tmp_path, overrides, environment=environment)
    processes[0].join(60)
    assert processes[0].exitcode == 1
    processes[1].kill()
    processes[1].join()
    status = read_status(out)
    assert status["status"] == "failed"
    assert status["reason"] == "step 5 has taken more than system.step_timeout (12 s)"
    assert "forward" in (out / "debug/stack_rank0.txt").read_text()


def test_number_of_steps_depends_on_the_list_alone() -> None:
    settings = {"seed": 0, "batch": 8, "accumulate": 1, "start_step": 0}
    for videos, steps in ((31, 3), (32, 4), (33, 4)):
        for world in (1, 2, 4):
            ranks = [{"rank": rank, "world_size": world, "num_rows": videos} for rank in range(world)]
            samplers = [loader.StepSampler(**settings, **rank, total_steps=videos // 8) for rank in ranks]
            assert {len(list(sampler)) for sampler in samplers} == {steps}


@pytest.mark.slow
def test_videos_that_fill_no_batch_are_left_out_by_all(videos: Path, tmp_path: Path) -> None:
    """23 videos are two steps of 8: the seven that are left are one too few, and would be 4 and 3."""
    lines = (videos / "train.csv").read_text().splitlines()
    (tmp_path / "train.csv").write_text("\n".join(lines[:-1]) + "\n")
    more = [f"data.train={tmp_path / 'train.csv'}", f"data.root={videos}", "optim.epochs=2"]
    ranks = gloo.run(2, tmp_path, options(videos, tmp_path / "run", *more))
    assert [rank.get("error") for rank in ranks] == [None, None], ranks
    assert len(losses(tmp_path / "run")) == 4
    assert distance(ranks[0], ranks[1]) == 0


@pytest.mark.slow
def test_machine_that_does_not_see_the_checkpoints_is_named_at_the_start(videos: Path, tmp_path: Path) -> None:
    """`out` is not on a shared disk: rank 1 would begin anew, and the loss would hardly show it."""
    environment = {"SCE_VIDEO_ALLOW_FAULTS": "1", "SCE_VIDEO_FAULT": "term@step=4"}
    gloo.run(1, tmp_path, options(videos, tmp_path / "run0"), environment=environment)
    ranks = gloo.run(2, tmp_path, options(videos, tmp_path / "run<rank>"))
    for number, rank in enumerate(ranks):
        assert rank["error"] == "Stopped"
        assert f"at step {(5, 0)[number]} online." in rank["message"]
        assert "of rank 1 is not that of rank 0" in rank["message"]


def test_sum_of_bits_changes_with_every_element() -> None:
    for dtype in (torch.float32, torch.float64, torch.int64, torch.bfloat16, torch.bool):
        tensor = torch.ones(3, 2).to(dtype)
        other = tensor.clone()
        other[1, 1] = 0
        assert rank_check._sum_of_bits(tensor) != rank_check._sum_of_bits(other)
        assert rank_check._sum_of_bits(tensor) == rank_check._sum_of_bits(tensor.clone())


@pytest.mark.slow
def test_recomputed_activations_are_one_training_too(
    alone: tuple[dict[str, Any], list[float]], videos: Path, tmp_path: Path
) -> None:
    """Batch norm gathers over ranks again in the backward pass, in the same order on all of them."""
    ranks = gloo.run(2, tmp_path, options(videos, tmp_path / "run", "system.recompute=true"), dtype="float64")
    assert max(abs(a - b) for a, b in zip(losses(tmp_path / "run"), alone[1], strict=True)) < 1e-10
    assert max(distance(rank, alone[0]) for rank in ranks) < 1e-10
