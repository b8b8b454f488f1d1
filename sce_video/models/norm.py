"""Batch norm, addition and ReLU in one pass over memory, for channels-last clips on GPUs.

torch runs them as separate kernels: 53 % of an r3d50 step on an H200 (docs/performance.md). `FusedNorm` reads its input twice and
writes its output once; backward it reads two tensors twice and writes one. `fuse_norms` swaps it into a built network. Its
definition in torch operations, `FusedNorm.define`, also runs on CPUs, without triton, and in other layouts.
"""

from __future__ import annotations

import importlib
import os
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import distributed
from ..distributed import BatchNormAcrossRanks
from ..errors import log

TILE = 4096  # values that a program handles at once
PROGRAMS = 1056  # of a reduction: eight per multiprocessor of an H100 or H200
NORM = nn.modules.batchnorm._BatchNorm
_noted: set[str] = set()


class FusedNorm(BatchNormAcrossRanks):
    """Batch norm of [B, C, ...], then `+ residual` if one is given, then ReLU if `relu` is set; the same dtype as the input.

    State keys and running statistics are `nn.BatchNorm3d`'s. Half-precision tensors are computed in float32 and rounded once, not
    after each of three operations. across_ranks: in training, take the statistics of all ranks' rows.

    The backward pass needs the ReLU's mask. Without a residual it is computed again from the input, which is kept anyway. With
    one it is read from the output: the next convolution keeps that tensor too, so it takes no more memory.
    """

    relu = False
    across_ranks = False

    @classmethod
    def of(cls, norm: NORM) -> FusedNorm:
        """Return a norm that shares the parameters and buffers of another one."""
        fused = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta")
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            setattr(fused, name, getattr(norm, name))
        fused.across_ranks = isinstance(norm, BatchNormAcrossRanks)
        return fused.train(norm.training)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        kernels = _kernels_for(input, residual)
        if kernels is None:
            return self.define(input, residual)
        wide = torch.float64 if input.dtype == torch.float64 else torch.float32
        batch = self.training or self.running_mean is None or self.running_var is None
        running: Any = (self.running_mean, self.running_var)
        stats = self._statistics(input, kernels, wide) if batch else torch.stack(running).to(wide)
        across = batch and self.across_ranks and distributed.active()
        output: Tensor = _Normalise.apply(
            input, residual, self.weight, self.bias, stats, self.eps, self.relu, batch, across, kernels
        )
        return output

    def define(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Compute the same as `forward`, by torch operations one after another."""
        output = super().forward(input)
        if residual is not None:
            output = output.add_(residual) if output.dtype == residual.dtype else output + residual
        return F.relu_(output) if self.relu else output

    @torch.no_grad()
    def _statistics(self, input: Tensor, kernels: Any, wide: torch.dtype) -> Tensor:
        """Return mean, biased variance and count of each channel, [3, C], over ranks; update the running statistics."""
        sizes = _Sizes(input)
        parts = input.new_empty(sizes.chunks, 3, sizes.columns, dtype=wide)
        stats = parts.new_empty(3, sizes.columns)
        kernels.statistics[sizes.chunks * sizes.blocks,](input, parts, sizes.rows, sizes.chunk_rows, **sizes.tile)
        # The merge is short, and narrow blocks share its latency among more programs.
        merge = partial(kernels.merge[-(-sizes.columns // 16),], C=sizes.columns, N=128, W=16)
        follow = self.training and self.running_mean is not None and self.momentum is not None
        running = (self.running_mean, self.running_var, self.momentum) if follow else (None, None, 0.0)
        if self.across_ranks and distributed.active():
            merge(parts, stats, None, None, 0.0, sizes.chunks)
            parts = distributed.gather(stats[None])
        merge(parts, stats, *running, len(parts))
        if follow:
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        elif self.training:
            self._follow(*stats)
        return stats


class _Sizes:
    """How a tensor [B, C, ...] is divided: tiles of C channels, as wide as seven eighths of their columns are used."""

    def __init__(self, tensor: Tensor) -> None:
        self.columns = tensor.shape[1]
        self.rows = tensor.numel() // self.columns
        width = next((w for w in (64, 32) if -(-self.columns // w) * w * 7 <= self.columns * 8), 16)
        height = TILE // width
        self.tile = {"C": self.columns, "N": height, "W": width, "num_warps": 8}
        self.blocks = -(-self.columns // width)
        self.tiles = -(-self.rows // height)
        self.chunk_rows = -(-self.tiles // max(1, PROGRAMS // self.blocks)) * height  # of a reduction
        self.chunks = -(-self.rows // self.chunk_rows)


class _Normalise(torch.autograd.Function):
    """Normalise, add and clip by given statistics; `batch`: they are those of x (over all ranks, if `across`)."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        stats: Tensor,
        eps: float,
        relu: bool,
        batch: bool,
        across: bool,
        kernels: Any,
    ) -> Tensor:
        sizes = _Sizes(x)
        ctx.options = {**sizes.tile, "EPS": eps}
        ctx.relu, ctx.batch, ctx.across, ctx.kernels, ctx.sizes = relu, batch, across, kernels, sizes
        y = torch.empty_like(x)
        kernels.transform[sizes.tiles * sizes.blocks,](x, residual, y, stats, weight, bias, sizes.rows, RELU=relu, **ctx.options)
        ctx.save_for_backward(x, y if relu and residual is not None else None, weight, bias, stats)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, y, weight, bias, stats = ctx.saved_tensors
        sizes, relu, (needs_x, needs_residual, *needs_affine) = ctx.sizes, ctx.relu, ctx.needs_input_grad[:4]
        # The gradient of a mean over time and space is broadcast: it is copied to the input's layout.
        g = gradient.movedim(1, -1).contiguous().movedim(-1, 1)
        own = totals = dx = None
        if ctx.batch or any(needs_affine) or y is not None:
            parts = stats.new_empty(sizes.chunks, 2, sizes.columns)
            masked = g if y is None else torch.empty_like(x)
            ctx.kernels.sums[sizes.chunks * sizes.blocks,](
                g, x, y, masked, stats, weight, bias, parts, sizes.rows, sizes.chunk_rows, RELU=relu, **ctx.options
            )
            g, relu = masked, relu and y is None
            own = totals = parts.sum(dim=0)
            if ctx.across:
                totals = own.clone()
                torch.distributed.all_reduce(totals)
        if needs_x:
            dx = torch.empty_like(x)
            ctx.kernels.slope[sizes.tiles * sizes.blocks,](
                g, x, dx, stats, weight, bias, totals if ctx.batch else None, sizes.rows, RELU=relu, **ctx.options
            )
        of_bias, of_weight = (None, None) if weight is None or own is None else own.to(weight.dtype)
        return (dx, g if needs_residual else None, of_weight, of_bias, *[None] * 6)


