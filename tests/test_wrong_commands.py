"""Forty wrong commands: each gives one block of at most ten lines that names given, rule and remedy, and its exit code."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import ROOT, run_program

from sce_video.command_line import read_words
from sce_video.config.evaluate import FeaturesConfig
from sce_video.config.finetune import FinetuneConfig
from sce_video.config.pretrain import PretrainConfig
from sce_video.errors import InputError

# Program, arguments, what the block must say. {videos}: a folder with 32 videos and lists.
WRONG = [
    # Missing.
    ("tools/features.py", ["data={videos}", "out=x.npz"], "option checkpoint must be given: checkpoint=..."),
    ("tools/finetune.py", ["train={videos}/train.csv", "backbone=tiny3d"], "option test must be given: test=..."),
    ("tools/finetune.py", ["train={videos}/train.csv", "test={videos}/val.csv"], "give checkpoint=..., or backbone=..."),
    ("tools/pretrain.py", ["recipe=sce_r3d18_ucf101"], "option data.train must be given: data.train=..."),
    ("tools/pretrain.py", ["data.train"], "option data.train has no value: write data.train=VALUE"),
    ("tools/retrieval.py", ["checkpoint=nowhere", "train={videos}/train.csv", "test={videos}/val.csv"], "nowhere"),
    ("data_prep/doctor.py", [], "the following arguments are required: manifest, --out: --help shows"),
    ("tools/launch.py", ["slurm", "nodes=1"], "no program: write it and its options after --"),
    ("tools/checkpoint.py", ["inspect"], "the following arguments are required: path"),
    # Misspelt.
    ("tools/pretrain.py", ["optim.bacth=8"], "unknown option 'optim.bacth': did you mean optim.batch?"),
    ("tools/pretrain.py", ["recipe=sce_r3d18_ucf"], "recipe 'sce_r3d18_ucf' is not one of demo"),
    ("tools/pretrain.py", ["--recipie=demo"], "unknown option 'recipie'"),
    ("tools/features.py", ["checkpiont=x"], "unknown option 'checkpiont': did you mean checkpoint?"),
    ("tools/checkpoint.py", ["inspekt", "x"], "invalid choice: 'inspekt'"),
    ("tools/launch.py", ["slrum", "--", "tools/pretrain.py"], "'slrum' is not one of slurm, local, check"),
    ("tools/launch.py", ["slurm", "node=2", "--", "{root}/tools/pretrain.py"], "unknown option 'node': did you mean nodes?"),
    ("data_prep/folder.py", ["--vidoes", "x", "--out", "y"], "required: --videos: --help shows"),
    ("tools/benchmark.py", ["decoed"], "invalid choice: 'decoed'"),
    # Misplaced.
    ("tools/pretrain.py", ["{videos}"], "write option=value, e.g. data.train={videos}"),
    ("tools/features.py", ["runs/x", "data={videos}"], "write option=value, e.g. data=runs/x"),
    ("tools/pretrain.py", ["data.train={videos}", "and more"], "cannot read 'and more': write option=value"),
    ("tools/pretrain.py", ["train={videos}"], "unknown option 'train': did you mean data.train?"),
    ("data_prep/command_line.py", [], "command_line.py is no program"),
    ("sce_video/programs/pretrain.py", [], "sce_video/programs/pretrain.py is no program: it is run by python tools/pretrain.py"),
    (
        "sce_video/programs/embed.py",
        ["data={videos}"],
        "sce_video/programs/embed.py is no program: it is run by python tools/features.py",
    ),
    # Wrong kind of file.
    ("tools/pretrain.py", ["data.train=binary.csv"], "binary.csv' is no list but a binary file"),
    ("tools/pretrain.py", ["data.train=weights.pt"], "weights.pt' is no list but a binary file"),
    ("tools/pretrain.py", ["data.train=empty"], "'empty' holds no video and no image (known extensions"),
    ("tools/pretrain.py", ["data.train=nowhere"], "manifest 'nowhere' does not exist"),
    ("tools/pretrain.py", ["data.train=notes.txt"], "notes.txt:1: 'not a list' is not `path label` or `path`"),
    ("tools/features.py", ["checkpoint=notes.txt", "data={videos}", "out=x.npz"], "notes.txt"),
    ("tools/launch.py", ["local", "gpus=0", "processes=1", "--", "notes.txt"], "'notes.txt' is no program here"),
    ("data_prep/doctor.py", ["nowhere", "--out", "h"], "'nowhere' does not exist"),
    # Wrong type.
    ("tools/pretrain.py", ["optim.epochs=many"], "option optim.epochs=many: Value 'many' of type 'str'"),
    ("tools/pretrain.py", ["optim.batch=8.5"], "option optim.batch=8.5: Value '8.5' of type 'float'"),
    ("tools/pretrain.py", ["system.device=gpu"], "option system.device=gpu: Invalid value 'gpu', expected one of"),
    # Out of range.
    ("tools/pretrain.py", ["sce.coeff=1.5"], "sce.coeff (1.5) must be in [0, 1]"),
    ("tools/pretrain.py", ["data.held_out=0.9", "data.train={videos}"], "data.held_out (0.9) must be in [0, 0.5]"),
    ("tools/pretrain.py", ["monitor.videos=1", "recipe=demo", "data.train={videos}"], "monitor.videos (1) must be 0 or at"),
    ("tools/pretrain.py", ["recipe=demo", "data.train={videos}/train.csv"], "optim.batch (64) is larger than the data"),
    ("data_prep/folder.py", ["--videos", "{videos}", "--out", "y", "--test", "2"], "'2' is not a share between 0 and 1"),
    ("data_prep/doctor.py", ["{videos}", "--out", "h", "--min-frames", "0"], "'0' is not a whole number above 0"),
    # Conflicting.
    ("tools/finetune.py", ["predict={videos}"], "predict= needs checkpoint="),
    ("tools/pretrain.py", ["recipe=sce_r3d18_ucf101", "data.train=x.csv", "monitor.train=x"], "'x.csv' does not exist"),
    (
        "tools/pretrain.py",
        ["recipe=sce_r3d18_ucf101", "data.train={videos}", "monitor.train=x"],
        "monitor.train (the bank) and monitor.val (the queries) must be given together",
    ),
    ("tools/finetune.py", ["train=a%.csv", "test=b%.csv", "checkpoint=x"], "splits=[1,2,3] and the sign %"),
    ("tools/pretrain.py", ["data.train={videos}", "out=taken"], "out=taken is not empty and no run folder"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("program", "arguments", "message"), WRONG, ids=[f"{case[0]} {' '.join(case[1])}" for case in WRONG])
def test_a_wrong_command_is_answered_in_one_block(
    program: str, arguments: list[str], message: str, videos: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").write_text("of another program")
    (tmp_path / "notes.txt").write_text("not a list\n")
    for name in ("binary.csv", "weights.pt"):
        (tmp_path / name).write_bytes(bytes(range(256)) * 4)
    before = sorted(tmp_path.rglob("*"))
    words = [word.format(videos=videos, root=ROOT) for word in arguments]
    result = run_program(program, *words, cwd=tmp_path, timeout=120, COLUMNS="80")
    assert result.returncode == (1 if "no program: it" in message or message.endswith("is no program") else 70), result.stderr
    assert message.format(videos=videos) in result.stderr
    assert "Traceback" not in result.stderr
    block = result.stderr[result.stderr.find("error: ") :] if "error: " in result.stderr else result.stderr
    assert len(block.strip().splitlines()) <= 10
    assert result.stderr.isprintable() or "\n" in result.stderr
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written"


# What was typed, and how it is understood.
UNDERSTOOD = [
    (["optim.batch", "=", "8"], ["optim.batch=8"]),
    (["optim.batch=", "8"], ["optim.batch=8"]),
    (["optim.batch", "=8"], ["optim.batch=8"]),
    (["--recipe", "demo"], ["recipe=demo"]),
    (["--recipe=demo"], ["recipe=demo"]),
    (["-recipe=demo"], ["recipe=demo"]),
    (["--optim.batch", "8", "--cfg", "job", "seed=1"], ["optim.batch=8", "seed=1", "--cfg", "job"]),
    (["data.train=my videos"], ["data.train='my videos'"]),
    (["data.train", "=", "a=b"], ["data.train='a=b'"]),
    (["out=it's"], [r"out='it\'s'"]),
    (["out=back\\"], [r"out='back\\'"]),
    (["out=ünï"], ["out='ünï'"]),
    (["out='given quoted'"], ["out='given quoted'"]),
    (["monitor.train=''"], ["monitor.train=''"]),
    (["monitor.train=", "seed=1"], ["monitor.train=", "seed=1"]),
    (["+sce.coef=0.5"], ["+sce.coef=0.5"]),
    (["-m", "seed=1,2", "data.train=a,b"], ["seed=1,2", "data.train=a,b", "-m"]),
    (["out=[x]"], ["out='[x]'"]),
]


@pytest.mark.parametrize(("typed", "read"), UNDERSTOOD, ids=[" ".join(case[0]) for case in UNDERSTOOD])
def test_near_misses_are_understood(typed: list[str], read: list[str]) -> None:
    assert read_words(typed, PretrainConfig) == read


ODD = [
    "a b",
    "it's",
    'q"q',
    "x=y",
    "naïve",
    "日本語",
    "a,b",
    "[x]",
    "{y}",
    "(z)",
    "back\\slash",
    "end\\",
    "end\\'",
    "#h",
    "$v",
    "~t",
    "50%",
]


@pytest.mark.parametrize("name", ODD)
def test_odd_names_reach_the_option_as_they_are(name: str) -> None:
    from sce_video.command_line import compose_options

    options = compose_options("features", FeaturesConfig, [f"checkpoint={name}", f"data={name}", f"out={name}.npz"])
    assert (options.checkpoint, options.data, options.out) == (name, name, f"{name}.npz")


def test_home_is_expanded_where_the_shell_did_not() -> None:
    (word,) = read_words(["train=~/videos"], FinetuneConfig)
    assert word.partition("=")[2] == os.path.expanduser("~/videos")


def test_a_name_with_blanks_that_the_shell_split_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my videos").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="quotes for the shell: write 'data.train=my videos'"):
        read_words(["data.train=my", "videos"], PretrainConfig)
