"""Every export returns the same features in the other network, and a failed one leaves no file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import randomise, run_tool
from test_layouts import SlowOnly
from torch import nn

import sce_video
from sce_video.config.evaluate import ExportConfig, Format
from sce_video.errors import InputError
from sce_video.models import backbones
from sce_video.models.encoder import MLP
from sce_video.programs import export
from sce_video.runs import checkpoint
from sce_video.weights import files

ABOUT = {"mean": 0.4, "std": 0.3, "num_frames": 4, "clip_seconds": 1.5, "size": 32}
CLIPS = torch.rand(3, 3, 4, 32, 32, generator=torch.Generator().manual_seed(7))
NORMALISED = (CLIPS - 0.4) / 0.3
FITTING = [
    ("r3d50", "pytorchvideo"),
    ("r3d50", "slowfast"),
    ("r2plus1d18", "torchvision"),
    ("r3d18_torchvision", "torchvision"),
    ("r3d18", "safetensors"),
    ("tiny3d", "safetensors"),
    ("tiny3d", "onnx"),
]


def run_folder(folder: Path, name: str) -> Path:
    """A run folder of a network with changed batch norms."""
    network, width = backbones.build(name)
    parts = {"backbone": randomise(network), "projector": randomise(MLP([width, 16, 8], last_norm=True))}
    state = {f"online.{part}.{key}": v for part, module in parts.items() for key, v in module.state_dict().items()}
    checkpoint.save(folder / "checkpoints", 1, {"method": state}, {"encoder": {"backbone": name, **ABOUT}}, keep=1)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run folder of a backbone, created once."""
    return cache(lambda name: run_folder(tmp_path_factory.mktemp(name), name))


@pytest.fixture
def run(runs: Callable[[str], Path]) -> Path:
    pytest.importorskip("safetensors")
    return runs("tiny3d")


def require(to: str) -> None:
    """Skip the test without the extra `export`."""
    for package in [*export.NEEDS.get(to, []), *(["onnxruntime"] if to == "onnx" else [])]:
        pytest.importorskip(package)


def features_there(name: str, to: str, path: Path) -> torch.Tensor:
    """Return the features that a user of the other program gets, without our code if the program is installed."""
    if to == "safetensors":
        return sce_video.load_encoder(path)(CLIPS)  # type: ignore[no-any-return]
    if to == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return torch.from_numpy(session.run(None, {"clips": CLIPS.numpy()})[0])
    state = torch.load(path, weights_only=True)
    if to == "slowfast":
        network: Any = SlowOnly()
        network.load_state_dict(state["model_state"], strict=False)  # like the program itself
        return network.eval()(NORMALISED)  # type: ignore[no-any-return]
    if to == "pytorchvideo":
        from pytorchvideo.models.resnet import create_resnet

        network = create_resnet(model_depth=50, stem_conv_kernel_size=(1, 7, 7), head=None)
        network.load_state_dict(state["model_state"])
        return network.eval()(NORMALISED).mean((2, 3, 4))  # type: ignore[no-any-return]
    from torchvision.models import video

    network = {"r2plus1d18": video.r2plus1d_18, "r3d18_torchvision": video.r3d_18}[name]()
    assert network.load_state_dict(state, strict=False).missing_keys == ["fc.weight", "fc.bias"]
    network.fc = nn.Identity()
    return network.eval()(NORMALISED)  # type: ignore[no-any-return]


