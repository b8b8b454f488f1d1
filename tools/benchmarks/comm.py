"""Bytes that processes exchange per step: counted in a real step, computed by a formula, and predicted for a recipe.

A small SCE model takes a step on gloo processes while the benchmark records the caller and tensor size of every collective;
the formula must give the same bytes. The table applies it to a recipe: gradients, batch-norm statistics, keys, loss. The
queue costs nothing, because every rank enqueues the same gathered keys. The last row shows the cost of broadcasting the
queue as a buffer, DDP's default.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections import Counter
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from benchmarks.measure import machine
from sce_video import distributed
from sce_video.command_line import compose_options
from sce_video.config.pretrain import PretrainConfig
from sce_video.methods import build_method
from sce_video.training import optim
from sce_video.training.update import share

FLOAT = 4  # bytes
# Our name of a collective, by the calling file and function.
CALLERS = {
    ("default_hooks.py", "_allreduce_fut"): "gradients",
    ("default_hooks.py", "_compress_hook"): "gradients",
    ("distributed.py", "forward"): "batch norm",
    ("distributed.py", "backward"): "batch norm",
    ("distributed.py", "gather"): "keys",
    ("distributed.py", "mean"): "loss",
}


class Sizes(NamedTuple):
    """Sizes that determine the bytes of a step: trained parameters, batch-norm channels of each branch, keys."""

    parameters: int
    online_channels: int
    target_channels: int
    views: int  # through the online encoder; the number of keys is equal
    width: int
    queue: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the sub-command."""
    parser.add_argument("--processes", type=int, default=2, help="gloo processes of the counted step")
    parser.add_argument("--recipe", default="sce_r3d50_k400_16f", help="pretraining recipe of the table")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 32], help="processes that the table is for")


def run(options: argparse.Namespace) -> None:
    """Count a step with gradients as float32 and as bfloat16, compare with the formula, and print the recipe's table."""
    print(machine(["torch"]))
    for compress in (False, True):
        counted, sizes, rows = count_step(options.processes, compress=compress)
        expected = payload(sizes, rows=rows, compress=compress)
        print(f"one step of a small SCE on {options.processes} gloo processes, gradients as {'bf16' if compress else 'fp32'}:")
        for name, size in expected.items():
            print(f"  {name:<12} {counted[name]:>12,} bytes counted {size:>12,} by formula")
        assert dict(counted) == {name: size for name, size in expected.items() if size}, "the formula is wrong"
    cfg = compose_options("pretrain", PretrainConfig, [f"recipe={options.recipe}", "data.train=x"])
    print(f"\n{options.recipe}, {cfg.optim.batch} videos per step, MB that each process sends per step (rings):")
    sizes = measure_sizes(build_method(cfg), symmetric=cfg.method_options.symmetric)
    for ranks in options.ranks:
        print("\n".join(table(sizes, cfg.optim.batch, ranks)))


