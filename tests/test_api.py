"""The Python interface: its surface, its objects, the numbers of the programs, and one sentence for every misuse."""

from __future__ import annotations

import inspect
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY_RECIPE, run_tool

import sce_video
from sce_video.data.decode import open_video
from sce_video.errors import InputError
from sce_video.evaluation.video_encoder import VideoEncoder
from sce_video.models import backbones

OPTIONS = {word.partition("=")[0]: word.partition("=")[2].strip("'") for word in TINY_RECIPE if not word.startswith("recipe")}

SURFACE = {
    "pretrain": ["recipe", "build_method", "options"],
    "finetune": ["checkpoint", "train", "test", "recipe", "options"],
    "evaluate": ["checkpoint", "train", "test", "options"],
    "retrieve": ["checkpoint", "train", "test", "options"],
    "load_encoder": ["path", "backbone", "trust", "key"],
    "load_classifier": ["path", "trust"],
    "embed": ["paths", "encoder", "clips", "crops", "projector", "device", "decoder", "workers", "cache"],
}


def test_the_surface_is_frozen() -> None:
    """A name or argument may be added here with a new release, none may go."""
    from sce_video import api

    assert sorted(set(sce_video.__all__) - {"__version__"}) == sorted(SURFACE)
    for name, arguments in SURFACE.items():
        assert list(inspect.signature(getattr(api, name)).parameters) == arguments, name
    for kind, names in {
        api.Pretrained: {"folder", "scores", "encoder"},
        api.Finetuned: {"folder", "results", "scores", "classifier"},
        api.Scored: {"scores", "random_weights", "result"},
        api.Embedding: {"features", "times"},
        VideoEncoder: {"read", "forward", "project", "views"},
    }.items():
        given = {*dir(kind), *getattr(kind, "__annotations__", {})}
        assert names <= given, kind