@torch.no_grad()
@pytest.mark.parametrize(("name", "to"), FITTING)
def test_features_are_the_same_there(
    name: str, to: str, runs: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    require(to)
    folder, out = runs(name), tmp_path / "made" / f"encoder.{to}"
    difference = export.export(ExportConfig(checkpoint=str(folder), to=Format(to), out=str(out)))
    assert difference is not None
    assert difference <= (1e-4 if to == "onnx" else 1e-6)
    said = capsys.readouterr().out
    assert f"written: {out} (" in said
    assert f"maximum absolute difference of the features: {difference:.3g}" in said
    assert list(out.parent.iterdir()) == [out]
    expected = sce_video.load_encoder(folder)(CLIPS)
    assert float(expected.abs().max()) > 0.05
    assert torch.allclose(features_there(name, to, out), expected, atol=1e-4 if to == "onnx" else 1e-6)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("name", ["r3d18", "r3d50", "r2plus1d18", "r3d18_torchvision"])
def test_every_residual_network_is_the_same_in_onnx(name: str, runs: Callable[[str], Path], tmp_path: Path) -> None:
    require("onnx")
    folder, out = runs(name), tmp_path / "encoder.onnx"
    difference = export.export(ExportConfig(checkpoint=str(folder), to=Format.onnx, out=str(out)))
    assert difference is not None
    assert torch.allclose(features_there(name, "onnx", out), sce_video.load_encoder(folder)(CLIPS), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "frames", "size"), [("x3d_s", 4, 64), ("s3d", 16, 64), ("slowfast_r50", 32, 64)])
def test_networks_of_other_kinds_are_the_same_in_onnx(
    name: str, frames: int, size: int, runs: Callable[[str], Path], tmp_path: Path
) -> None:
    """The export itself compares the features with those of onnxruntime, at two batch sizes."""
    require("onnx")
    out = tmp_path / "encoder.onnx"
    cfg = ExportConfig(checkpoint=str(runs(name)), to=Format.onnx, out=str(out), num_frames=frames, size=size)
    difference = export.export(cfg)
    assert difference is not None
    assert difference <= 1e-5
    assert out.stat().st_size > 1e6


def test_a_safetensors_file_is_a_whole_encoder(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "encoder.safetensors"
    export.export(ExportConfig(checkpoint=str(run), to=Format.safetensors, out=str(out)))
    one, other = sce_video.load_encoder(run), sce_video.load_encoder(out)
    assert (one.name, one.mean, one.std, one.clip) == (other.name, other.mean, other.std, other.clip)
    features = one(CLIPS)
    assert torch.equal(other(CLIPS), features)
    assert torch.equal(other.project(features), one.project(features))
    again = tmp_path / "again.safetensors"
    export.export(ExportConfig(checkpoint=str(out), to=Format.safetensors, out=str(again)))
    first, second = files.read(out), files.read(again)
    assert second.metadata == first.metadata
    assert checkpoint.state_digest(second.content) == checkpoint.state_digest(first.content)


def test_a_network_of_ones_own_can_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_network.py").write_text(
        "from torch import nn\ndef build():\n"
        "    return nn.Sequential(nn.Conv3d(3, 5, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten()), 5\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    pytest.importorskip("safetensors")
    folder, out = run_folder(tmp_path / "run", "own_network:build"), tmp_path / "own.safetensors"
    assert export.export(ExportConfig(checkpoint=str(folder), to=Format.safetensors, out=str(out), trust=True)) == 0
    with pytest.raises(InputError, match="is for 'own_network:build', which is not ours: if you trust it, add trust=true"):
        sce_video.load_encoder(out)
    assert sce_video.load_encoder(out, "own_network:build")(CLIPS).shape == (3, 5)
    assert sce_video.load_encoder(out, trust=True)(CLIPS).shape == (3, 5)


def test_other_features_are_refused_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("safetensors")
    folder = run_folder(tmp_path / "run", "tiny3d")
    state, meta = checkpoint.load_newest(folder / "checkpoints")  # type: ignore[misc]
    state["method"]["online.backbone.blocks.2.0.weight"][0] = float("nan")
    checkpoint.save(folder / "checkpoints", 2, state, {"encoder": meta["encoder"]}, keep=1)
    with pytest.raises(InputError, match=r"1 of 24 weights and statistics are not finite, e\.g\. blocks\.2\.0\.weight"):
        export.export(ExportConfig(checkpoint=str(folder), to=Format.safetensors, out=str(tmp_path / "a.safetensors")))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_proof_sees_one_changed_weight(runs: Callable[[str], Path], tmp_path: Path) -> None:
    """With initial batch norms the change would have no effect: the last gains are 0."""
    encoder = sce_video.load_encoder(runs("r3d50"))
    path = tmp_path / "a.pyth"
    export.WRITERS["slowfast"](encoder, path, CLIPS)
    assert export.prove(encoder, "slowfast", path, CLIPS) == 0
    written = torch.load(path, weights_only=True)
    for key in ("s2.pathway0_res0.branch1_bn.running_var", "s4.pathway0_res5.branch2.c.weight"):
        changed = {**written["model_state"], key: written["model_state"][key] * 1.5}
        torch.save({"model_state": changed}, path)
        difference = export.prove(encoder, "slowfast", path, CLIPS)
        assert difference is not None
        assert difference > export.TOLERANCE


@pytest.mark.parametrize(
    ("name", "to", "offered"),
    [
        ("r2plus1d18", "slowfast", "fits r3d50, not r2plus1d18: for r2plus1d18 there are torchvision, safetensors, onnx"),
        ("r3d18", "slowfast", "fits r3d50, not r3d18: for r3d18 there are safetensors, onnx"),
        ("r3d18", "pytorchvideo", "fits r3d50, not r3d18"),
        ("r3d50", "torchvision", "fits r2plus1d18, r3d18_torchvision, not r3d50: for r3d50 there are pytorchvideo, slow"),
    ],
)
def test_only_what_fits_is_offered(name: str, to: str, offered: str) -> None:
    with pytest.raises(InputError, match=f"to={to} {offered}"):
        export.require_fit(to, name)


@pytest.mark.parametrize("to", ["onnx", "safetensors"])
def test_missing_packages_are_named(to: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, to, None)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "site-packages" not in path])
    sys.modules.pop(to, None)
    with pytest.raises(InputError, match=f"to={to} needs the package {to}: pip install 'sce_video\\[export\\]'"):
        export.export(ExportConfig(checkpoint=str(run), to=Format(to), out=str(tmp_path / "a")))


