"""The contract between a method and the loop, tried with methods that are not SCE."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import gloo
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, TINY_RECIPE, compose_pretrain, records
from torch import Tensor, nn

import sce_video
from sce_video.config.pretrain import PretrainConfig
from sce_video.errors import InputError
from sce_video.methods import Step, check_method
from sce_video.methods.supervised import Supervised
from sce_video.models.encoder import Classifier, Encoder
from sce_video.programs.pretrain import build_method, pretrain
from sce_video.runs import checkpoint


class Invariance(nn.Module):
    """The shortest method: views of a video should have the same features; a scale outside `online` is learnt too."""

    def __init__(self, online: nn.Module) -> None:
        super().__init__()
        self.online = online
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, views: list[Tensor], batch: Any, where: float) -> Step:
        first, second = (self.online(view) for view in views)
        return Step(F.mse_loss(self.scale * first, second) + (self.scale - 2) ** 2)

    def after_step(self, keys: list[Tensor], where: float) -> None:
        assert not keys


def options(videos: Path, out: Path, *more: str) -> list[str]:
    return [*TINY_RECIPE, f"data.train={videos / 'train.csv'}", f"out={out}", *more]


def build(cfg: PretrainConfig) -> Invariance:
    return Invariance(build_method(cfg).online)


def test_a_second_method_trains_logs_saves_and_loads(videos: Path, tmp_path: Path) -> None:
    folder = pretrain(compose_pretrain(*options(videos, tmp_path / "run")), build)
    logged = records(folder)
    assert [record["step"] for record in logged] == list(range(1, 13))
    names = {name for record in logged for name in record if name.startswith("train/")}
    assert names == {"train/loss", "train/gradient_norm", "train/skipped", "train/lr"}
    assert logged[-1]["train/loss"] < logged[0]["train/loss"]
    state = checkpoint.load(checkpoint.find(folder))[0]["method"]
    assert abs(state["scale"] - 2) < 0.5, "parameters outside `online` are trained"
    assert sce_video.load_encoder(folder)(torch.zeros(1, 3, 4, 32, 32)).shape == (1, 128)


@pytest.mark.slow
def test_a_second_method_continues_to_the_bit(videos: Path, tmp_path: Path) -> None:
    whole = pretrain(compose_pretrain(*options(videos, tmp_path / "whole")), build)
    out = tmp_path / "parts"
    pretrain(compose_pretrain(*options(videos, out, "system.save_every=5", "system.keep=9")), build)
    for name in ("step_00000010", "step_00000012"):
        for path in (out / "checkpoints" / name).iterdir():
            path.unlink()
        (out / "checkpoints" / name).rmdir()
    pretrain(compose_pretrain(*options(videos, out, "system.save_every=5", "system.keep=9")), build)
    states = [checkpoint.load(checkpoint.find(folder))[0] for folder in (whole, out)]
    assert checkpoint.state_digest(states[0]) == checkpoint.state_digest(states[1])


def test_the_method_of_the_examples_trains(videos: Path, tmp_path: Path) -> None:
    specification = importlib.util.spec_from_file_location("method", ROOT / "examples/method.py")
    assert specification is not None
    assert specification.loader is not None
    example = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(example)
    folder = pretrain(compose_pretrain(*options(videos, tmp_path / "run", "optim.epochs=2")), example.build)
    similarity = [record["train/similarity"] for record in records(folder)]
    assert similarity == pytest.approx([-record["train/loss"] for record in records(folder)], abs=1e-6)


def test_figures_are_means_over_micro_batches(videos: Path, tmp_path: Path) -> None:
    seen: list[float] = []

    class Counting(Invariance):
        def forward(self, views: list[Tensor], batch: Any, where: float) -> Step:
            loss = super().forward(views, batch, where).loss
            seen.append(float(sum(batch.rows)))
            return Step(loss, figures={"rows": torch.tensor(seen[-1]), "clock": where})

    def counting(cfg: PretrainConfig) -> Counting:
        return Counting(build_method(cfg).online)

    arguments = options(videos, tmp_path / "run", "optim.accumulate=2", "optim.epochs=2")
    logged = records(pretrain(compose_pretrain(*arguments), counting))
    assert [record["train/rows"] for record in logged] == [sum(seen[i : i + 2]) / 2 for i in range(0, len(seen), 2)]
    assert [record["train/clock"] for record in logged] == [step / 6 for step in range(6)]


class Incomplete(nn.Module):
    """Wrong in every respect."""

    def forward(self, views: list[Tensor]) -> Tensor:
        return views[0]


def test_every_missing_part_is_named_before_anything_is_written(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        pretrain(compose_pretrain(*options(videos, tmp_path / "run")), lambda cfg: Incomplete())
    for part in ("`online` must be a module", "`forward` must take", "`after_step(keys", "no parameter requires"):
        assert part in str(caught.value)
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match=r"must be an nn\.Module, not int"):
        check_method(3)


def test_what_is_there_is_a_method() -> None:
    network = Classifier(nn.Linear(3, 2), 2, 2, dropout=0.0)
    check_method(Supervised(network, [0, 1], seed=0))
    check_method(Invariance(Encoder(nn.Linear(3, 2), nn.Linear(2, 2))))


def test_supervised_on_a_replaced_video_takes_its_label() -> None:
    class Rows:
        rows, epochs, sources = [0, 1], [0, 0], [1, 1]

    torch.manual_seed(0)
    method = Supervised(Classifier(nn.Flatten(), 3, 2, dropout=0.0), [0, 1], seed=0)
    clips = torch.rand(2, 3, 1, 1, 1)
    step = method([clips], Rows(), 0.0)
    logits = method.online(clips)
    assert torch.allclose(step.loss, F.cross_entropy(logits, torch.tensor([1, 1])))
    assert step.figures["top1"] == (logits.argmax(dim=1) == 1).float().mean()


@pytest.mark.slow
def test_a_second_method_trains_on_two_ranks_as_on_one(videos: Path, tmp_path: Path) -> None:
    states = []
    for world in (1, 2):
        folder = tmp_path / str(world)
        more = ["optim.lr_per_256=0.3", "optim.epochs=2"]
        results = gloo.run(world, folder, options(videos, folder / "run", *more), dtype="float64", plant=_use_build)
        assert all("error" not in result for result in results), results
        states.append(results[0]["state"])
    assert max((a.double() - b.double()).abs().max().item() for a, b in zip(*map(dict.values, states), strict=True)) < 1e-10


def _use_build(_: int) -> None:
    gloo.build_method = build
