"""Every option of the programs that use a trained encoder: features, retrieval, evaluate, export.

An option of 0 or an empty one "as in pretraining" is taken from the checkpoint. Rules stand in `__post_init__`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from ..errors import require
from .shared import Decoder, Device, Labels


@dataclass
class EncoderOptions:
    """An encoder and how it looks at videos: shared by features, retrieval and evaluate."""

    checkpoint: str = MISSING  # run folder, checkpoint folder, or weight file
    backbone: str = ""  # of a weight file that does not say
    root: str = ""  # where the lists' relative paths start; empty: each list's own folder
    labels: Labels = Labels.file  # folder: a video's class is the name of its folder
    clips_per_video: int = 10
    num_crops: int = 3  # 1: centre; 3: along the longer side
    num_frames: int = 0  # 0: as in pretraining
    clip_seconds: float = 0.0  # 0: as in pretraining
    size: int = 0  # crop, pixels; 0: 8/7 of the pretraining size
    cache: bool = True  # keep features on disk and take from there what an earlier run has left (see feature_cache)
    seed: int = 0  # of the random-weights row and of everything drawn
    health: str = "auto"  # what the doctor found, see config.Data; nothing is opened of what it found unreadable
    decoder: Decoder = Decoder.auto
    device: Device = Device.auto
    workers: int = -1  # decoding processes per process; -1: one per core of its share

    def __post_init__(self) -> None:
        require(self.num_crops, "num_crops", lambda value: value in (1, 3), "1 or 3")
        require(self.clips_per_video, "clips_per_video", lambda value: value >= 1, "at least 1")


@dataclass
class FeaturesConfig(EncoderOptions):
    """tools/features.py"""

    data: str = MISSING  # as data.train; labels may be missing
    out: str = MISSING  # .safetensors (with a .csv of paths and labels beside it) or .npz
    projector: bool = False  # write the projector's output too

    def __post_init__(self) -> None:
        super().__post_init__()
        endings = (".safetensors", ".npz")
        require(self.out, "out", lambda value: value.endswith(endings), "a file ending in .safetensors or .npz")


@dataclass
class RetrievalConfig(EncoderOptions):
    """tools/retrieval.py"""

    train: str = MISSING  # the bank: as data.train, with labels; or `synthetic`
    test: str = MISSING  # the queries
    variants: bool = False  # also: one view, not centred, projector features
    out: str = ""  # JSON file; empty: retrieval_<test>.json in the run folder, numbered if there is one already


@dataclass
class EvaluateConfig(EncoderOptions):
    """tools/evaluate.py"""

    train: str = MISSING  # as data.train, with labels; or `synthetic`
    test: str = MISSING
    k: int = 20  # neighbours that vote in kNN
    temp: float = 0.07  # of their votes
    shots: list[int] = field(default_factory=lambda: [1, 5, 10])  # videos per class of the few-shot classifiers
    repeats: int = 10  # draws of those videos
    linear: bool = True  # a linear classifier on all training features too: hours for hundreds of thousands
    out: str = ""  # JSON file; empty: evaluate_<test>.json in the run folder, numbered if there is one already

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.k, "k", lambda value: value >= 1, "at least 1")
        require(self.temp, "temp", lambda value: value > 0, "positive")
        require(self.repeats, "repeats", lambda value: value >= 1, "at least 1")
        require(self.shots, "shots", lambda value: all(shots >= 1 for shots in value), "numbers of at least 1")


class Format(Enum):
    pytorchvideo = "pytorchvideo"
    slowfast = "slowfast"
    torchvision = "torchvision"
    safetensors = "safetensors"
    onnx = "onnx"


@dataclass
class ExportConfig:
    """tools/export.py"""

    checkpoint: str = MISSING  # run folder, checkpoint folder, or weight file
    to: Format = MISSING
    out: str = MISSING  # file to write; must not exist
    backbone: str = ""  # of a weight file whose shapes do not tell
    num_frames: int = 0  # of the clip that proves it, and of the ONNX network; 0: as in pretraining
    size: int = 0  # pixels, of the same; 0: as in pretraining

    def __post_init__(self) -> None:
        for name in ("num_frames", "size"):
            require(getattr(self, name), name, lambda value: value >= 0, "at least 0")