def test_slowfast_is_told_what_to_set(run: Path, tmp_path: Path) -> None:
    said = export.how_to_load("slowfast", sce_video.load_encoder(run), tmp_path / "a.pyth")
    for option in (
        f"TRAIN.CHECKPOINT_FILE_PATH {tmp_path / 'a.pyth'} TRAIN.CHECKPOINT_TYPE pytorch",
        "MODEL.ARCH slow RESNET.DEPTH 50",
        'DATA.NUM_FRAMES 4\n  DATA.MEAN "[0.4, 0.4, 0.4]" DATA.STD "[0.3, 0.3, 0.3]"',
        "(1, 7, 7)",
    ):
        assert option in said


@pytest.mark.slow
def test_tool_writes_once(run: Path, tmp_path: Path) -> None:
    arguments = [f"checkpoint={run}", "to=safetensors", "out=a.safetensors"]
    result = run_tool("export", *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "24 of 24 tensors of tiny3d, sce_video layout under online.backbone.; projector 128 -> 16 -> 8" in result.stdout
    before = (tmp_path / "a.safetensors").read_bytes()
    again = run_tool("export", *arguments, cwd=tmp_path)
    assert again.returncode == 70
    assert again.stderr == "error: out=a.safetensors exists: choose another file, or remove it\n"
    assert (tmp_path / "a.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["checkpoint={run}", "to=slowfast", "out=a"], "to=slowfast fits r3d50, not tiny3d"),
        (["checkpoint=nowhere", "to=onnx", "out=a"], "no checkpoint in 'nowhere'"),
        (["checkpoint={run}", "to=caffe", "out=a"], "option to=caffe"),
        (["checkpoint={run}", "out=a"], "option to must be given"),
        (["checkpoint={run}", "to=onnx", "out=a", "size=-1"], "size (-1) must be a number from 0 to 8192"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, run: Path, tmp_path: Path) -> None:
    result = run_tool("export", *(argument.format(run=run) for argument in arguments), cwd=tmp_path)
    assert result.returncode == 70, result.stderr
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
