"""Options of pretraining.

A recipe (`configs/pretrain/recipe/*.yaml`) sets every scientific value; the other options have defaults here.
`__post_init__` checks the options and raises InputError before any device work. `command_line.typed` builds the objects
from a command line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from ..augment.view import Local, View
from ..errors import InputError, given, require
from ..methods import METHODS, load_method, section_name
from ..models.backbones import IMAGE_BACKBONES
from .shared import Labels, Optim, Reading, System, Weights, check_channels, check_clip_precision, refuse_time


@dataclass
class Data(Reading):
    """Training videos and clips."""

    train: str = MISSING  # a .csv with `path`, a list `path label`, a folder, or `synthetic` (the built-in videos)
    # Or several with weights: [a.csv:2,b.csv:1], see data.mixture.
    root: str = ""  # base of relative paths; empty: the manifest's folder
    num_frames: int = MISSING  # frames per clip
    clip_seconds: float = MISSING  # time span of a clip; 0: the data are images, and each is a clip of one frame
    seconds_per_row: float = 0.0  # long videos: a row, drawn once an epoch, for every so many seconds; 0: one for each video
    min_gap: float = 0.0  # seconds between the starts of a row's two clips, at least
    max_gap: float | None = None  # and at most, as SlowFast's DELTA_CLIPS_MAX; null: any two of the row
    held_out: float = 0.0  # share of each class's videos that is scored and not trained on; 0: none

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_frames, "data.num_frames", lambda value: value >= 1, "at least 1")
        require(self.clip_seconds, "data.clip_seconds", lambda value: value >= 0, "positive, or 0 for images")
        require(self.seconds_per_row, "data.seconds_per_row", lambda value: value >= 0, "at least 0")
        if given(self.clip_seconds) and 0 < self.seconds_per_row < self.clip_seconds:
            raise InputError(
                f"data.seconds_per_row ({self.seconds_per_row:g}) must be at least data.clip_seconds ({self.clip_seconds:g})"
            )
        if not 0 <= self.min_gap <= (math.inf if self.max_gap is None else self.max_gap):
            raise InputError(f"data.min_gap ({self.min_gap:g}) must be from 0 to data.max_gap ({self.max_gap})")
        require(self.held_out, "data.held_out", lambda value: 0 <= value <= 0.5, "in [0, 0.5]")


@dataclass
class Augment:
    """Augmentation of the clips. See augment.view.View for a view's options, Local for multi-crop's."""

    size: int = MISSING  # pixels, square
    area_min: float = MISSING  # random resized crop: share of the frame
    area_max: float = MISSING
    ratio_min: float = 0.75  # width / height of the crop
    ratio_max: float = 4 / 3
    temporal_difference_probability: float = 0.0  # per clip
    antialias: bool = False  # low-pass filter before downscaling; the reference has none
    mean: Any = 0.45  # clips in 0..1 are normalised by (clip - mean) / std; numbers, or one per channel, [r, g, b]
    std: Any = 0.225
    global_views: int = 2  # clips per video that are each other's positives; the third is augmented as view1, and so on
    view1: View = field(default_factory=View)
    view2: View = field(default_factory=View)
    local: Local = field(default_factory=Local)

    @property
    def views(self) -> list[View]:
        """Options of each view of a video: the global views, then the local ones."""
        local = [self.local.view] * len(self.local.all_crops())
        return [*([self.view1, self.view2] * self.global_views)[: self.global_views], *local]

    @property
    def sizes(self) -> list[int]:
        """Size of each view, pixels."""
        return [*[self.size] * self.global_views, *(crop.size for crop in self.local.all_crops())]

    def __post_init__(self) -> None:
        require(self.size, "augment.size", lambda value: value >= 16, "at least 16 pixels")
        require(self.global_views, "augment.global_views", lambda value: 1 <= value <= 8, "from 1 to 8")
        if given(self.area_min, self.area_max) and self.area_min > self.area_max:
            raise InputError(f"augment.area_min ({self.area_min}) is above augment.area_max ({self.area_max})")
        for number, view in ((1, self.view1), (2, self.view2)):
            if isinstance(view, View) and given(self.size):
                view.check_size(self.size, f"augment.view{number}")
        if isinstance(self.local, Local) and given(self.size) and (largest := max(self.sizes)) > self.size:
            raise InputError(
                f"augment.local.size ({largest}) must be at most augment.size ({self.size}): local views are smaller"
            )
        check_channels(self.mean, self.std)


@dataclass
class Model:
    """Networks; widths as in the paper's appendix."""

    backbone: str = MISSING  # a name that tools/models.py lists, `module:function` or `file.py:function`
    hidden: int = MISSING  # width of the projector's two hidden layers and the predictor's one
    projection: int = 256  # width of the compared vectors


class Fit(Enum):
    off, auto = "off", "auto"


@dataclass
class PretrainOptim(Optim):
    """Optimiser options, and how a batch is fitted to the GPUs."""

    fit: Fit = Fit.off  # auto: the smallest optim.accumulate with which the batch fits the GPUs; see tools/plan.py