def _kernels_for(input: Tensor, residual: Tensor | None) -> Any:
    """Return the module of kernels if they can do this, else None; the reason is logged once, except on CPUs."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not interpreted and (input.device.type != "cuda" or input.device.index != torch.cuda.current_device()):
        return None
    alike = residual is None or (residual.shape, residual.dtype) == (input.shape, input.dtype)
    if not (alike and _is_matrix(input) and (residual is None or _is_matrix(residual))):
        return _note("clips are not in channels-last layout (system.channels_last=true), or an addition mixes dtypes")
    if input.numel() < 2 * input.shape[1]:  # torch refuses it, or has no rows to normalise
        return None
    try:
        return importlib.import_module("sce_video.models.norm_kernels")
    except ImportError as error:
        return _note(f"triton cannot be imported ({error})")


def _is_matrix(tensor: Tensor) -> bool:
    return tensor.dim() >= 2 and tensor.movedim(1, -1).is_contiguous()


def _note(reason: str) -> None:
    if reason not in _noted:
        _noted.add(reason)
        log.warning(f"system.fused_norm: torch's own batch norm runs, because {reason}")


# Swapping it into a network.

PLAIN_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAcrossRanks)
# Modules that run a ReLU directly after the norm before it, beside nn.Sequential; by name, as libraries are loaded on demand.
IN_ORDER = {
    *("sce_video.models.backbones._Stem", "sce_video.models.backbones._Branch"),
    *("pytorchvideo.models.stem.ResNetBasicStem", "pytorchvideo.models.resnet.BottleneckBlock"),
    "pytorchvideo.layers.convolutions.Conv2plus1d",
}
# Residual blocks: the parts of the shortcut, those of the branch, and the activation after their sum.
_BRANCH2 = (("branch1_conv", "branch1_norm"), ("branch2",), "activation")
RESIDUAL = {
    "sce_video.models.backbones._BasicBlock": _BRANCH2,
    "pytorchvideo.models.resnet.ResBlock": _BRANCH2,
    "torchvision.models.video.resnet.BasicBlock": (("downsample",), ("conv1", "conv2"), "relu"),
    "torchvision.models.video.resnet.Bottleneck": (("downsample",), ("conv1", "conv2", "conv3"), "relu"),
}


def fuse_norms(network: nn.Module) -> str:
    """Replace the batch norms inside by `FusedNorm`, with the ReLU and the addition behind them where the module is known.

    State keys, parameters and buffers stay, and on a CPU the results to the bit. Logs and returns a line on what was replaced.
    """
    fused: dict[nn.Module, FusedNorm] = {}
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in PLAIN_NORMS and not (child._forward_hooks or child._forward_pre_hooks):
                fused[child] = fused.get(child) or FusedNorm.of(child)  # type: ignore[arg-type]
                setattr(parent, name, fused[child])
    relus = sum(_take_relus(module) for module in network.modules() if _runs_in_order(module))
    additions = sum(_take_addition(module) for module in network.modules() if _name(module) in RESIDUAL)
    left = sum(isinstance(m, NORM) and not isinstance(m, FusedNorm) for m in network.modules())
    more = f"; {left} batch norms of other kinds stay as they are" if left else ""
    line = f"{len(fused)} batch norms fused, {relus} with their ReLU, {additions} with an addition and its ReLU{more}"
    if distributed.rank() == 0:
        log.info(f"system.fused_norm: {line}")
    return line


def _name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _runs_in_order(module: nn.Module) -> bool:
    plain = isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    return plain or _name(module) in IN_ORDER


def _take_relus(module: nn.Module) -> int:
    """Let each norm apply the ReLU that follows it; an identity takes the ReLU's name."""
    children, taken = list(module.named_children()), 0
    for (_, norm), (name, activation) in zip(children, children[1:], strict=False):
        if isinstance(norm, FusedNorm) and type(activation) is nn.ReLU:
            norm.relu = True
            setattr(module, name, nn.Identity())
            taken += 1
    return taken