def test_a_program_is_a_module_and_a_function() -> None:
    script = """
import sce_video, sys
assert "torch" not in sys.modules
from sce_video.pretrain import pretrain
import sce_video.programs.pretrain as program
assert pretrain is program.pretrain and callable(sce_video.pretrain) and sce_video.pretrain.describe
from sce_video import evaluate, embed, finetune, retrieve
assert all(map(callable, (evaluate, embed, finetune, retrieve)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def encoder() -> VideoEncoder:
    torch.manual_seed(0)
    clip = {"num_frames": 4, "clip_seconds": 0.8, "size": 32}
    return VideoEncoder(backbones.build("tiny3d")[0], "tiny3d", mean=0.45, std=0.225, clip=clip)


RIGHT = torch.rand(2, 3, 4, 32, 32)


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        (RIGHT * 255, r"float clips must lie in 0..1, these in .*: divide by 255"),
        ((RIGHT - 0.45) / 0.225, "do not normalise, the encoder does"),
        (RIGHT * float("nan"), r"must lie in 0\.\.1"),
        (RIGHT.long(), r"must be uint8 in 0..255 or float in 0..1, not torch.int64"),
        (RIGHT[0], r"not \[3, 4, 32, 32\]: add the batch: clips\[None\]"),
        (RIGHT.transpose(1, 2), r"swap the axes"),
        (RIGHT.permute(0, 2, 3, 4, 1), r"move the colours: clips.permute\(0, 4, 1, 2, 3\)"),
        (RIGHT[:0], "are empty"),
        (RIGHT.numpy(), "must be a tensor"),
    ],
)
def test_clips_of_another_kind_are_refused_in_one_sentence(clips: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        encoder()(clips)
    assert "\n" not in str(caught.value)


def test_a_size_that_the_network_cannot_take_is_named() -> None:
    network, _ = backbones.build("s3d")
    small = VideoEncoder(network, "s3d", mean=0.45, std=0.225, clip={"num_frames": 16, "clip_seconds": 1.0, "size": 224})
    with pytest.raises(InputError, match=r"s3d cannot take clips \[2, 3, 4, 32, 32\] .* trained on 16 frames of 224 px"):
        small(RIGHT)


def test_right_clips_pass_uint8_as_float() -> None:
    one, clips = encoder(), torch.randint(256, (2, 3, 4, 32, 32), dtype=torch.uint8)
    assert torch.allclose(one(clips), one(clips / 255), atol=1e-5)


def test_read_gives_evaluations_views(videos: Path) -> None:
    path = next((videos / "class_0").glob("*.mp4"))
    one = encoder()
    views = one.read(path, clips=2, crops=3)
    assert views.shape == (6, 3, 4, 37, 37)
    with open_video(str(path)) as video:
        frames, fps = video.read(range(video.num_frames)), float(video.fps)
    assert torch.equal(one.read(frames, clips=2, crops=3, fps=fps), views)
    assert torch.equal(one.read(frames.numpy(), clips=2, crops=3, fps=fps), views)
    assert one.read(frames, clips=1, crops=1).shape == (1, 3, 4, 37, 37)
    for wrong, message in (
        (frames.float(), "frames must be uint8"),
        (frames.permute(0, 3, 1, 2), r"frames must be uint8 \[N, H, W, 3\], not torch.uint8 \[\d+, 3"),
        (frames, "frames without their rate are one clip"),
        (videos / "no.mp4", "no.mp4"),
    ):
        with pytest.raises(InputError, match=message):
            one.read(wrong)
    with pytest.raises(InputError, match="crops"):
        one.read(path, crops=2)


def test_embed_refuses_what_it_cannot_read(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match=r"1 of 2 videos cannot be read, e.g. .*broken.mp4"):
        sce_video.embed([next(videos.rglob("*.mp4")), tmp_path / "broken.mp4"], encoder(), clips=1, crops=1)
    with pytest.raises(InputError, match="paths is empty"):
        sce_video.embed([], encoder())
    with pytest.raises(InputError, match="encoder has none"):
        sce_video.embed("x.mp4", encoder(), projector=True)


@pytest.mark.slow
def test_a_run_is_an_object_in_any_thread(videos: Path, tmp_path: Path) -> None:
    """As in a notebook: no exit, exceptions as exceptions, no signal handlers outside the main thread."""
    made: list[Any] = []
    options = {
        **OPTIONS,
        "optim.epochs": 1,
        "optim.warmup_epochs": 0,
        "monitor": {"train": f"{videos}/train.csv", "val": f"{videos}/val.csv"},
    }
    options = {name: value for name, value in options.items() if not name.startswith("monitor.")}

    def train() -> None:
        made.append(sce_video.pretrain(out=tmp_path / "run", data={"train": f"{videos}/train.csv"}, **options))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    (run,) = made
    assert run.folder == tmp_path / "run"
    assert 0 <= run.scores["knn_top1"] <= 1
    lists: dict[str, Any] = {"train": videos / "train.csv", "test": videos / "val.csv", "clips_per_video": 1, "num_crops": 1}
    scored = sce_video.evaluate(run, **lists, shots=[], linear=False, k=3, workers=0)
    assert set(scored.scores) == {"knn_top1", "r_at_1", "map"}
    assert scored.result["rows"]["checkpoint"]["knn_top1"] == scored.scores["knn_top1"]
    assert sce_video.retrieve(run, **lists, workers=0).scores["r_at_1"] == scored.scores["r_at_1"]
    with pytest.raises(InputError, match="unknown option 'optim.epoch': did you mean optim.epochs"):
        sce_video.pretrain(optim={"epoch": 3})
    with pytest.raises(InputError, match="holds a run of another recipe"):
        sce_video.pretrain(out=tmp_path / "run", data={"train": f"{videos}/train.csv"}, **{**options, "optim.epochs": 2})

    files = sorted(videos.rglob("*.mp4"))[:7]
    listed = tmp_path / "files.csv"
    listed.write_text("path\n" + "".join(f"{path}\n" for path in files))
    arguments = ["checkpoint=run", f"data={listed}", "out=f.npz", "clips_per_video=3", "num_crops=3", "workers=0", "cache=false"]
    done = run_tool("features", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    features, times = sce_video.embed(files, run.encoder(), clips=3, crops=3)
    assert np.array_equal(features, np.load(tmp_path / "f.npz")["features"])
    assert times.shape == (7, 3, 2)
    assert (times[:, :, 1] > times[:, :, 0]).all()

    tuned = sce_video.finetune(
        run,
        train=videos / "train.csv",
        test=videos / "val.csv",
        out=tmp_path / "tuned",
        optim={"epochs": 1, "batch": 8, "warmup_epochs": 0},
        testing={"clips_per_video": 1, "num_crops": 1},
        system={"workers": 0},
    )
    assert 0 <= tuned.scores["top1"] <= 1
    classifier, classes = tuned.classifier()
    assert len(classes) == 4
    assert classifier(RIGHT).shape == (2, 4)


@pytest.mark.slow
def test_the_wheel_has_one_program_for_all(tmp_path: Path, videos: Path) -> None:
    """Built, installed outside the checkout, run from another folder; the libraries are those of this environment."""
    import os
    import shutil

    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".git", "runs", "build", "*.egg-info", "__pycache__"))
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(tmp_path), str(source)]
    subprocess.run(wheel, check=True, capture_output=True)
    (built,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", "--target", str(site), str(built)], check=True, capture_output=True
    )
    work = tmp_path / "work"
    work.mkdir()

    def run(*words: str, code: int = 0) -> str:
        environment = {**os.environ, "PYTHONPATH": str(site)}
        done = subprocess.run(
            [sys.executable, str(site / "bin/sce-video"), *words],
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    assert "pretrain, retrieval, prepare" in run("--help")
    run("pretrain", *TINY_RECIPE, f"data.train={videos}/train.csv", "optim.epochs=1", "optim.warmup_epochs=0", "out=run")
    lists = [f"train={videos}/train.csv", f"test={videos}/val.csv"]
    few = ["clips_per_video=1", "num_crops=1", "workers=0"]
    assert "kNN" in run("evaluate", "checkpoint=run", *lists, *few, "k=3", "shots=[]", "linear=false")
    run("features", "checkpoint=run", f"data={videos}/val.csv", "out=f.npz", *few)
    assert (work / "f.npz").is_file()
    assert "doctor" in run("prepare", "--help")
    assert "is none of the programs" in run("pretrian", code=70)
