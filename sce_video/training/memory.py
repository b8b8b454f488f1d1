"""GPU memory of a training step, counted without a GPU: a step on torch's `meta` device, which has sizes but no values.

Counted: weights, gradients, optimiser state, buffers, the activations of the largest part of a step, the clips of this batch
and the next, and the temporary memory of the augmentation. Not counted: the CUDA context and cuDNN's workspaces (1 to 2 GB).
On one H200 the count of r3d50, 16 frames of 224 px, 64 videos was within 3 % of the measured peak.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .. import distributed
from ..augment.batched import MEMORY_BYTES
from ..config.pretrain import PretrainConfig
from ..config.shared import Optimizer, Precision, System
from ..errors import InputError, log
from ..models.recompute import recompute_stages
from .loop import pass_through

USABLE = 0.92  # of a GPU's memory: the rest is for the CUDA context, workspaces and gaps between blocks


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of tensors on `device` that operations inside create and that are still in use."""

    def __init__(self, device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.live = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.device.type == self.device:
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


class StepMemory(NamedTuple):
    """Bytes of a step on one GPU: `fixed` whatever the batch, and `per_video` of a micro-batch."""

    fixed: float
    per_video: float

    def at(self, videos: int) -> float:
        """Return the bytes for a micro-batch of this many videos on one GPU."""
        return self.fixed + self.per_video * videos

    def most_videos(self, memory_bytes: float) -> int:
        """Return the largest micro-batch that fits a GPU of this size, 0 if none does."""
        return max(0, int((USABLE * memory_bytes - self.fixed) / self.per_video))


def count_step(cfg: PretrainConfig, build_method: Callable[[PretrainConfig], nn.Module]) -> StepMemory:
    """Count a pretraining step of this configuration."""
    half = cfg.optim.precision in (Precision.bf16, Precision.fp16)
    dtype = torch.bfloat16 if half else torch.float32
    try:
        with torch.device("meta"):
            method: Any = build_method(cfg)
    except NotImplementedError as error:  # a network that computes while it is built
        raise InputError(f"the memory of {cfg.model.backbone} cannot be counted: {str(error).splitlines()[0]}") from error
    if cfg.system.recompute:
        recompute_stages(method.online.backbone)
    weights, grown = _weight_bytes(method, adam=cfg.optim.name is Optimizer.adamw)
    weights += grown // 2 if half else 0  # autocast's copies
    method = method.to(dtype)
    few, many = (_activations(method, cfg, videos, dtype) for videos in (4, 8))
    pixels = sum(3 * cfg.data.num_frames * size**2 for size in cfg.augment.sizes)
    clips = (2 if cfg.system.overlap else 1) * pixels * (2 if cfg.system.bf16_clips else 4)
    slope = (many - few) / 4
    return StepMemory(weights + MEMORY_BYTES + few - 4 * slope, slope + clips)


def _weight_bytes(method: nn.Module, *, adam: bool) -> tuple[int, int]:
    """Return the bytes of all tensors with gradients and optimiser state, and those of the trained parameters alone."""
    trained = sum(parameter.nbytes for parameter in method.parameters() if parameter.requires_grad)
    # The backward pass adds a gradient to each trained parameter, the optimiser one tensor or two.
    return sum(tensor.nbytes for tensor in (*method.parameters(), *method.buffers())) + (3 if adam else 2) * trained, trained


def _activations(method: Any, cfg: PretrainConfig, videos: int, dtype: torch.dtype) -> float:
    """Return the peak of the bytes that the forward and backward passes of `videos` videos add, without gradients."""
    views = [torch.empty(videos, 3, cfg.data.num_frames, size, size, dtype=dtype, device="meta") for size in cfg.augment.sizes]
    for parameter in method.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    with LiveMemory("meta") as memory:
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        pass_through(SimpleNamespace(method=method, autocast=None, scaler=scaler, accumulate=1), method, views, None, 0.0)
    return float(memory.peak)


def fit_to_gpus(cfg: PretrainConfig, build_method: Callable[[PretrainConfig], nn.Module], device: torch.device) -> None:
    """Set `optim.accumulate` for `optim.fit=auto`, and log it. All ranks call it. Raises InputError without GPUs."""
    if device.type != "cuda":
        raise InputError("optim.fit=auto needs a GPU: leave it out, or plan for one with tools/plan.py")
    sizes = distributed.gather_objects(torch.cuda.get_device_properties(device).total_memory)
    memory = count_step(cfg, build_method)
    cfg.optim.accumulate = fit(memory, batch=cfg.optim.batch, processes=len(sizes), memory_bytes=min(sizes))
    local = cfg.optim.batch // len(sizes) // cfg.optim.accumulate
    if distributed.rank() == 0:
        log.info(
            f"optim.fit: accumulate={cfg.optim.accumulate}, {local} videos per GPU and micro-batch, about "
            f"{memory.at(local) / 1e9:.1f} of {min(sizes) / 1e9:.1f} GB"
        )


def fit(memory: StepMemory, *, batch: int, processes: int, memory_bytes: float) -> int:
    """Return the fewest micro-batches per step with which `batch` videos on this many GPUs of memory_bytes fit.

    The local batch is the largest that fits and divides the batch evenly; batch norm sees one micro-batch of all processes.

    Raises InputError if not even two videos fit.
    """
    most = memory.most_videos(memory_bytes)
    for accumulate in range(1, batch // processes + 1):
        local, rest = divmod(batch, processes * accumulate)
        if rest == 0 and local * processes >= 2 and local <= most:
            return accumulate
    raise InputError(
        f"a batch of {batch} videos on {processes} GPUs of {memory_bytes / 1e9:.0f} GB does not fit: one GPU needs "
        f"{memory.at(1) / 1e9:.1f} GB for one video; add GPUs, or choose system.recompute=true or smaller clips"
    )


def describe_needs(method: nn.Module, optimizer: torch.optim.Optimizer, total_steps: int, hours: float, system: System) -> str:
    """Return a line on the videos, the weights, and the memory and disk that training takes before its first step."""
    held, trained = _weight_bytes(method, adam=isinstance(optimizer, torch.optim.AdamW))
    saved = held - trained  # gradients are not
    numbers = sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)
    copies = system.keep + 1 + (total_steps // system.keep_every if system.keep_every else 0)
    return (
        f"{hours:.2g} hours of video; {numbers / 1e6:.1f} M trained parameters; {held / 1e6:.0f} MB of "
        f"memory for networks and optimiser, besides clips; up to {copies * saved / 1e6:.0f} MB of disk for checkpoints"
    )
