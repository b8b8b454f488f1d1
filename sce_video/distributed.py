"""Several processes as one: every function is the identity in a single process.

Started by `torchrun` (its RANK, WORLD_SIZE, LOCAL_RANK), with nccl on GPUs and gloo on CPUs. Tensors of all ranks are
always concatenated rank-major, so that with contiguous blocks of data per rank the result is the one-process order.
Batch norm is synchronised by `BatchNormAcrossRanks` on both kinds of device.
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

from .errors import InputError, log

T = TypeVar("T")
# torch 2.14 renamed it and warns about the old name.
all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
TIMEOUT_SECONDS = 600.0  # a rank that is this late at a collective is taken for dead


@contextmanager
def session(
    device: str,
    backend: str = "auto",
    *,
    timeout_seconds: float = TIMEOUT_SECONDS,
    precision: str = "fp32",
    deterministic: bool = False,
) -> Iterator[torch.device]:
    """Join the process group if started by torchrun, yield this rank's device, and leave the group at a good end.

    device: `cpu`, `cuda`, or `auto` (cuda when there is one). backend: `nccl`, `gloo`, or `auto` (nccl on GPUs). With nccl,
    Python objects still travel by gloo, without the GPU. timeout_seconds: of a collective. precision, deterministic: of GPUs,
    see `_set_arithmetic`.

    Raises InputError where this rank has no GPU of its own and the backend needs one.
    """
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if backend == "auto":
        backend = "nccl" if kind == "cuda" else "gloo"
    local = torch.device("cuda", gpu_of_this_rank(shared=backend == "gloo")) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(local)
        _set_arithmetic(precision, deterministic=deterministic)
    if not launched():
        yield local
        return
    timeout = datetime.timedelta(seconds=timeout_seconds)
    if backend == "nccl":
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=timeout, device_id=local)
    else:
        dist.init_process_group("gloo", timeout=timeout)
    yield local
    dist.destroy_process_group()  # not after an error: it could wait for ranks that are gone


def _set_arithmetic(precision: str, *, deterministic: bool) -> None:
    """Let a GPU compute float32 as float32 ("fp32") or as TF32 ("tf32"), with the fastest kernels or with repeatable ones."""
    if precision in ("fp32", "tf32"):
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.benchmark = not deterministic  # the sizes of clips do not change
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # Operations without a deterministic form are named in a warning, not refused.
        torch.use_deterministic_algorithms(True, warn_only=True)


def gpu_of_this_rank(*, shared: bool) -> int:
    """Return the index of this rank's GPU among those it sees: its local rank, or 0 where the launcher shows it one only."""
    rank, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if not count:
        raise InputError(f"a GPU was asked for, and torch {torch.__version__} sees none here: choose the device cpu, or auto")
    if rank < count:
        return rank
    if os.environ.get("CUDA_VISIBLE_DEVICES") and count == 1 and not shared:
        return 0
    if shared:
        return rank % count
    raise InputError(
        f"process {rank} of this machine needs a GPU of its own, and {count} are visible: start as many processes as GPUs, or "
        "give system.backend=gloo to share them"
    )


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


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a host tensor to the device without waiting: for GPUs from pinned memory."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def gather(tensor: Tensor) -> Tensor:
    """Return the tensors of all ranks concatenated along dimension 0, rank-major; equal shapes, no gradient."""
    if not active():
        return tensor.detach()
    output = tensor.new_empty((world_size() * len(tensor), *tensor.shape[1:]))
    all_gather(output, tensor.detach().contiguous())
    return output


class _GatherWithGradient(torch.autograd.Function):
    """Every rank's loss depends on every rank's rows, so that the gradient sums over ranks."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:  # type: ignore[override]
        ctx.rows = len(tensor)
        return gather(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        total = gradient.contiguous()
        dist.all_reduce(total)
        return total[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """Return the tensors of all ranks as `gather` does; gradients flow back to the rank that each row came from."""
    gathered: Tensor = _GatherWithGradient.apply(tensor) if active() else tensor
    return gathered


def gather_rows(tensor: Tensor | None) -> Tensor | None:
    """Return the rows of all ranks' CPU tensors [N, C], rank-major; N may differ, and None stands for no rows."""
    if not active():
        return tensor
    shapes = gather_objects(None if tensor is None else tuple(tensor.shape))
    present = [shape for shape in shapes if shape is not None]
    if not present:
        return None
    counts = [0 if shape is None else shape[0] for shape in shapes]
    padded = torch.zeros(max(counts), *present[0][1:])
    if tensor is not None:
        padded[: len(tensor)] = tensor
    rows = gather(padded).unflatten(0, (len(counts), -1))
    return torch.cat([part[:count] for part, count in zip(rows, counts, strict=True)])


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


