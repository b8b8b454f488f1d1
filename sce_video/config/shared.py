"""Options that several programs share, and the named choices."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from omegaconf import MISSING

from ..errors import InputError, given, require


class Decoder(Enum):
    auto, decord, pyav, torchcodec = "auto", "decord", "pyav", "torchcodec"


class LoopFilter(Enum):
    exact, reference, off = "exact", "reference", "off"


class Transport(Enum):
    auto, rgb, planes = "auto", "rgb", "planes"


class ResizeOn(Enum):
    device, worker = "device", "worker"


class Device(Enum):
    auto, cpu, cuda = "auto", "cpu", "cuda"


class Changed(Enum):
    refuse, accept = "refuse", "accept"


class Backend(Enum):
    auto, nccl, gloo = "auto", "nccl", "gloo"


class Augmentation(Enum):
    auto, batched, per_clip = "auto", "batched", "per_clip"


class Precision(Enum):
    fp32, tf32, bf16, fp16 = "fp32", "tf32", "bf16", "fp16"


class Exchange(Enum):
    fp32, bf16 = "fp32", "bf16"


class Optimizer(Enum):
    lars, sgd, adamw = "lars", "sgd", "adamw"


class Labels(Enum):
    file, folder = "file", "folder"


class Branch(Enum):
    auto, online, target = "auto", "online", "target"


@dataclass
class Weights:
    """The part of a run or weight file to load."""

    branch: Branch = Branch.auto  # encoder of a run: the trained one or its moving average; auto: the one its method states
    key: str = ""  # dotted keys, e.g. model.ema; empty: the first that is known (weights.layouts.WRAPPERS)


@dataclass
class Timing:
    """Random speed and frame positions of a clip; off by default."""

    speed_min: float = 1.0  # a clip spans clip_seconds times a log-uniform factor from here
    speed_max: float = 1.0  # to here; above 1 it looks faster
    frame_jitter: float = 0.0  # largest shift of each frame, as a share in [0, 1] of half the distance between frames

    def __post_init__(self) -> None:
        if not 0 < self.speed_min <= self.speed_max:
            raise InputError(f"data.speed_min..speed_max ({self.speed_min}..{self.speed_max}) must be positive and rise")


@dataclass
class Reading(Timing):
    """How training clips are read."""

    decoder: Decoder = Decoder.auto
    loop_filter: LoopFilter = LoopFilter.exact  # reference, off: faster H.264, approximate pixels (docs/decoding.md)
    transport: Transport = Transport.auto  # of clips to the device; planes: YUV planes, half the bytes; auto: on GPUs
    resize_on: ResizeOn = ResizeOn.device  # worker: workers scale crops larger than augment.size, and round them
    changed: Changed = Changed.refuse  # rows of the list that differ when a run is continued; accept: train on them
    max_bad_fraction: float = 0.01  # share of unreadable videos above which the run stops
    # Results of data_prep/doctor.py: its health.csv or folder, `none`, or `auto`: the one beside the list, if any.
    health: str = "auto"


@dataclass
class Optim:
    """Optimiser and length of training."""

    name: Optimizer = MISSING
    batch: int = MISSING  # videos per optimiser step, over all processes and micro-batches
    lr_per_256: float = MISSING  # learning rate at batch 256; scaled linearly with the batch
    epochs: int = MISSING
    warmup_epochs: float = MISSING  # linear warm-up, then a cosine to 0
    weight_decay: float = MISSING  # not applied to biases and norms
    momentum: float = 0.9  # AdamW: first beta
    trust_coefficient: float = 0.001  # LARS only
    accumulate: int = 1  # micro-batches per step
    precision: Precision = Precision.fp32  # of the networks; the loss is always float32; a CPU supports only fp32
    exchange: Exchange = Exchange.fp32  # dtype of gradients sent between processes; bf16: half the bytes, rounded

    def __post_init__(self) -> None:
        require(self.batch, "optim.batch", lambda value: value >= 2, "at least 2, for batch norm")
        if given(self.batch, self.accumulate) and self.batch < 2 * self.accumulate:
            raise InputError(
                f"optim.accumulate ({self.accumulate}) leaves micro-batches of 1 of {self.batch}; batch norm needs 2"
            )
        if given(self.epochs, self.warmup_epochs):
            check_warmup(self.warmup_epochs, self.epochs)

    @property
    def lr(self) -> float:
        """Base learning rate: lr_per_256 * batch / 256."""
        return self.lr_per_256 * self.batch / 256

    @property
    def sends_bf16(self) -> bool:
        """Whether processes exchange gradients in bfloat16."""
        return self.exchange is Exchange.bf16


@dataclass
class System:
    """Options that do not change the trained weights."""

    device: Device = Device.auto
    workers: int = -1  # decoding workers per training process; -1: one per core of its share
    backend: Backend = Backend.auto  # of several processes; auto: nccl on GPUs; with gloo they may share a GPU
    channels_last: bool | None = None  # memory format of the network's input clips; null: on GPUs
    augmentation: Augmentation = Augmentation.auto  # auto: batched on GPUs; one clip after another is faster on CPUs
    overlap: bool = True  # on GPUs: augment the next batch while the networks compute
    recompute: bool = False  # activation checkpointing: about a third more time, a fraction of the memory
    fused_norm: bool = False  # batch norm, addition and ReLU as one kernel on GPUs; not yet measured on a GPU
    deterministic: bool = False  # on GPUs: repeat to the bit, also over a resumption; slower
    bf16_clips: bool = False  # input clips in bfloat16: half the memory; needs optim.precision=bf16
    log_every: int = 20  # steps
    save_every: int = 200  # steps; the last step is always saved
    keep: int = 2  # number of newest checkpoints to keep
    keep_every: int = 0  # steps; also keep every checkpoint at a multiple of this; 0: off
    read_timeout: float = 60.0  # seconds that a decoding worker may take per video
    worker_videos: int = 20000  # videos after which a decoding worker is replaced (its memory may grow); 0: never
    step_timeout: float = 600.0  # seconds; a longer step ends the process
    agree_every: int = 1000  # steps between checks that all ranks hold equal tensors; 0: never

    def __post_init__(self) -> None:
        if given(self.read_timeout, self.step_timeout) and self.step_timeout <= self.read_timeout + 10:
            raise InputError(
                f"system.step_timeout ({self.step_timeout:g}) must be more than 10 s above system.read_timeout "
                f"({self.read_timeout:g}): a step waits that long for a video that hangs"
            )


def check_warmup(warmup_epochs: float, epochs: int) -> None:
    """Raise InputError for a warm-up that is longer than training."""
    if not 0 <= warmup_epochs <= epochs:
        raise InputError(f"optim.warmup_epochs ({warmup_epochs}) must be between 0 and optim.epochs ({epochs})")


def check_clip_precision(system: Any, optim: Any) -> None:
    """Raise InputError for bfloat16 clips with a network in another precision."""
    built = isinstance(system, System) and isinstance(optim, Optim)
    if built and system.bf16_clips and optim.precision is not Precision.bf16:
        raise InputError(f"system.bf16_clips needs optim.precision=bf16, not {optim.precision.value}")


def check_channels(mean: Any, std: Any) -> None:
    """Raise InputError unless mean and std are both numbers, or both lists of three, with std above 0."""
    values = [value if isinstance(value, list) else [value] for value in (mean, std)]
    numbers = all(type(number) in (int, float) for number in values[0] + values[1])
    if not numbers or [len(value) for value in values] not in ([1, 1], [3, 3]) or min(values[1]) <= 0:
        raise InputError(f"augment.mean ({mean}) and augment.std ({std}) must be numbers, or three each: [r, g, b]")


def refuse_time(timing: Timing, num_frames: int, **used: bool) -> None:
    """Raise InputError for an option that needs time, which images lack. used: whether others, by name, are in use."""
    used["data.speed_min, data.speed_max"] = (timing.speed_min, timing.speed_max) != (1, 1)
    used["data.frame_jitter"] = timing.frame_jitter != 0
    if names := [name for name, on in used.items() if on]:
        raise InputError(f"{names[0]} needs time, and the data are images (data.clip_seconds=0): leave it out")
    if given(num_frames) and num_frames != 1:
        raise InputError(f"data.num_frames ({num_frames}) must be 1 for images, whose clips span data.clip_seconds=0 seconds")