def _take_addition(block: Any) -> bool:
    """Let the last norm of a residual block add the shortcut and apply the ReLU; False if the block is not as known."""
    shortcuts, branches, activation = RESIDUAL[_name(block)]
    last = list(getattr(block, branches[-1]).children())
    adds = block.branch_fusion(2.0, 3.0) == 5.0 if hasattr(block, "branch_fusion") else True
    known = _runs_in_order(getattr(block, branches[-1])) and isinstance(last[-1], FusedNorm) and not last[-1].relu
    if not (adds and known and type(getattr(block, activation)) is nn.ReLU and "forward" not in vars(block)):
        return False
    last[-1].relu = True
    block.forward = partial(_run_block, block, shortcuts, branches)
    return True


def _run_block(block: nn.Module, shortcuts: tuple[str, ...], branches: tuple[str, ...], clips: Tensor) -> Tensor:
    shortcut = clips
    for name in shortcuts:
        part: nn.Module | None = getattr(block, name, None)
        shortcut = shortcut if part is None else part(shortcut)
    for name in branches[:-1]:
        clips = getattr(block, name)(clips)
    *layers, norm = getattr(block, branches[-1]).children()
    for layer in layers:
        clips = layer(clips)
    output: Tensor = norm(clips, shortcut)
    return output
