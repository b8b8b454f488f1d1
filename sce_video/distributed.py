"""Several processes as one: every function is the identity in a single process.

Started by `torchrun` (its RANK, WORLD_SIZE, LOCAL_RANK), with nccl on GPUs and gloo on CPUs. Tensors of all ranks are
always concatenated rank-major, so that with contiguous blocks of data per rank the result is the one-process order.
Batch norm is synchronised on both kinds of device: torch's own `SyncBatchNorm` on GPUs, `BatchNormAcrossRanks` on CPUs
(torch's refuses CPU tensors inside a process group).
"""

from __future__ import annotations

import datetime
import inspect
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from .errors import log

T = TypeVar("T")
TIMEOUT = datetime.timedelta(minutes=10)  # a rank that is this late at a collective is taken for dead


@contextmanager
def session(device: str) -> Iterator[torch.device]:
    """Join the process group if started by torchrun, yield this rank's device, and leave the group at a good end.

    device: `cpu`, `cuda`, or `auto` (cuda when there is one).
    """
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    local = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if kind == "cuda" else kind)
    if kind == "cuda":
        torch.cuda.set_device(local)
    if not launched():
        yield local
        return
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=TIMEOUT)
    yield local
    dist.destroy_process_group()  # not after an error: it could wait for ranks that are gone


def launched() -> bool:
    """Whether a launcher (torchrun) started this process, and several of them belong together."""
    return "RANK" in os.environ


def active() -> bool:
    """Whether this process is one of a group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if active() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if active() else 1


def barrier() -> None:
    """Wait until all ranks are here."""
    if active():
        dist.barrier()


def warn(doubts: Sequence[str]) -> None:
    """Print sentences on stderr, once for all ranks."""
    for doubt in doubts if rank() == 0 else ():
        log.warning(doubt)


def gather(tensor: Tensor) -> Tensor:
    """Return the tensors of all ranks concatenated along dimension 0, rank-major; equal shapes, no gradient."""
    if not active():
        return tensor.detach()
    output = tensor.new_empty((world_size() * len(tensor), *tensor.shape[1:]))
    dist.all_gather_into_tensor(output, tensor.detach().contiguous())
    return output


def gather_objects(value: T) -> list[T]:
    """Return the picklable values of all ranks, in rank order. For rare, small things: file names, counts."""
    if not active():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def mean(tensor: Tensor) -> Tensor:
    """Return the mean over ranks, detached."""
    if not active():
        return tensor.detach()
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def broadcast_module(module: nn.Module) -> None:
    """Give every rank rank 0's parameters and buffers. DDP without buffer broadcast does not do it for the buffers."""
    if active():
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.detach(), src=0)


def can_sum(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether tensors of this type can be summed over ranks. All ranks call it; one process has nothing to sum."""
    if not active():
        return True
    try:
        dist.all_reduce(torch.zeros(1, dtype=dtype, device=device))
    except (RuntimeError, TypeError):  # what gloo and nccl, or torch before them, raise for types they do not know
        return False
    return True


def parallel(module: nn.Module, device: torch.device, *, compress: bool = False) -> nn.Module:
    """Wrap a module so that gradients are averaged over ranks; the module itself in a single process.

    Buffers are not sent around at every step: they are equal by construction (the queue is filled with gathered keys,
    batch norms use global statistics), and the queue alone would be 64 MiB a step. Gradients are views of the buckets
    that are sent, not copies. compress: gradients are rounded to bfloat16 on their way, half the bytes; all ranks still
    get the same sum.
    """
    if not active():
        return module
    # torch 2.15 renamed the option and warns about the old name.
    options = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in options else "broadcast_buffers"
    arguments: dict[str, Any] = {"device_ids": [device] if device.type == "cuda" else None, name: False}
    network = DistributedDataParallel(module, gradient_as_bucket_view=True, **arguments)
    if compress:
        network.register_comm_hook(None, bf16_compress_hook)  # type: ignore[no-untyped-call]
    return network


class _SumOverRanks(torch.autograd.Function):
    """All-reduce whose gradient is the all-reduce of the gradients: every rank's loss depends on every rank's term."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class BatchNormAcrossRanks(nn.modules.batchnorm._BatchNorm):
    """Batch norm whose training statistics are those of all ranks' rows together (formula version for CPUs).

    Two differentiable all-reduces: mean first, then centred squares, which loses no digits when the mean is large.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch norm needs [B, C, ...], got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not active():
            return super().forward(input)
        axes = [axis for axis in range(input.dim()) if axis != 1]
        shape = [1, -1] + [1] * (input.dim() - 2)
        sums = torch.cat([input.sum(axes), input.new_full((1,), input.numel() / input.shape[1])])
        sums = _SumOverRanks.apply(sums)
        count = sums[-1].detach()
        average = sums[:-1] / count
        centred = input - average.view(shape)
        variance = _SumOverRanks.apply((centred * centred).sum(axes)) / count
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                assert self.num_batches_tracked is not None
                self.num_batches_tracked.add_(1)
                factor = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(average, factor)
                self.running_var.lerp_(variance * count / (count - 1), factor)
        output: Tensor = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            output = output * self.weight.view(shape) + self.bias.view(shape)
        return output


def synchronise_batch_norm(module: nn.Module, device: torch.device) -> nn.Module:
    """Replace every batch norm inside by one over all ranks; the module itself in a single process."""
    if not active():
        return module
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return converted
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        synced = BatchNormAcrossRanks(module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats)
        # The same parameters, not copies: the target's stay frozen.
        synced.weight, synced.bias = module.weight, module.bias
        synced.running_mean, synced.running_var = module.running_mean, module.running_var
        synced.num_batches_tracked = module.num_batches_tracked
        return synced.train(module.training)
    for name, child in module.named_children():
        setattr(module, name, synchronise_batch_norm(child, device))
    return module
