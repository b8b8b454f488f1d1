"""Weight files of other programs load completely, or raise an error with the expected and the found tensors."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import randomise
from torch import nn

import sce_video
from sce_video.errors import InputError
from sce_video.models import backbones, published
from sce_video.models.backbones import BACKBONES
from sce_video.models.encoder import MLP
from sce_video.runs import checkpoint
from sce_video.weights import load, read

CLIPS = torch.rand(2, 3, 8, 32, 32, generator=torch.Generator().manual_seed(1))
ABOUT = {"backbone": "tiny3d", "mean": 0.4, "std": 0.3, "num_frames": 6, "clip_seconds": 1.5, "size": 40}


def saved(name: str, path: Path, prefix: str = "") -> nn.Module:
    network = randomise(backbones.build(name)[0])
    torch.save({prefix + key: value for key, value in network.state_dict().items()}, path)
    return network


VIDEO = [name for name in BACKBONES if name not in backbones.IMAGE_BACKBONES]
FAST = ("r3d18", "tiny3d", "r2plus1d18", "x3d_xs", "s3dg")


@pytest.mark.parametrize("name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in VIDEO])
def test_shapes_say_which_backbone_it_is(name: str, tmp_path: Path) -> None:
    network = saved(name, tmp_path / "w.pt")
    encoder = sce_video.load_encoder(tmp_path / "w.pt")
    first = "x3d_xs" if name.startswith("x3d") else name  # one network, three names
    assert encoder.name == first
    total = len(network.state_dict())
    assert f"w.pt: {total} of {total} tensors of {first}, " in encoder.report
    assert encoder.report.endswith("no projector; nothing ignored")
    with torch.no_grad():
        assert torch.allclose(encoder(CLIPS), network((CLIPS - 0.45) / 0.225), atol=1e-6)
    assert encoder.clip == {"num_frames": 8, "clip_seconds": 2.56, "size": 224}


def test_a_published_torchvision_file_needs_no_backbone(tmp_path: Path) -> None:
    network = randomise(published.published("r2plus1d18"))
    torch.save(network.state_dict(), tmp_path / "r2plus1d_18.pth", _use_new_zipfile_serialization=False)
    network.fc = nn.Identity()
    encoder = sce_video.load_encoder(tmp_path / "r2plus1d_18.pth")
    with torch.no_grad():
        assert torch.allclose(encoder(CLIPS), network((CLIPS - 0.45) / 0.225), atol=1e-6)
    assert "torchvision layout; no projector; 2 other tensors ignored (fc 2)" in encoder.report


def test_another_architecture_is_named(tmp_path: Path) -> None:
    saved("r3d18_torchvision", tmp_path / "w.pt")
    with pytest.raises(InputError) as caught:
        sce_video.load_encoder(tmp_path / "w.pt", "r2plus1d18")
    for part in (
        "holds a network in torchvision layout (stem.0.weight [64, 3, 3, 7, 7])",
        "r2plus1d18 expects stem.0.weight [45, 3, 1, 7, 7], found [64, 3, 3, 7, 7]",
        "It is a whole r3d18_torchvision: backbone=r3d18_torchvision",
    ):
        assert part in str(caught.value)


def test_a_deeper_network_does_not_pass_for_its_first_blocks(tmp_path: Path) -> None:
    """ResNet-101 has every tensor of ResNet-50 in the same shape, and 17 blocks more."""
    state = backbones.build("r3d50")[0].state_dict()
    block = {key: value for key, value in state.items() if key.startswith("blocks.3.res_blocks.5.")}
    state |= {key.replace("res_blocks.5.", "res_blocks.6."): value for key, value in block.items()}
    torch.save(state, tmp_path / "w.pt")
    for backbone in ("r3d50", None):
        with pytest.raises(InputError, match=r"318 of 318 tensors of r3d50; left over e.g. blocks.3.res_blocks.6"):
            sce_video.load_encoder(tmp_path / "w.pt", backbone)


def test_step_counters_may_lack(tmp_path: Path) -> None:
    """Files converted from Caffe2 or written before torch 0.4.1 have none; no other tensor may be missing."""
    state = {k: v for k, v in backbones.build("tiny3d")[0].state_dict().items() if "num_batches" not in k}
    torch.save(state, tmp_path / "w.pt")
    assert "20 of 24 tensors of tiny3d" in sce_video.load_encoder(tmp_path / "w.pt").report
    del state["blocks.2.1.running_var"]
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"closest is tiny3d .*missing e.g. blocks.2.1.running_var"):
        sce_video.load_encoder(tmp_path / "w.pt")


def run_folder(folder: Path, projector: nn.Module | None, about: dict[str, Any] = ABOUT) -> Path:
    state = {f"online.backbone.{key}": value for key, value in backbones.build("tiny3d")[0].state_dict().items()}
    if projector is not None:
        state |= {f"online.projector.{key}": value for key, value in projector.state_dict().items()}
    state |= {"online.predictor.layers.0.weight": torch.zeros(2, 2), "queue.keys": torch.zeros(4, 2)}
    checkpoint.save(folder / "checkpoints", 1, {"method": state}, {"encoder": about}, keep=1)
    return folder


@pytest.mark.parametrize(("widths", "last_norm"), [([128, 16, 24, 8], True), ([128, 8], False)])
def test_the_projector_comes_along(widths: list[int], last_norm: bool, tmp_path: Path) -> None:
    projector = randomise(MLP(widths, last_norm=last_norm))
    encoder = sce_video.load_encoder(run_folder(tmp_path, projector))
    features = encoder(CLIPS)
    assert features.shape == (2, 128)
    assert torch.equal(encoder.project(features), projector(features))
    assert encoder.report.endswith(
        f"24 of 24 tensors of tiny3d, sce_video layout under online.backbone.; projector {' -> '.join(map(str, widths))}; "
        "2 other tensors ignored (online.predictor 1, queue 1)"
    )
    assert (encoder.mean, encoder.std, encoder.clip["num_frames"]) == (0.4, 0.3, 6)


def test_no_projector_or_another_kind_is_said(tmp_path: Path) -> None:
    encoder = sce_video.load_encoder(run_folder(tmp_path / "a", None))
    with pytest.raises(InputError, match="tiny3d encoder has no projector"):
        encoder.project(encoder(CLIPS))
    other = nn.Module()
    other.layers = nn.Sequential(nn.Linear(128, 8))  # with a bias
    encoder = sce_video.load_encoder(run_folder(tmp_path / "b", other))
    assert "a projector of another kind left out" in encoder.report
    assert encoder.projector is None


def test_backbone_must_agree_with_what_is_described(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, None)
    assert sce_video.load_encoder(folder, "tiny3d").name == "tiny3d"
    with pytest.raises(InputError, match="holds tiny3d, not backbone=r3d18"):
        sce_video.load_encoder(folder, "r3d18")


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({**ABOUT, "backbone": "trap_module:build"}, "is for 'trap_module:build', which is not ours: if you trust it"),
        ({"backbone": "tiny3d"}, "metadata does not describe an encoder"),
        ("text", "metadata does not describe an encoder"),
    ],
)
def test_a_file_does_not_choose_what_is_imported(
    described: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file

    (tmp_path / "trap_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    metadata = {read.DESCRIPTION: described if described == "text" else json.dumps(described)}
    save_file(backbones.build("tiny3d")[0].state_dict(), tmp_path / "w.safetensors", metadata=metadata)
    with pytest.raises(InputError, match=re.escape(message)):
        sce_video.load_encoder(tmp_path / "w.safetensors")


def test_untrained_encoder_is_the_seeds_and_leaves_the_generator_alone() -> None:
    before = torch.get_rng_state()
    settings: dict[str, Any] = {"mean": 0.45, "std": 0.225, "clip": {}}
    one, same, other = (load.untrained_encoder("tiny3d", seed=seed, **settings) for seed in (0, 0, 1))
    assert torch.equal(one(CLIPS), same(CLIPS))
    assert not torch.equal(one(CLIPS), other(CLIPS))
    assert torch.equal(torch.get_rng_state(), before)
