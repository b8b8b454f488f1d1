"""The fused norm is torch's batch norm, addition and ReLU: its kernels (interpreted), its definition, and whole networks."""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, TESTS_TOO, TINY_RECIPE, compose_finetune, compose_pretrain, losses
from torch import Tensor, nn

from sce_video.models import backbones, norm
from sce_video.models.encoder import MLP, FrozenEncoder
from sce_video.models.momentum import momentum_copy
from sce_video.programs import finetune, pretrain
from sce_video.programs.export import write_onnx
from sce_video.weights.load import load_encoder

NEEDS_TRITON = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="CPU-only torch comes without triton")
# float32: the arithmetic's own. Half precision: one rounding, 2^-9 and 2^-12 of the value, and gradients that cancel.
TOLERANCES = {"float64": 1e-7, "float32": 1e-5, "bfloat16": 2**-7, "float16": 2**-10}


def interpret(*cases: str) -> list[dict[str, Any]]:
    """Run the kernels by triton's interpreter, in a process that imports triton for it."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": TESTS_TOO, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(ROOT / "tests/interpreted_norm.py"), *cases]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def check(lines: list[dict[str, Any]]) -> None:
    assert lines
    for line in lines:
        assert line["largest"] < TOLERANCES[line["dtype"]], line


@NEEDS_TRITON
def test_kernels_are_torchs_norm_addition_and_relu() -> None:
    """Output, all gradients and running statistics; in other layouts torch's operations run, and the log says so."""
    lines = interpret("few", "others")
    check(lines[:-1])
    assert "Expected more than 1 value per channel" in lines[-1]["case"]
    assert max(line["largest"] for line in lines[:-1] if line["dtype"] == "float32" and "mean" not in line["case"]) < 1e-6


@NEEDS_TRITON
@pytest.mark.slow
def test_kernels_take_any_size_and_dtype() -> None:
    check(interpret("all"))


@NEEDS_TRITON
@pytest.mark.slow
def test_networks_on_kernels_are_the_networks_also_recomputed() -> None:
    lines = interpret("networks")
    assert len(lines) == 4
    assert max(line["largest"] for line in lines) < 1e-7


@NEEDS_TRITON
@pytest.mark.slow
def test_kernels_over_two_ranks_are_the_whole_batch_with_one_collective_each_way() -> None:
    *lines, collectives = interpret("ranks")
    assert max(line["largest"] for line in lines) < 1e-7
    assert collectives["calls"] == [2, 2]


def small_step(network: nn.Module, clips: Tensor) -> list[Tensor]:
    output = network(clips)
    output.square().mean().backward()
    return [output, *(p.grad for p in network.parameters() if p.grad is not None), *network.buffers()]


FUSED = {
    "tiny3d": "4 batch norms fused, 4 with their ReLU, 0 with an addition and its ReLU",
    "r3d18": "20 batch norms fused, 9 with their ReLU, 8 with an addition and its ReLU",
    "r3d50": "53 batch norms fused, 33 with their ReLU, 16 with an addition and its ReLU",
    "r2plus1d18": "37 batch norms fused, 26 with their ReLU, 8 with an addition and its ReLU",
    "r3d18_torchvision": "20 batch norms fused, 9 with their ReLU, 8 with an addition and its ReLU",
}


@pytest.mark.parametrize(
    "name", [name if name in ("tiny3d", "r3d18") else pytest.param(name, marks=pytest.mark.slow) for name in backbones.BACKBONES]
)
def test_a_fused_network_is_the_network_to_the_bit_on_a_cpu(name: str) -> None:
    """Results, gradients, statistics and state keys, so that weights load both ways; a copy of it is fused too."""
    torch.manual_seed(0)
    plain, _ = backbones.build(name)
    for parameter in plain.parameters():  # zero at the start in the last norm of a block: would hide it
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    fused = copy.deepcopy(plain)
    line = norm.fuse_norms(fused)
    assert line == FUSED.get(name, line)
    fused = momentum_copy(fused).requires_grad_()
    clips = torch.randn(2, 3, 1 if name.startswith("resnet") else 16 if name[:2] == "s3" else 4, 32, 32)
    if name in ("s3d", "s3dg", "slowfast_r50", "mvit_v2_s", "swin3d_t"):
        clips = torch.randn(2, 3, 16, 64, 64)
    for expected, found in zip(small_step(plain, clips), small_step(fused, clips), strict=True):
        assert torch.equal(expected, found)
    assert list(plain.state_dict()) == list(fused.state_dict())
    plain.load_state_dict(fused.state_dict())
    fused.load_state_dict(plain.state_dict())


