"""A wrong number for any option of any program is refused before anything is done, by a line that names the option."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_RECIPE, compose_pretrain, run_tool
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sce_video.command_line import check_launcher, compose_values, option_names, typed, with_method
from sce_video.config.evaluate import EvaluateConfig, ExportConfig, FeaturesConfig, RetrievalConfig
from sce_video.config.finetune import FinetuneConfig
from sce_video.config.pretrain import PretrainConfig
from sce_video.errors import InputError

PROGRAMS: dict[str, tuple[type, list[str]]] = {
    "pretrain": (PretrainConfig, []),
    "finetune": (FinetuneConfig, ["recipe=ucf101", "checkpoint=x", "train=a", "test=b"]),
    "evaluate": (EvaluateConfig, ["checkpoint=x", "train=a", "test=b"]),
    "retrieval": (RetrievalConfig, ["checkpoint=x", "train=a", "test=b"]),
    "features": (FeaturesConfig, ["checkpoint=x", "data=a", "out=b.npz"]),
    "export": (ExportConfig, ["checkpoint=x", "to=onnx", "out=b"]),
}
WRONG = [float("nan"), float("inf"), -float("inf"), 10**35, 1e35, -2, 0, "many"]
# Options (by their last name) whose zero means something.
ZERO = [
    "seed",
    "frame_jitter",
    "max_bad_fraction",
    "temporal_difference_probability",
    "mean",
    "jitter_probability",
    "brightness",
    "contrast",
    "saturation",
    "hue",
    "gray_probability",
    "blur_probability",
    "solarize_probability",
    "solarize_threshold",
    "flip_probability",
    "rand_augment_operations",
    "rand_augment_magnitude",
    "erase_probability",
    "views",
    "coeff",
    "warmup_epochs",
    "weight_decay",
    "collapse_std",
    "collapse_steps",
    "keep_every",
    "worker_videos",
    "agree_every",
    "workers",
    "mixup_alpha",
    "cutmix_alpha",
    "dropout",
    "label_smoothing",
    "short_side_min",
    "short_side_max",
    "coeff_start",
    "momentum",
    "held_out",
    "videos",
    "window_seconds",
    "extend",
    "seconds_per_row",
    "min_gap",
    "max_gap",
    "momentum_end",
    "predictor_layers",
]
# Zero there is "as in pretraining", or a default derived from it.
AS_IN_PRETRAINING = ["num_frames", "clip_seconds", "size", "short_side", "clips_per_video", "num_crops"]
NEGATIVE = ["mean"]


def numbers(schema: type, base: Any) -> list[str]:
    names = []
    for name in option_names(schema):
        value = OmegaConf.select(base, name)
        if name.endswith("channels_last"):  # null, true or false
            continue
        if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            names.append(name)
    return names


def may_be(program: str, name: str, value: Any) -> bool:
    last = name.split(".")[-1]
    if value == 0:
        return last in ZERO or (program != "pretrain" and last in AS_IN_PRETRAINING)
    return bool(value == -2 and last in NEGATIVE)


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_each_option_refuses_a_wrong_value_of_each_sort(program: str) -> None:
    schema, given = PROGRAMS[program]
    base, schema = compose_values(program, schema, given), with_method(schema, given)
    told: list[tuple[str, Any, str]] = []
    for name in numbers(schema, base):
        for value in WRONG:
            if may_be(program, name, value):
                continue
            composed = copy.deepcopy(base)
            try:
                OmegaConf.update(composed, name, value)
                typed(composed, schema)
            except OmegaConfBaseException:  # its type; `check_overrides` words it
                continue
            except InputError as error:
                told.append((name, value, str(error)))
                continue
            raise AssertionError(f"{program} {name}={value} was accepted")
    assert len(told) > 3
    for name, value, message in told:
        words = [word for word in name.split(".")[-1].split("_") if word not in ("min", "max", "start")]
        assert all(word in message for word in words), f"{name}={value}: {message}"


EXAMPLES = {
    "model.projection=0": r"model\.projection \(0\) must be a number from 2 to",
    "sce.temp=0": r"sce\.temp \(0\.0\) must be positive",
    "sce.momentum=1.5": r"sce\.momentum \(1\.5\) must be in \[0, 1\]",
    "optim.momentum=1.5": r"optim\.momentum \(1\.5\) must be a number from 0 to 0\.9999",
    "sce.queue=0": r"sce\.queue \(0\) must be positive",
    "optim.lr_per_256=inf": r"optim\.lr_per_256 \(inf\) must be a number from",
    "augment.std=nan": r"augment\.std \(nan\) must be a number from",
    "seed=100000000000000000000": r"seed \(100000000000000000000\) must be a number from",
    "optim.batch=1": r"optim\.batch \(1\) must be at least 2, for batch norm",
    "optim.accumulate=8": r"optim\.accumulate \(8\) leaves micro-batches of 1 of 8; batch norm needs 2",
}


@pytest.mark.parametrize("option", EXAMPLES)
def test_examples_from_the_field_are_refused(option: str) -> None:
    with pytest.raises(InputError, match=EXAMPLES[option]):
        compose_pretrain(*TINY_RECIPE, option)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"LOCAL_WORLD_SIZE": "x"}, "LOCAL_WORLD_SIZE='x', which is no number"),
        ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE='0', which is no number"),
        ({"RANK": "0"}, "RANK but not WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
        ({"RANK": "0", "WORLD_SIZE": "two", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "WORLD_SIZE='two'"),
    ],
)
def test_broken_environment_of_a_launcher_is_named(environment: dict[str, str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_launcher(environment)
    check_launcher({})
    check_launcher({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"})


@pytest.mark.slow
def test_program_ends_with_one_line(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RANK"} | {"LOCAL_WORLD_SIZE": "x"}
    ended = run_tool("pretrain", *TINY_RECIPE, cwd=tmp_path, **environment)
    assert (ended.returncode, ended.stderr.count("\n")) == (70, 1), ended.stderr
