"""Every option of pretraining, typed and explained.

A recipe (`configs/pretrain/recipe/*.yaml`) states every scientific value; plumbing has its defaults here. Rules between
options stand in `__post_init__` and are raised before any device work. See `command_line.typed` for how a command line
becomes one of these objects.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from ..augment.view import Local, View
from ..errors import InputError, given, require
from ..methods.sce import SCEOptions
from .shared import (
    Decoder,
    Labels,
    LoopFilter,
    Optim,
    ResizeOn,
    System,
    Timing,
    Transport,
    check_clip_precision,
)


@dataclass
class Data(Timing):
    """What is trained on."""

    train: str = MISSING  # a .csv with `path`, a list `path label`, a folder, or `synthetic` (the built-in videos)
    root: str = ""  # where relative paths start; empty: the manifest's own folder
    num_frames: int = MISSING  # frames per clip
    clip_seconds: float = MISSING  # the time they are spread over
    decoder: Decoder = Decoder.auto
    loop_filter: LoopFilter = LoopFilter.exact  # reference, off: faster H.264, other pixels (docs/decoding.md: PSNR)
    transport: Transport = Transport.auto  # of clips to the device; planes: the file's, half the bytes; auto: on GPUs
    resize_on: ResizeOn = ResizeOn.device  # worker: boxes larger than augment.size are scaled, and rounded, there
    max_bad_fraction: float = 0.01  # of the videos; more unreadable ones stop the run
    # What data_prep/doctor.py found: its health.csv or folder, `none`, or `auto`, the one beside the list if there is one.
    health: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_frames, "data.num_frames", lambda value: value >= 1, "at least 1")
        require(self.clip_seconds, "data.clip_seconds", lambda value: value > 0, "positive")
        require(self.max_bad_fraction, "data.max_bad_fraction", lambda value: 0 <= value <= 1, "in [0, 1]")


@dataclass
class Augment:
    """What happens to the clips; see augment.view.View for one view's options, Local for multi-crop's."""

    size: int = MISSING  # pixels, square
    area_min: float = MISSING  # random resized crop: share of the frame
    area_max: float = MISSING
    ratio_min: float = 0.75  # width / height of the crop
    ratio_max: float = 4 / 3
    temporal_difference_probability: float = 0.0  # per clip
    antialias: bool = False  # smooth before shrinking; the reference does not
    mean: float = 0.45  # clips in 0..1 are normalised by (clip - mean) / std
    std: float = 0.225
    view1: View = field(default_factory=View)
    view2: View = field(default_factory=View)
    local: Local = field(default_factory=Local)

    @property
    def views(self) -> list[View]:
        """How each view of a video is augmented: the two global ones, then the local ones."""
        return [self.view1, self.view2, *[self.local.view] * self.local.views]

    @property
    def sizes(self) -> list[int]:
        """The pixels of each of these views."""
        return [self.size, self.size, *[self.local.size] * self.local.views]

    def __post_init__(self) -> None:
        require(self.size, "augment.size", lambda value: value >= 16, "at least 16 pixels")
        require(self.area_min, "augment.area_min", lambda value: 0 < value <= 1, "in (0, 1]")
        require(self.area_max, "augment.area_max", lambda value: 0 < value <= 1, "in (0, 1]")
        if given(self.area_min, self.area_max) and self.area_min > self.area_max:
            raise InputError(f"augment.area_min ({self.area_min}) is above augment.area_max ({self.area_max})")
        name = "augment.temporal_difference_probability"
        require(self.temporal_difference_probability, name, lambda value: 0 <= value <= 1, "in [0, 1]")
        for number, view in ((1, self.view1), (2, self.view2)):
            if isinstance(view, View) and given(self.size):
                view.check_size(self.size, f"augment.view{number}")
        if isinstance(self.local, Local) and self.local.views and given(self.size) and self.local.size > self.size:
            raise InputError(
                f"augment.local.size ({self.local.size}) must be at most augment.size ({self.size}): local views are the "
                "small ones"
            )


@dataclass
class Model:
    """The networks; widths as in the paper's appendix."""

    backbone: str = MISSING  # r3d18, r3d50, r2plus1d18, tiny3d, or `module:function`
    hidden: int = MISSING  # width of the projector's two hidden layers and of the predictor's one
    projection: int = 256  # width of the vectors that are compared


@dataclass
class MonitorOptions:
    """Online kNN on labelled lists while training; off when the lists are empty."""

    train: str = ""  # the bank: as data.train, with labels; or `synthetic`
    val: str = ""  # the queries
    root: str = ""
    labels: Labels = Labels.file  # folder: a video's class is the name of its folder
    every_epochs: int = 10
    clips_per_video: int = 1
    k: int = 20  # neighbours that vote
    temp: float = 0.07  # of their votes
    collapse_std: float = 0.05  # alarm when the log's feature_std (1: spread over the sphere, 0: all alike) is below it
    collapse_steps: int = 500  # for so many steps; 0: no alarm
    stop_on_collapse: bool = False  # end the run then, or only say it

    def __post_init__(self) -> None:
        require(self.collapse_steps, "monitor.collapse_steps", lambda value: value >= 0, "at least 0")
        require(self.every_epochs, "monitor.every_epochs", lambda value: value >= 1, "at least 1")
        if bool(self.train) != bool(self.val):
            raise InputError("monitor.train (the bank) and monitor.val (the queries) go together: give both or none")


@dataclass
class PretrainConfig:
    """tools/pretrain.py"""

    name: str = MISSING  # of the recipe
    out: str = ""  # run folder; empty: runs/<name>. The same folder again: continue
    preview: str = ""  # a picture to write (.png) of the first views, cut and augmented; then nothing is trained
    seed: int = 0
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    model: Model = field(default_factory=Model)
    sce: SCEOptions = field(default_factory=SCEOptions)
    optim: Optim = field(default_factory=Optim)
    monitor: MonitorOptions = field(default_factory=MonitorOptions)
    system: System = field(default_factory=System)

    @property
    def run_folder(self) -> Path:
        """Where the run is kept: `out`, or runs/<name>."""
        return Path(self.out or f"runs/{self.name}")

    def __post_init__(self) -> None:
        check_clip_precision(self.system, self.optim)
        if (
            isinstance(self.sce, SCEOptions)
            and isinstance(self.optim, Optim)
            and given(self.sce.queue, self.optim.batch)
        ):
            views = 2 if self.sce.symmetric else 1
            if self.sce.queue < views * self.optim.batch:
                raise InputError(
                    f"sce.queue ({self.sce.queue}) must hold at least one step's keys, {views} * optim.batch = "
                    f"{views * self.optim.batch}: every step enqueues {'both views' if views == 2 else 'view 1'}"
                )
