"""Pretraining on several gloo ranks, forked from a process that has imported torch and done nothing else with it.

(Forked from the tests themselves they could not train: autograd refuses once it has run in the parent.)

A rank writes what came of it to rank<r>.pt: {"state": method's tensors} or {"error": type, "message": text}.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from conftest import compose_pretrain
from torch import nn

from sce_video import distributed
from sce_video.config.pretrain import PretrainConfig
from sce_video.errors import InputError, Preempted, Stopped
from sce_video.programs.pretrain import build_method, pretrain

Plant = Callable[[int], None]  # changes something in a rank, given its number


def train(folder: Path, dtype: str, rank: int, overrides: list[str], plant: Plant | None, environment: dict[str, str]) -> None:
    """Pretrain in this process, which is a rank or alone."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    built: list[nn.Module] = []

    def build(cfg: PretrainConfig) -> nn.Module:
        # Ranks that start from different weights must not matter: rank 0's are broadcast.
        torch.manual_seed(cfg.seed + distributed.rank())
        method = build_method(cfg).to(getattr(torch, dtype))
        method.register_forward_pre_hook(lambda _, x: ([view.to(getattr(torch, dtype)) for view in x[0]], *x[1:]))
        built.append(method)
        return method

    outcome: dict[str, Any] = {}
    try:
        if plant is not None:
            plant(rank)
        pretrain(compose_pretrain(*overrides), build)
    except (InputError, Stopped, Preempted, RuntimeError) as error:
        outcome = {"error": type(error).__name__, "message": str(error)}
    if built:
        outcome["state"] = built[0].state_dict()
    torch.save(outcome, folder / f"rank{rank}.pt")


def start(
    world: int,
    folder: Path,
    overrides: list[str],
    *,
    dtype: str = "float32",
    plant: Plant | None = None,
    environment: Mapping[str, str] | None = None,
) -> list[Any]:
    """Start `world` ranks; one is a process without a group. `<rank>` in the overrides is a rank's number."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]

    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sce_video.programs.pretrain"])
    own = {"SCE_VIDEO_CACHE": os.environ["SCE_VIDEO_CACHE"], **(environment or {})}
    processes = []
    for rank in range(world):
        if world > 1:
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
            own |= {name: str(value) for name, value in names.items()}
            own |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        filled = [item.replace("<rank>", str(rank)) for item in overrides]
        processes.append(context.Process(target=train, args=(folder, dtype, rank, filled, plant, dict(own))))
    for process in processes:
        process.start()
    return processes


def run(world: int, folder: Path, overrides: list[str], *, seconds: float = 120, **options: Any) -> list[dict[str, Any]]:
    """Run `world` ranks to their end and return what each of them wrote; empty for one that was killed."""
    processes = start(world, folder, overrides, **options)
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    hanging = [process.pid for process in processes if process.is_alive()]
    for pid in hanging:
        os.kill(pid, signal.SIGKILL)
    assert not hanging, f"{len(hanging)} of {world} ranks did not end in {seconds:g} s"
    paths = [folder / f"rank{rank}.pt" for rank in range(world)]
    return [torch.load(path, weights_only=True) if path.exists() else {} for path in paths]
