"""Options of the programs that use a trained encoder: features, retrieval, evaluate, export.

An option documented as "as in pretraining" is read from the checkpoint. `__post_init__` checks the options.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from ..errors import require
from .shared import Decoder, Device, Labels, Precision, Weights


@dataclass
class EncoderOptions:
    """Encoder and views of a video, shared by features, retrieval and evaluate."""

    checkpoint: str = MISSING  # run folder, checkpoint folder, or weight file
    backbone: str = ""  # network of a weight file without a description
    trust: bool = False  # allow the checkpoint to name a network outside sce_video, whose code is then run
    weights: Weights = field(default_factory=Weights)
    root: str = ""  # base of the lists' relative paths; empty: each list's folder
    labels: Labels = Labels.file  # folder: a video's class is the name of its folder
    clips_per_video: int = 0  # 0: 10, of an image 1
    num_crops: int = 0  # 1: centre; 3: along the longer side; 0: 3, of an image 1
    num_frames: int = 0  # 0: as in pretraining
    clip_seconds: float = 0.0  # 0: as in pretraining
    size: int = 0  # crop, pixels; 0: 8/7 of the pretraining size
    cache: bool = True  # read and write the cache of features on disk (see evaluation.cache)
    seed: int = 0  # of the random weights and all draws
    health: str = "auto"  # see config.shared.Reading; unreadable videos are not opened
    decoder: Decoder = Decoder.auto
    device: Device = Device.auto
    precision: Precision = Precision.fp32  # of the network on a GPU
    workers: int = -1  # decoding workers per process; -1: one per core of its share

    def __post_init__(self) -> None:
        require(self.num_crops, "num_crops", lambda value: value in (0, 1, 3), "1 or 3")


@dataclass
class FeaturesConfig(EncoderOptions):
    """tools/features.py"""

    data: str = MISSING  # as data.train; labels are optional
    out: str = MISSING  # .npz, or .safetensors with a .csv of paths and labels beside it
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
    temp: float = 0.07  # temperature of the votes
    shots: list[int] = field(default_factory=lambda: [1, 5, 10])  # videos per class of the few-shot classifiers
    repeats: int = 10  # random draws of those videos
    linear: bool = True  # also a linear classifier on all training features: hours for hundreds of thousands
    out: str = ""  # JSON file; empty: evaluate_<test>.json in the run folder, numbered if there is one already


class Format(Enum):
    pytorchvideo, slowfast, torchvision, safetensors, onnx = "pytorchvideo", "slowfast", "torchvision", "safetensors", "onnx"


@dataclass
class ExportConfig:
    """tools/export.py"""

    checkpoint: str = MISSING  # run folder, checkpoint folder, or weight file
    to: Format = MISSING
    out: str = MISSING  # file to write; must not exist
    backbone: str = ""  # of a weight file if its shapes fit several networks
    trust: bool = False  # allow the checkpoint to name a network outside sce_video, whose code is then run
    weights: Weights = field(default_factory=Weights)
    num_frames: int = 0  # of the verification clips and the ONNX input; 0: as in pretraining
    size: int = 0  # pixels, of the same clips; 0: as in pretraining
