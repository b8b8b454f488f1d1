"""Small real videos, made once per session with PyAV, and helpers to run programs as a user does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from started_python import StartedPython
from torch import nn

from sce_video.command_line import compose_values, typed
from sce_video.config.finetune import FinetuneConfig
from sce_video.config.pretrain import PretrainConfig
from sce_video.data import synthetic

S = TypeVar("S")
ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
# For programs that import modules of the tests: the code beside them, whatever is installed.
TESTS_TOO = os.pathsep.join([str(ROOT / "tests"), str(ROOT), str(ROOT / "tools")])
TINY_RECIPE = [
    "recipe=demo",
    "data.num_frames=4",
    "data.clip_seconds=0.8",
    "augment.size=32",
    "model.backbone=tiny3d",
    "model.hidden=32",
    "model.projection=16",
    "sce.queue=40",
    "optim.batch=8",
    "optim.epochs=4",
    "optim.name=sgd",
    "optim.lr_per_256=1.0",
    "optim.warmup_epochs=1",
    "monitor.train=''",
    "monitor.val=''",
    "system.workers=0",
    "system.log_every=1",
]

MULTI_CROP = ["augment.local.views=2", "augment.local.size=16"]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests leave nothing in the user's cache, nor take anything from it."""
    os.environ["SCE_VIDEO_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def conformance() -> dict[str, Any]:
    """Input -> expected value, measured on the reference implementation."""
    loaded: dict[str, Any] = json.loads((ROOT / "tests/data/conformance.json").read_text())
    return loaded


def numbered_frames(num_frames: int, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """Frames uint8 [T, H, W, 3] that show their own number as a brightness, over a smooth random picture."""
    rng = np.random.default_rng(seed)
    picture = rng.uniform(0, 60, (height // 8, width // 8, 3)).repeat(8, axis=0).repeat(8, axis=1)
    levels = 20 + np.arange(num_frames) % 16 * 10
    return (picture[None] + levels[:, None, None, None]).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `class_a/0.mp4 ...` of 32 H.264 files in 4 classes, with train.csv and val.csv."""
    folder = tmp_path_factory.mktemp("videos")
    lines: dict[str, list[str]] = {"train": ["path,label"], "val": ["path,label"]}
    for index in range(32):
        frames, label = synthetic.render("train", index)
        name = f"class_{label % 4}/{index:02d}.mp4"
        (folder / name).parent.mkdir(exist_ok=True)
        synthetic.encode(folder / name, frames[:60, :48, :64], gop=12)
        lines["val" if index >= 24 else "train"].append(f"{name},{label % 4}")
    for split, rows in lines.items():
        (folder / f"{split}.csv").write_text("\n".join(rows) + "\n")
    return folder


@cache
def started_python() -> StartedPython:
    """The Python of this test process whose children are the programs."""
    return StartedPython({**os.environ, "OMP_NUM_THREADS": "1"})


def run_program(
    program: str, *arguments: str | Path, cwd: Path | None = None, timeout: int = 240, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program of this checkout, such as "data_prep/doctor.py", in a process of its own."""
    command = [str(ROOT / program), *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    if started_python().fits(env):
        return started_python().run(command, cwd=cwd or Path.cwd(), env=env, timeout=timeout)
    command = [sys.executable, *command]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, check=False)


def run_tool(
    name: str, *arguments: str, cwd: Path, processes: int = 0, timeout: int = 240, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run tools/<name>.py with this Python, or under torchrun with `processes` processes."""
    if not processes:
        return run_program(f"tools/{name}.py", *arguments, cwd=cwd, timeout=timeout, **environment)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", "0"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    command += [str(ROOT / "tools" / f"{name}.py"), *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)


def compose_program(program: str, schema: type[S], *overrides: str) -> S:
    """The options of tools/<program>.py with these overrides, as the program gets them."""
    return typed(compose_values(program, schema, overrides), schema)


def compose_pretrain(*overrides: str) -> PretrainConfig:
    """The options of tools/pretrain.py."""
    return compose_program("pretrain", PretrainConfig, *overrides)


def compose_finetune(*overrides: str) -> FinetuneConfig:
    """The options of tools/finetune.py."""
    return compose_program("finetune", FinetuneConfig, *overrides)


def records(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    """The loss of every logged step, checked to be consecutive."""
    steps = [record for record in records(folder) if "train/loss" in record]
    assert [record["step"] for record in steps] == list(range(1, len(steps) + 1))
    return [record["train/loss"] for record in steps]


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give every norm a gain, bias, mean and variance of its own (last gains start at 0 and would hide errors).

    Gains are small, so that the features of 50 layers stay near 1: differences are judged by their absolute size.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm3d)):
            for values, low, high in (
                (module.weight, 0.2, 0.6),
                (module.bias, -0.5, 0.5),
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
            ):
                if values is not None:
                    values.data.uniform_(low, high, generator=generator)
    return network.eval()