def test_what_is_not_known_stays() -> None:
    """A residual block of one's own keeps its addition and ReLU; a norm with a hook and torch's SyncBatchNorm stay."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.relu = nn.BatchNorm3d(3), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(x - self.norm(x))

    watched = nn.BatchNorm3d(3)
    watched.register_forward_hook(lambda *_: None)
    network = nn.Sequential(Block(), watched, nn.ReLU(), nn.SyncBatchNorm(3), nn.LayerNorm(3))
    clips = torch.randn(2, 3, 2, 4, 4)
    expected = copy.deepcopy(network[0])(clips)
    line = norm.fuse_norms(network)
    assert line.startswith(
        "1 batch norms fused, 0 with their ReLU, 0 with an addition and its ReLU; 2 batch norms of other kinds"
    )
    assert torch.equal(network[0](clips), expected)
    assert network[1] is watched
    assert isinstance(network[2], nn.ReLU)


def test_heads_are_fused_too_and_frozen_norms_stay_frozen() -> None:
    head = MLP([8, 16, 4], last_norm=True)
    plain = copy.deepcopy(head)
    assert norm.fuse_norms(head).startswith("2 batch norms fused, 1 with their ReLU")
    features = torch.randn(6, 8)
    assert torch.equal(head(features), plain(features))
    frozen = nn.Sequential(nn.BatchNorm3d(3).eval().requires_grad_(False))
    norm.fuse_norms(frozen)
    assert not frozen[0].training
    assert not frozen[0].weight.requires_grad


def test_pretraining_and_finetuning_with_fused_norms_are_the_same_runs(
    videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """To the bit on a CPU; the log says how many norms were replaced, and the run is an encoder like others."""
    words = [*TINY_RECIPE, f"data.train={videos / 'train.csv'}", "system.recompute=true"]
    with caplog.at_level(logging.INFO):
        for fused in ("false", "true"):
            pretrain.pretrain(compose_pretrain(*words, f"system.fused_norm={fused}", f"out={tmp_path / fused}"))
    assert "system.fused_norm: 15 batch norms fused, 13 with their ReLU" in caplog.text
    assert losses(tmp_path / "false") == losses(tmp_path / "true")
    clips = torch.rand(2, 3, 8, 32, 32)
    one, other = (load_encoder(tmp_path / fused) for fused in ("false", "true"))
    assert torch.equal(one(clips), other(clips))
    tuned = []
    for fused in ("false", "true"):
        sets = [f"train={videos / 'train.csv'}", f"test={videos / 'val.csv'}", f"checkpoint={tmp_path / 'true'}"]
        small = [
            "recipe=demo",
            "optim.epochs=1",
            "optim.warmup_epochs=0",
            "optim.batch=4",
            "system.workers=0",
            "system.log_every=1",
        ]
        out = tmp_path / f"tuned_{fused}"
        finetune.finetune(compose_finetune(*sets, *small, f"system.fused_norm={fused}", f"out={out}"))
        tuned.append(losses(out))
    assert tuned[0] == tuned[1]


@pytest.mark.slow
def test_a_fused_network_is_exported(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network, _ = backbones.build("r3d18")
    clips = torch.rand(2, 3, 4, 32, 32)
    norm.fuse_norms(network)
    clip: dict[str, float] = {"num_frames": 4, "clip_seconds": 1.0, "size": 32}
    encoder = FrozenEncoder(network, "r3d18", mean=0.45, std=0.225, clip=clip)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_onnx(encoder, tmp_path / "fused.onnx", clips)
    session = runtime.InferenceSession(str(tmp_path / "fused.onnx"), providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"clips": clips.numpy()})[0])
    assert torch.allclose(found, encoder(clips), atol=1e-4)
