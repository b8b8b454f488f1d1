"""Run by test_norm.py under TRITON_INTERPRET=1: the kernels of `FusedNorm` beside torch's norm in float64, a line of JSON a case.

python tests/interpreted_norm.py few|all|others|networks|ranks
"""

from __future__ import annotations

import copy
import json
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from sce_video.distributed import synchronise_batch_norm
from sce_video.models import backbones, norm, recompute

SHAPES = [(2, 24, 3, 5, 7), (1, 3, 2, 9, 11), (4, 70, 2, 6, 5), (3, 33, 9, 4), (6, 10), (2, 5, 7), (2, 1, 1, 1, 3)]
NORMS: dict[int, Callable[..., Any]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def matrix(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype, mean: float = 0.0) -> Tensor:
    """Return random values in channels-last layout, already rounded to the dtype."""
    values = (torch.randn(shape, generator=generator, dtype=torch.float64) * 2 + mean).to(dtype)
    return values.movedim(1, -1).contiguous().movedim(-1, 1)


def pair(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype, **options: Any) -> tuple[Any, norm.FusedNorm]:
    """Return torch's norm in float64 and ours, with equal parameters and buffers."""
    truth = NORMS[len(shape)](shape[1], **options)
    for tensor in (*truth.parameters(), truth.running_mean, truth.running_var):
        nn.init.uniform_(tensor, 0.5, 1.5, generator=generator)
    ours = norm.FusedNorm.of(copy.deepcopy(truth))
    return truth.double(), ours.double() if dtype == torch.float64 else ours


def error(expected: Tensor, found: Tensor) -> float:
    """Return the largest difference, relative to the largest value if that is above 1."""
    return ((expected - found.double()).abs().max() / expected.abs().max().clamp(min=1)).item()


def compare(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    relu: bool,
    add: bool,
    *,
    mode: str = "training",
    mean: float = 3.0,
    **options: Any,
) -> dict[str, float]:
    """Return the errors of output, gradients and running statistics."""
    generator = torch.Generator().manual_seed(0)
    truth, ours = pair(shape, generator, dtype, **options)
    ours.relu = relu
    for each in (truth, ours):
        each.train(mode == "training").requires_grad_(mode != "frozen")
    x, residual, gradient = (matrix(shape, generator, dtype, at) for at in (mean, 1.0, 0.0))
    results = []
    for module, kind in ((truth, torch.float64), (ours, dtype)):
        inputs = [tensor.clone().to(kind).requires_grad_() for tensor in (x, residual)]
        if module is truth:
            output = truth(inputs[0]) + (inputs[1] if add else 0)
            output = output.relu() if relu else output
        else:
            output = ours(inputs[0], inputs[1] if add else None)
            assert output.dtype == dtype
            assert output.stride() == x.stride()
        output.backward(gradient.to(kind))
        results.append([output.detach(), inputs[0].grad, *([inputs[1].grad] if add else [])])
        results[-1] += [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        results[-1] += [buffer.double() for buffer in module.buffers()]
    return {"largest": max(error(*each) for each in zip(*results, strict=True)), "compared": len(results[0])}


def cases(*, few: bool) -> Iterator[dict[str, Any]]:
    """Compare shapes, dtypes, and everything that changes which kernel runs."""
    for shape in SHAPES[:2] if few else SHAPES:
        for dtype in (torch.float32, torch.bfloat16) if few else (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            for relu, add in ((True, False), (True, True)) if few else ((0, 0), (1, 0), (0, 1), (1, 1)):
                found = compare(shape, dtype, bool(relu), bool(add))
                yield {"case": f"{shape} relu {relu} add {add}", "dtype": str(dtype).split(".")[1], **found}
    further: list[dict[str, Any]] = [{"mode": "evaluation"}, {"mode": "frozen"}, {"momentum": None}, {"affine": False}]
    further += [{"mean": 30.0}]
    for options in further:
        for add in (True, False):
            found = compare(SHAPES[0], torch.float32, True, add, **options)
            yield {"case": f"{options} add {add}", "dtype": "float32", **found}


def others() -> Iterator[dict[str, Any]]:
    """Compare what runs torch's operations instead: other layouts, dtypes that differ, one row."""
    generator = torch.Generator().manual_seed(0)
    truth, ours = pair(SHAPES[0], generator, torch.float32)
    ours.relu = True
    x = torch.randn(SHAPES[0], generator=generator)
    strided = torch.randn(4, 24, 3, 5, 7, generator=generator)[::2]
    for name, input, residual in (
        ("contiguous", x, x),
        ("strided", strided, strided),
        ("dtypes", matrix(SHAPES[0], generator, torch.float32), x.double()),
    ):
        expected = (truth(input.double()) + residual.double()).relu()
        yield {"case": name, "dtype": "float32", "largest": error(expected, ours(input, residual)), "compared": 1}
    try:
        ours(torch.randn(1, 24, 1, 1, 1))
    except ValueError as refused:
        yield {"case": str(refused)}


def networks() -> Iterator[dict[str, Any]]:
    """Train a step of small clips through whole networks, plain and fused, with and without recomputation."""
    for name in ("r3d18", "r3d18_torchvision"):
        torch.manual_seed(0)
        plain, _ = backbones.build(name)
        fused, again = copy.deepcopy(plain), copy.deepcopy(plain)
        for network in (fused, again):
            norm.fuse_norms(network)
            for conv in (module for module in network.modules() if isinstance(module, nn.Conv3d)):
                conv.register_forward_hook(lambda _, __, output: output.contiguous(memory_format=torch.channels_last_3d))
        recompute.recompute_stages(again)
        clips = torch.randn(2, 3, 2, 16, 16).contiguous(memory_format=torch.channels_last_3d)
        found: list[list[Tensor]] = []
        for network, dtype in ((plain, torch.float64), (fused, torch.float64), (again, torch.float64)):
            network.to(dtype, memory_format=torch.channels_last_3d)
            output = network(clips.to(dtype))
            output.square().sum().backward()
            found.append([output.detach(), *(p.grad for p in network.parameters()), *(b.double() for b in network.buffers())])
        for kind, tensors in zip(("fused", "recomputed"), found[1:], strict=True):
            largest = max(error(*each) for each in zip(found[0], tensors, strict=True))
            yield {"case": f"{name} {kind}", "largest": largest, "compared": len(tensors)}
    assert not norm._noted, "every norm ran a kernel"


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Return input, residual and gradient of the whole batch."""
    generator = torch.Generator().manual_seed(0)
    x, residual, gradient = (matrix((6, 3, 2, 4, 4), generator, torch.float64, at) for at in (100.0, 0.0, 0.0))
    return x, residual, gradient


def one_rank(rank: int, port: int, folder: str) -> None:
    """Take a step on unequal shares of a batch; count the collectives."""
    dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=2)
    share = slice(0, 4) if rank == 0 else slice(4, 6)
    block = nn.Sequential(norm.FusedNorm(3, dtype=torch.float64))
    assert synchronise_batch_norm(block)[0] is block[0]
    block[0].relu = True
    x, residual, gradient = (tensor[share] for tensor in batch())
    x, residual = x.clone().requires_grad_(), residual.clone().requires_grad_()
    with torch.profiler.profile() as profile:
        output = block[0](x, residual)
        output.backward(gradient)
    calls = sum(event.name.startswith("gloo:") for event in profile.events())
    state = {"output": output.detach(), "x": x.grad, "residual": residual.grad, "calls": calls}
    torch.save({**state, "buffers": [b.double() for b in block.buffers()], "weight": block[0].weight.grad}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def ranks() -> Iterator[dict[str, Any]]:
    """Compare two ranks with one process that has the whole batch."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
        free.close()
        mp.spawn(one_rank, args=(port, folder), nprocs=2)
        first, second = (torch.load(Path(folder) / f"{rank}.pt") for rank in (0, 1))
    x, residual, gradient = (tensor.requires_grad_() for tensor in batch())
    plain = nn.BatchNorm3d(3).double()
    output = (plain(x) + residual).relu()
    output.backward(gradient.detach())
    for name, expected in (("output", output.detach()), ("x", x.grad), ("residual", residual.grad)):
        yield {"case": name, "largest": error(expected, torch.cat([first[name], second[name]])), "compared": 1}
    for rank in (first, second):
        for expected, buffer in zip(plain.buffers(), rank["buffers"], strict=True):
            yield {"case": "buffer", "largest": error(expected.double(), buffer), "compared": 1}
    yield {"case": "weight", "largest": error(plain.weight.grad, first["weight"] + second["weight"]), "compared": 1}
    yield {"case": "collectives", "calls": [first["calls"], second["calls"]]}


if __name__ == "__main__":
    assert norm._kernels_for(torch.zeros(4, 2), None), "the kernels run here, not torch's operations"
    chosen = {
        "few": lambda: cases(few=True),
        "all": lambda: cases(few=False),
        "others": others,
        "networks": networks,
        "ranks": ranks,
    }
    for name in sys.argv[1:]:
        for line in chosen[name]():
            print(json.dumps(line), flush=True)