@dataclass
class MonitorOptions:
    """Scores of the encoder during training: on labelled lists, on data.held_out, or without labels (`videos`)."""

    train: str = ""  # the bank: as data.train, with labels; or `synthetic`
    val: str = ""  # the queries
    root: str = ""
    labels: Labels = Labels.file  # folder: a video's class is the name of its folder
    videos: int = 0  # without labels: training videos of which two clips each are matched; 0: off
    every_epochs: int = 10
    clips_per_video: int = 1
    k: int = 20  # neighbours that vote
    temp: float = 0.07  # temperature of the votes
    collapse_std: float = 0.05  # warn if feature_std (1: uniform on the sphere, 0: collapsed) stays below it
    collapse_steps: int = 500  # for this many steps; 0: never
    stop_on_collapse: bool = False  # end the run instead of warning

    def __post_init__(self) -> None:
        require(self.collapse_steps, "monitor.collapse_steps", lambda value: value >= 0, "at least 0")
        require(self.videos, "monitor.videos", lambda value: value == 0 or value >= 2, "0 or at least 2")
        require(self.every_epochs, "monitor.every_epochs", lambda value: value >= 1, "at least 1")
        if bool(self.train) != bool(self.val):
            raise InputError("monitor.train (the bank) and monitor.val (the queries) must be given together")


@dataclass
class PretrainConfig:
    """tools/pretrain.py; `of_method` adds the section of the chosen method's own options."""

    name: str = MISSING  # recipe name
    out: str = ""  # run folder; empty: runs/<name>. A folder with a run: continue it
    extend: int = 0  # epochs to train a finished run on, in the folder <run folder>_extended_<epochs>; 0: off
    after: str = ""  # finished run whose whole state this one begins with; extend= sets it (training.extension)
    init: str = ""  # run or weight file to begin from: the backbone and, where it fits, the projector
    init_lr_scale: float = 1.0  # learning rate of that backbone as a share of the other parts'
    weights: Weights = field(default_factory=Weights)  # of init=
    preview: str = ""  # .png file: draw the first augmented views and exit without training
    seed: int = 0
    method: str = "sce"  # one of methods.METHODS, package.module:Name or path/to/file.py:Name
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    model: Model = field(default_factory=Model)
    optim: PretrainOptim = field(default_factory=PretrainOptim)
    monitor: MonitorOptions = field(default_factory=MonitorOptions)
    system: System = field(default_factory=System)

    @property
    def run_folder(self) -> Path:
        """Run folder: `out`, or runs/<name>; of an extension another beside it."""
        return Path((self.out or f"runs/{self.name}") + (f"_extended_{self.extend}" if self.extend else ""))

    @property
    def method_options(self) -> Any:
        """The section of the chosen method; None if it has no options."""
        return getattr(self, section_name(self.method), None)

    def __post_init__(self) -> None:
        require(self.init_lr_scale, "init_lr_scale", lambda value: 0 < value <= 1, "above 0 and at most 1")
        require(self.extend, "extend", lambda value: value >= 0, "at least 0")
        check_clip_precision(self.system, self.optim)
        if isinstance(self.data, Data) and isinstance(self.augment, Augment) and isinstance(self.monitor, MonitorOptions):
            self._check_kind()
        options = self.method_options
        if is_dataclass(options) and hasattr(options, "check"):
            options.check(self)

    @staticmethod
    def of_method(method: str) -> type[PretrainConfig]:
        """Return this schema with the section of a method. Raises InputError for an unknown one, see `methods.load_method`."""
        return _of_method(method)

    def _check_kind(self) -> None:
        """Raise InputError for options that do not go with images, and for an image network that is to see videos."""
        if self.data.clip_seconds == 0:
            refuse_time(
                self.data,
                num_frames=self.data.num_frames,
                **{
                    "data.seconds_per_row": self.data.seconds_per_row > 0,
                    "data.min_gap, data.max_gap": self.data.min_gap > 0 or self.data.max_gap is not None,
                    "augment.temporal_difference_probability": self.augment.temporal_difference_probability > 0,
                    "monitor.clips_per_video": self.monitor.clips_per_video > 1,
                    "monitor.videos": self.monitor.videos > 0,  # matches two clips of a video
                },
            )
        elif given(self.data.num_frames, self.model.backbone) and self.model.backbone in IMAGE_BACKBONES:
            raise InputError(
                f"model.backbone={self.model.backbone} is for images (data.clip_seconds=0): for videos there is r3d18"
            )


@lru_cache
def _of_method(method: str) -> type[PretrainConfig]:
    options, name = getattr(load_method(method), "Options", None), section_name(method)
    if name in {item.name for item in fields(PretrainConfig)} or (name in METHODS and method not in METHODS):
        raise InputError(f"method={method}: the name {name!r} is taken by options of ours: choose another")
    section: list[Any] = [(name, options, field(default_factory=options))] if options else []
    space: dict[str, Any] = {"__module__": __name__, "__doc__": PretrainConfig.__doc__}
    return make_dataclass("PretrainConfig", section, bases=(PretrainConfig,), namespace=space)
