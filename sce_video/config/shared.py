"""Options that several programs share, and the named choices."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from omegaconf import MISSING

from ..errors import InputError, given, require


class Decoder(Enum):
    auto = "auto"
    decord = "decord"
    pyav = "pyav"
    torchcodec = "torchcodec"


class LoopFilter(Enum):
    exact = "exact"
    reference = "reference"
    off = "off"


class Transport(Enum):
    auto = "auto"
    rgb = "rgb"
    planes = "planes"


class ResizeOn(Enum):
    device = "device"
    worker = "worker"


class Device(Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Precision(Enum):
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Exchange(Enum):
    fp32 = "fp32"
    bf16 = "bf16"


class Optimizer(Enum):
    lars = "lars"
    sgd = "sgd"
    adamw = "adamw"


class Labels(Enum):
    file = "file"
    folder = "folder"


@dataclass
class Timing:
    """Random choice of a clip's frames beyond its start; off by default."""

    speed_min: float = 1.0  # a clip spans clip_seconds times a factor from here, log-uniform
    speed_max: float = 1.0  # to here; above 1 it looks faster
    frame_jitter: float = (
        0.0  # each frame is taken up to this share of half the frames' distance earlier or later, at most 1
    )

    def __post_init__(self) -> None:
        if not 0 < self.speed_min <= self.speed_max:
            raise InputError(
                f"data.speed_min..speed_max ({self.speed_min}..{self.speed_max}) must be positive and rise"
            )
        require(self.frame_jitter, "data.frame_jitter", lambda value: 0 <= value <= 1, "in [0, 1]")


@dataclass
class Optim:
    """The optimiser and the length of training."""

    name: Optimizer = MISSING
    batch: int = MISSING  # videos per optimiser step, of all processes and micro-batches together
    lr_per_256: float = MISSING  # learning rate for a batch of 256; scaled linearly with the batch
    epochs: int = MISSING
    warmup_epochs: float = MISSING  # linear warm-up, then a cosine to 0
    weight_decay: float = MISSING  # never on biases and norms
    momentum: float = 0.9  # AdamW: first beta
    trust_coefficient: float = 0.001  # LARS only
    accumulate: int = 1  # micro-batches per step
    precision: Precision = Precision.fp32  # of the networks; the loss is always float32; on a CPU only fp32
    exchange: Exchange = Exchange.fp32  # what gradients are sent between processes as; bf16: half the bytes, rounded

    def __post_init__(self) -> None:
        require(self.batch, "optim.batch", lambda value: value >= 2, "at least 2: batch norm needs it")
        require(self.epochs, "optim.epochs", lambda value: value >= 1, "at least 1")
        require(self.lr_per_256, "optim.lr_per_256", lambda value: value > 0, "positive")
        require(self.accumulate, "optim.accumulate", lambda value: value >= 1, "at least 1")
        if given(self.epochs, self.warmup_epochs) and not 0 <= self.warmup_epochs <= self.epochs:
            raise InputError(
                f"optim.warmup_epochs ({self.warmup_epochs}) must be between 0 and optim.epochs ({self.epochs})"
            )

    @property
    def lr(self) -> float:
        """The base learning rate: lr_per_256 * batch / 256."""
        return self.lr_per_256 * self.batch / 256

    @property
    def sends_bf16(self) -> bool:
        """Whether gradients are rounded to bfloat16 on their way between processes."""
        return self.exchange is Exchange.bf16


@dataclass
class System:
    """Plumbing: changes nothing that is learnt."""

    device: Device = Device.auto
    workers: int = -1  # decoding processes per training process; -1: one per core of its share
    channels_last: bool = False  # memory layout of the clips that the network gets
    bf16_clips: bool = False  # the network gets clips in bfloat16: half the memory; for optim.precision=bf16
    log_every: int = 20  # steps
    save_every: int = 200  # steps; the last step is always saved
    keep: int = 2  # checkpoints: the newest
    keep_every: int = 0  # and those of every so many steps; 0: none
    read_timeout: float = 60.0  # seconds that a decoding process may take for one video
    worker_videos: int = 20000  # that a decoding process reads before it is replaced (its memory may grow); 0: never
    step_timeout: float = 600.0  # seconds; a step that takes longer ends the process
    agree_every: int = 1000  # steps; whether all processes still hold the same values; 0: never

    def __post_init__(self) -> None:
        for name in ("log_every", "save_every", "keep"):
            require(getattr(self, name), f"system.{name}", lambda value: value >= 1, "at least 1")
        for name in ("keep_every", "worker_videos", "agree_every"):
            require(getattr(self, name), f"system.{name}", lambda value: value >= 0, "at least 0")
        for name in ("read_timeout", "step_timeout"):
            require(getattr(self, name), f"system.{name}", lambda value: value > 0, "positive seconds")
        if given(self.read_timeout, self.step_timeout) and self.step_timeout <= self.read_timeout + 10:
            raise InputError(
                f"system.step_timeout ({self.step_timeout:g}) must be more than 10 s above system.read_timeout "
                f"({self.read_timeout:g}): a step waits while a video that hangs is given up"
            )
        require(self.workers, "system.workers", lambda value: value >= -1, "at least -1")


def check_clip_precision(system: Any, optim: Any) -> None:
    """Raise InputError for clips in bfloat16 that a network in another precision would get."""
    built = isinstance(system, System) and isinstance(optim, Optim)
    if built and system.bf16_clips and optim.precision is not Precision.bf16:
        raise InputError(f"system.bf16_clips needs optim.precision=bf16, not {optim.precision.value}")