def payload(sizes: Sizes, *, rows: int, compress: bool = False) -> dict[str, int]:
    """Return the input bytes of each collective on one rank, per step of one micro-batch of `rows` clips.

    Batch norm gathers mean, variance and count per channel in the forward pass, and reduces two sums in the backward pass.
    """
    online, target = sizes.online_channels, sizes.target_channels
    norm = 3 * online + 2 * online + 3 * target
    return {
        "gradients": sizes.parameters * (FLOAT // 2 if compress else FLOAT),
        "batch norm": sizes.views * norm * FLOAT,
        "keys": sizes.views * rows * sizes.width * FLOAT,
        "loss": 2 * FLOAT,  # and the flag to stop
        "queue": 0,
    }


def table(sizes: Sizes, batch: int, ranks: int) -> list[str]:
    """Return lines with the megabytes sent per rank and step by ring algorithms, for `batch` videos on `ranks` GPUs."""
    # A ring all-gather forwards the part of every other rank; a ring all-reduce takes two rounds.
    once, ring = ranks - 1, 2 * (ranks - 1) / ranks
    lines = [f"  {ranks} processes:"]
    for compress in (False, True):
        found = payload(sizes, rows=batch // ranks, compress=compress)
        gathered = sizes.views * 3 * (sizes.online_channels + sizes.target_channels)
        reduced = found["batch norm"] - gathered * FLOAT
        sent = {
            "gradients": ring * found["gradients"],
            "batch norm": once * gathered * FLOAT + ring * reduced,
            "keys": once * found["keys"],
            "loss": ring * found["loss"],
        }
        words = ", ".join(f"{name} {size / 1e6:.3g}" for name, size in sent.items())
        lines.append(f"    {'bf16' if compress else 'fp32'}: {words}; together {sum(sent.values()) / 1e6:.4g}")
    lines.append(f"    for comparison, a queue that is broadcast each step: {sizes.queue * sizes.width * FLOAT / 1e6:.4g}")
    return lines


def measure_sizes(method: Any, *, symmetric: bool = True) -> Sizes:
    """Return the sizes of a method."""
    norms = {
        name: [m for m in branch.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for name, branch in (("online", method.online), ("target", method.target))
    }
    return Sizes(
        parameters=sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad),
        online_channels=sum(norm.num_features for norm in norms["online"]),
        target_channels=sum(norm.num_features for norm in norms["target"]),
        views=2 if symmetric else 1,
        width=method.queue.keys.shape[1],
        queue=method.queue.keys.shape[0],
    )


def count_step(processes: int, *, compress: bool) -> tuple[Counter[str], Sizes, int]:
    """Take two steps on gloo processes; return rank 0's bytes in the second, the sizes, and the rows per rank."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    found: Any = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_run_rank, args=(processes, port, compress, found), nprocs=processes)  # type: ignore[attr-defined,no-untyped-call]
    counted, sizes, rows = found.get()
    return counted, Sizes(*sizes), rows


def _run_rank(rank: int, processes: int, port: int, compress: bool, found: Any) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    rows = 4
    with distributed.session("cpu") as device:
        overrides = ["model.hidden=32", "model.projection=16", "sce.queue=256", f"optim.batch={rows * processes}"]
        cfg = compose_options("pretrain", PretrainConfig, overrides)
        method: Any = distributed.synchronise_batch_norm(build_method(cfg))
        network = distributed.parallel(method, device, compress=compress)
        if not compress:
            network.register_comm_hook(None, allreduce_hook)  # type: ignore[operator]
        optimizer = optim.LARS(method.online.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        for _ in range(2):  # DDP learns the order of the gradients in the first step
            counted = _count_collectives()
            views = [torch.randn(rows, 3, 4, 32, 32), torch.randn(rows, 3, 4, 32, 32)]
            taken = network(views, None, 0.0)
            taken.loss.backward()
            share([taken.loss], method.online, optimizer, scaler, stop=False)()
            optimizer.step()
            method.after_step(taken.keys, 0.0)
            optimizer.zero_grad()
        if rank == 0:
            found.put((counted, tuple(measure_sizes(method)), rows))


def _count_collectives() -> Counter[str]:
    """Wrap torch's collectives to count their input bytes by our name of the caller."""
    counted: Counter[str] = Counter()

    def wrap(call: Any, argument: int) -> Any:
        original = getattr(call, "original", call)

        def wrapper(*arguments: Any, **options: Any) -> Any:
            frame = sys._getframe(1)
            if frame.f_code.co_name == "gather" and frame.f_back and frame.f_back.f_code.co_name == "forward":
                frame = frame.f_back  # batch norm gathers by the same function as the keys
            code = frame.f_code
            name = CALLERS.get((os.path.basename(code.co_filename), code.co_name), code.co_name)
            counted[name] += arguments[argument].nbytes
            return original(*arguments, **options)

        wrapper.original = original  # type: ignore[attr-defined]
        return wrapper

    dist.all_reduce = wrap(dist.all_reduce, 0)
    distributed.all_gather = wrap(distributed.all_gather, 1)
    dist.broadcast = wrap(dist.broadcast, 0)
    return counted
