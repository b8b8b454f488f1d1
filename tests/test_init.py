"""init=: pretraining begins from weights, a part of them at a lower rate, and a continued run does not read them again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import TINY_RECIPE, compose_finetune, compose_pretrain, losses, randomise, run_tool

from sce_video.errors import InputError
from sce_video.models import backbones
from sce_video.models.encoder import MLP, Classifier
from sce_video.programs.pretrain import pretrain
from sce_video.runs import checkpoint
from sce_video.training import extension, finetune_setup
from sce_video.weights.start import start_from_weights

ONE_STEP = ["optim.epochs=1", "optim.warmup_epochs=0", "optim.batch=20"]


def saved(path: Path, projector: MLP | None = None, name: str = "tiny3d") -> dict[str, torch.Tensor]:
    state = {f"online.backbone.{key}": value for key, value in randomise(backbones.build(name)[0]).state_dict().items()}
    if projector is not None:
        state |= {f"online.projector.{key}": value for key, value in randomise(projector).state_dict().items()}
    torch.save(state, path)
    return state


def options(videos: Path, out: Path, *more: str) -> list[str]:
    return [*TINY_RECIPE, f"data.train={videos}/train.csv", f"out={out}", *more]


def test_online_and_target_begin_with_the_weights(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a rate of almost 0 the first checkpoint still holds them, in both branches."""
    state = saved(tmp_path / "w.pt", MLP([128, 32, 32, 16], last_norm=True))
    rates = ["optim.lr_per_256=1e-12", *ONE_STEP]
    pretrain(compose_pretrain(*options(videos, tmp_path / "run", f"init={tmp_path}/w.pt", *rates)))
    (found, _), printed = checkpoint.load_newest(tmp_path / "run/checkpoints"), capsys.readouterr().err  # type: ignore[misc]
    for key, value in state.items():
        if "weight" in key or "bias" in key:
            assert torch.allclose(found["method"][key], value, atol=1e-7), key
            assert torch.allclose(found["method"][key.replace("online", "target")], value, atol=1e-7), key
    assert "init: " in printed
    assert "24 of 24 tensors of tiny3d" in printed
    assert "the projector is taken over too" in printed


@pytest.mark.parametrize(
    ("name", "message"),
    [("r3d18", r"fills 0 of 24 tensors of tiny3d|holds a network"), ("part", r"fills 12 of 24 tensors of tiny3d; missing e.g. ")],
)
def test_weights_that_fill_less_are_refused_with_what_matched(name: str, message: str, videos: Path, tmp_path: Path) -> None:
    state = backbones.build("tiny3d" if name == "part" else name)[0].state_dict()
    torch.save(dict(list(state.items())[:12]) if name == "part" else state, tmp_path / "w.pt")
    with pytest.raises(InputError, match=message):
        pretrain(compose_pretrain(*options(videos, tmp_path / "run", f"init={tmp_path}/w.pt")))
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_projector_of_other_widths_and_another_normalisation_are_said(tmp_path: Path) -> None:
    from sce_video.methods import sce
    from sce_video.models.encoder import Encoder

    saved(tmp_path / "w.pt", MLP([128, 8, 16], last_norm=True))
    backbone = backbones.build("tiny3d")[0]
    online = Encoder(backbone, MLP([128, 32, 16], last_norm=True))
    method = sce.SCE(online, queue_size=8, width=16, temp=1, temp_target=1, coeff=1, momentum=1)
    cfg = compose_pretrain(*TINY_RECIPE, f"init={tmp_path}/w.pt", "augment.mean=0.5")
    lines = extension.load_initial(cfg, method, tmp_path / "run")
    assert "the projector begins with random weights, for its widths are others" in lines[1]
    assert "trained on (clip - 0.45) / 0.225, this run normalises by 0.5 and 0.225" in lines[2]


def test_a_normalisation_by_channel_is_said_too(tmp_path: Path) -> None:
    network = torch.nn.Module()
    network.online = torch.nn.Module()
    network.online.backbone, _ = backbones.build("resnet18")
    torch.save(backbones.build("resnet18")[0].state_dict(), tmp_path / "resnet18.pth")
    lines = start_from_weights(network, str(tmp_path / "resnet18.pth"), "resnet18", key="", mean=0.45, std=0.225)
    assert "(clip - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225], this run normalises by 0.45 and 0.225" in lines[-1]


def test_the_loaded_backbone_has_its_share_of_the_rate(tmp_path: Path) -> None:
    from sce_video.programs.pretrain import build_method

    cfg = compose_pretrain(*TINY_RECIPE, "init=w.pt", "init_lr_scale=0.1")
    method = build_method(cfg)
    groups = extension.parameter_groups(cfg, method)
    scales = {id(parameter): group.get("lr_scale", 1.0) for group in groups for parameter in group["params"]}
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert scales.pop(id(parameter)) == (0.1 if name.startswith("online.backbone.") else 1.0), name
    assert not scales


def test_finetuning_scales_all_but_the_last_layer() -> None:
    from types import SimpleNamespace

    classifier = Classifier(backbones.build("tiny3d")[0], 128, 3, dropout=0.0)
    method = SimpleNamespace(online=classifier, parameters=classifier.parameters)
    cfg = compose_finetune("recipe=demo", "checkpoint=x", "train=a", "test=b", "init_lr_scale=0.1", "optim.layer_decay=0.5")
    groups = finetune_setup.parameter_groups(cfg, method)  # type: ignore[arg-type]
    scales = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    assert scales[id(classifier.linear.weight)] == 1.0
    assert scales[id(classifier.backbone.blocks[4][0].weight)] == pytest.approx(0.05)
    assert scales[id(classifier.backbone.blocks[3][0].weight)] == pytest.approx(0.025)
    assert len(scales) == len(list(classifier.parameters()))


@pytest.mark.slow
def test_a_continued_run_does_not_read_its_weights_again(videos: Path, tmp_path: Path) -> None:
    saved(tmp_path / "w.pt")
    arguments = options(videos, tmp_path / "run", "init=w.pt", "init_lr_scale=0.5", "system.save_every=1")
    whole = run_tool("pretrain", *arguments, cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    expected = losses(tmp_path / "run")
    for step in checkpoint.checkpoints(tmp_path / "run/checkpoints")[:1]:
        shutil.rmtree(step)
    (tmp_path / "w.pt").unlink()
    again = run_tool("pretrain", *arguments, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "init:" not in again.stderr
    assert losses(tmp_path / "run")[-1] == expected[-1]


@pytest.mark.slow
def test_continued_finetuning_needs_its_checkpoint_no_more(videos: Path, tmp_path: Path) -> None:
    saved(tmp_path / "w.pt")
    arguments = ["recipe=demo", "checkpoint=w.pt", f"train={videos}/train.csv", f"test={videos}/val.csv", "optim.batch=8"]
    arguments += ["optim.epochs=2", "data.num_frames=4", "data.clip_seconds=0.8", "augment.size=32", "system.save_every=1"]
    arguments += ["testing.clips_per_video=1", "testing.num_crops=1", "system.workers=0", "out=run", "optim.warmup_epochs=0"]
    whole = run_tool("finetune", *arguments, cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert "weights: w.pt: 24 of 24 tensors of tiny3d" in whole.stderr
    first = (tmp_path / "run/predictions.csv").read_text()
    (tmp_path / "run/result.json").unlink()
    shutil.rmtree(checkpoint.checkpoints(tmp_path / "run/checkpoints")[0])
    (tmp_path / "w.pt").unlink()
    again = run_tool("finetune", *arguments, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "run/predictions.csv").read_text() == first
