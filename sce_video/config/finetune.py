"""Options of finetuning and the linear probe.

An option documented as "as in pretraining" is read from the checkpoint. `__post_init__` checks the options.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from omegaconf import MISSING

from ..augment.view import View
from ..errors import InputError, given, require
from .shared import Labels, Optim, Reading, System, Weights, check_clip_precision


class Select(Enum):
    last, val, test = "last", "val", "test"


@dataclass
class FinetuneData(Reading):
    """Training clips."""

    num_frames: int = 0  # 0: as in pretraining
    clip_seconds: float = 0.0  # 0: as in pretraining


@dataclass
class FinetuneAugment:
    """A random square crop at a random scale, then colour jitter and a flip (SCE, section 4)."""

    size: int = 0  # pixels; 0: as in pretraining
    short_side_min: int = 0  # the short side is scaled to a random length from here; 0: 8/7 of size
    short_side_max: int = 0  # to here; 0: 10/7 of size
    area_min: float = 1.0  # below 1: a random resized crop instead, of a share of the frame from here
    area_max: float = 1.0  # to here, and a ratio of 3/4 to 4/3
    view: View = field(
        default_factory=lambda: View(
            brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, blur_probability=0.0, solarize_probability=0.0
        )
    )
    antialias: bool = False  # low-pass filter before downscaling; the reference has none
    mixup_alpha: float = 0.0  # mix neighbours in the batch, share from Beta(alpha, alpha); 0: off
    cutmix_alpha: float = 0.0  # exchange a box, share as above; 0: off. With both, each applies to half of the pairs

    def __post_init__(self) -> None:
        if self.area_min > self.area_max:
            raise InputError(f"augment.area_min ({self.area_min}) is above augment.area_max ({self.area_max})")
        if self.short_side_min > self.short_side_max > 0:
            raise InputError(f"augment.short_side_min ({self.short_side_min}) is above short_side_max ({self.short_side_max})")


@dataclass
class FinetuneModel:
    """Which weights are trained."""

    random_weights: bool = False  # the checkpoint's network with random weights: the baseline
    frozen: bool = False  # linear probe: train only the last layer
    freeze_norm: bool = False  # freeze the statistics and weights of batch norms
    dropout: float = MISSING  # before the last layer


@dataclass
class FinetuneOptim(Optim):
    """Optimiser options of pretraining, layer decay and label smoothing."""

    layer_decay: float = 1.0  # learning rate of a stage as a share of the next stage's; 1: all equal
    label_smoothing: float = 0.0


@dataclass
class Testing:
    """The full test protocol at the end, and quick tests (1 clip, centre crop) during training."""

    clips_per_video: int = 0  # 0: 10, of an image 1
    num_crops: int = 0  # 1: centre; 3: along the longer side; 0: 3, of an image 1
    size: int = 0  # crop, pixels; 0: 8/7 of augment.size
    short_side: int = 0  # pixels, to which the short side is scaled before it; 0: the crop's size
    # Weights to test: the last; the best on the val list; or the best on the test list itself, which is common
    # practice, biases the result upwards, and is noted in the report.
    select: Select = Select.last
    every_epochs: int = 5  # between quick tests on the selecting list (or on `val`, if given)

    def __post_init__(self) -> None:
        require(self.num_crops, "testing.num_crops", lambda value: value in (0, 1, 3), "1 or 3")
        if self.short_side and not 0 < self.size <= self.short_side:
            raise InputError(f"testing.short_side ({self.short_side}) needs testing.size ({self.size}), which must not be larger")


@dataclass
class FinetuneConfig:
    """tools/finetune.py"""

    name: str = MISSING  # recipe name
    checkpoint: str = ""  # run folder, checkpoint folder or weight file; empty: from scratch
    backbone: str = ""  # network from scratch, or of a weight file without a description
    trust: bool = False  # allow the checkpoint to name a network outside sce_video, whose code is then run
    weights: Weights = field(default_factory=Weights)
    init_lr_scale: float = 1.0  # learning rate of the checkpoint's backbone as a share of the last layer's
    train: str = MISSING  # as data.train of pretraining, with labels; % stands for a split's number
    test: str = MISSING
    val: str = ""  # for testing.select=val
    predict: str = ""  # classify these videos, labelled or not, by the run in checkpoint=, and train nothing; `out` is a .csv
    window_seconds: float = 0.0  # predict=: one row for every so many seconds of a video; 0: one for each video
    splits: list[int] = field(default_factory=list)  # e.g. [1,2,3]: one run per split, and the mean
    root: str = ""
    labels: Labels = Labels.file  # folder: a video's class is the name of its folder
    out: str = ""  # run folder; empty: runs/finetune_<name>. A folder with a run: continue it
    seed: int = 0
    data: FinetuneData = field(default_factory=FinetuneData)
    augment: FinetuneAugment = field(default_factory=FinetuneAugment)
    model: FinetuneModel = field(default_factory=FinetuneModel)
    optim: FinetuneOptim = field(default_factory=FinetuneOptim)
    testing: Testing = field(default_factory=Testing)
    system: System = field(default_factory=System)

    @property
    def run_folder(self) -> Path:
        """Folder of the run, or of the runs of all splits: `out`, or runs/finetune_<name>."""
        return Path(self.out or f"runs/finetune_{self.name}")

    def __post_init__(self) -> None:
        check_clip_precision(self.system, self.optim)
        require(self.init_lr_scale, "init_lr_scale", lambda value: 0 < value <= 1, "above 0 and at most 1")
        require(self.window_seconds, "window_seconds", lambda value: value >= 0, "at least 0 seconds")
        if self.window_seconds and not self.predict:
            raise InputError("window_seconds= is for predict=FOLDER: give it too")
        if self.predict:
            if not self.checkpoint:
                raise InputError("predict= needs checkpoint=, the folder of a run of tools/finetune.py")
            return
        if given(self.train, self.test) and bool(self.splits) != any("%" in part for part in (self.train, self.test)):
            raise InputError(
                "splits=[1,2,3] and the sign % in train= and test=, which stands for the split's number, must be given together, "
                f"e.g. train=trainlist0%.txt; got splits={self.splits} train={self.train} test={self.test}"
            )
        if isinstance(self.testing, Testing) and self.testing.select is Select.val and not self.val:
            raise InputError("testing.select=val needs val=, a list beside train and test")
        if not self.checkpoint and isinstance(self.model, FinetuneModel) and self.model.random_weights:
            raise InputError("model.random_weights takes the network from checkpoint=: give one")
        if not self.checkpoint and given(self.train):  # missing while a schema is built
            self._check_from_scratch()

    def _check_from_scratch(self) -> None:
        if not self.backbone:
            raise InputError("give checkpoint=..., or backbone=... to train from scratch")
        for name, value in (
            ("data.num_frames", self.data.num_frames),
            ("data.clip_seconds", self.data.clip_seconds or self.data.num_frames == 1),  # 0: images
            ("augment.size", self.augment.size),
        ):
            if not value:
                raise InputError(f"{name} must be given: there is no checkpoint to read it from")