def parallel(module: nn.Module, device: torch.device, *, compress: bool = False, unused: bool = False) -> nn.Module:
    """Wrap a module so that gradients are averaged over ranks; the module itself in a single process.

    Buffers are not sent around at every step: they are equal by construction (the queue is filled with gathered keys,
    batch norms use global statistics), and the queue alone would be 64 MiB a step. Gradients are views of the buckets
    that are sent, not copies. compress: gradients are rounded to bfloat16 on their way, half the bytes; all ranks still
    get the same sum. unused: a step may leave parameters without a gradient, which costs a search through the graph.
    """
    if not active():
        return module
    # torch 2.15 renamed the option and warns about the old name.
    options = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in options else "broadcast_buffers"
    arguments: dict[str, Any] = {"device_ids": [device] if device.type == "cuda" else None, name: False}
    arguments["find_unused_parameters"] = unused
    network = DistributedDataParallel(module, gradient_as_bucket_view=True, **arguments)
    if compress:
        network.register_comm_hook(None, bf16_compress_hook)  # type: ignore[no-untyped-call]
    return network


class _NormaliseOverRanks(torch.autograd.Function):
    """Batch norm with the statistics of all ranks: one gather in the forward pass, one sum in the backward pass.

    Every rank's loss depends on every rank's rows, so that the gradient sums over ranks. Nothing is read back to the host.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, rows: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, count: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(rows, weight, mean, var, count)
        ctx.eps = eps
        return nn.functional.batch_norm(rows, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rows, weight, mean, var, count = ctx.saved_tensors
        # This rank's sums of gradient * normalised and of the gradient; statistics count as constants here.
        _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, rows, weight, mean, var, None, None, False, ctx.eps, [False, True, True]
        )
        totals = torch.stack([of_bias, of_weight])
        dist.all_reduce(totals)
        totals /= count
        # gradient of rows = scale * (gradient - totals[0] - normalised * totals[1]), a sum of three products per channel
        inverse = torch.rsqrt(var + ctx.eps)
        scale = inverse if weight is None else inverse * weight
        slope = -scale * inverse * totals[1]
        offset = -scale * totals[0] - slope * mean
        shape = [1, -1] + [1] * (rows.dim() - 2)
        result = torch.addcmul(offset.view(shape), rows, slope.view(shape)).addcmul_(gradient, scale.view(shape))
        needs = ctx.needs_input_grad
        return result.to(rows.dtype), of_weight if needs[1] else None, of_bias if needs[2] else None, None, None, None, None


class BatchNormAcrossRanks(nn.modules.batchnorm._BatchNorm):
    """Batch norm whose training statistics are those of all ranks' rows together: on CPUs and GPUs, for any memory format.

    The ranks' means and variances are merged, weighted by their numbers of rows, so that no digits are lost where the mean is
    large. Unlike torch's `SyncBatchNorm` it runs on CPUs, and never waits for the device. across_ranks: whether it does so.
    """

    across_ranks = True

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch norm needs [B, C, ...], got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and self.across_ranks and active()):
            return super().forward(input)
        with torch.no_grad():
            means, variances = torch.batch_norm_update_stats(input, None, None, 0.0)
            counts = torch.full_like(means, input.numel() // input.shape[1])
            means, variances, counts = gather(torch.stack([means, variances, counts])[None]).unbind(dim=1)  # [ranks, C]
            count = counts.sum(dim=0)
            mean = (means * counts).sum(dim=0) / count
            var = ((variances + (means - mean) ** 2) * counts).sum(dim=0) / count
            self._follow(mean, var, count)
        output: Tensor = _NormaliseOverRanks.apply(input, self.weight, self.bias, mean, var, count, self.eps)
        return output

    def _follow(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Update the running statistics from those of `count` [C] values per channel."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = self.num_batches_tracked.reciprocal() if self.momentum is None else self.momentum
        self.running_mean += share * (mean - self.running_mean)
        self.running_var += share * (var * (count / (count - 1)) - self.running_var)


def synchronise_batch_norm(module: nn.Module) -> nn.Module:
    """Replace every batch norm inside by one over all ranks; the module itself in a single process."""
    if not active():
        return module
    if isinstance(module, BatchNormAcrossRanks):
        module.across_ranks = True
        return module
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        synced = BatchNormAcrossRanks(module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats)
        # The same parameters, not copies: the target's stay frozen.
        synced.weight, synced.bias = module.weight, module.bias
        synced.running_mean, synced.running_var = module.running_mean, module.running_var
        synced.num_batches_tracked = module.num_batches_tracked
        return synced.train(module.training)
    for name, child in module.named_children():
        setattr(module, name, synchronise_batch_norm(child))
    return module
