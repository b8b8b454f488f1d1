"""The named choices among the options."""

from __future__ import annotations

from enum import Enum


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


class Compile(Enum):
    auto = "auto"
    always = "always"
    never = "never"


class Labels(Enum):
    file = "file"
    folder = "folder"
