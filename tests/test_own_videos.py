"""The user's own videos without a recipe: values that fit, all refusals at once, scores of these videos or none."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TESTS_TOO, compose_pretrain, losses, records, run_tool
from PIL import Image
from start.fit import Machine, fit, power_of_two, refusals

from sce_video.command_line import given_values
from sce_video.data.manifest import Video, hold_out
from sce_video.errors import InputError
from sce_video.evaluation.metrics import pair_scores

CPU = Machine("cpu", cores=2)
GPU = Machine("cuda", cores=16)

# videos, machine -> batch, queue, epochs, warm-up, precision, workers
TABLE = [
    (2, CPU, (2, 4, 200, 20, "fp32", 1)),
    (60, CPU, (16, 32, 100, 10, "fp32", 1)),
    (768, CPU, (64, 512, 25, 2.5, "fp32", 1)),
    (9537, CPU, (64, 512, 2, 0.2, "fp32", 1)),
    (300_000, CPU, (64, 512, 1, 0.1, "fp32", 1)),
    (60, GPU, (16, 32, 200, 20, "bf16", 14)),
    (9537, GPU, (64, 4096, 67, 6.7, "bf16", 14)),
    (9537, Machine("cuda", cores=4, processes=8, half="fp16"), (64, 4096, 67, 6.7, "fp16", 3)),
    (100, Machine("cpu", cores=1, processes=3), (24, 64, 75, 7.5, "fp32", 1)),
]


@pytest.mark.parametrize(("videos", "machine", "expected"), TABLE)
def test_values_follow_from_videos_and_machine(videos: int, machine: Machine, expected: tuple[object, ...]) -> None:
    chosen = {one.option: one.value for one in fit(videos, scored_by_label=False, machine=machine, given={})}
    names = ("optim.batch", "sce.queue", "optim.epochs", "optim.warmup_epochs", "optim.precision", "system.workers")
    assert tuple(chosen[name] for name in names) == expected


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("videos", [2, 3, 7, 16, 59, 1000, 123_457])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_is_chosen_is_never_refused(videos: int, device: str, processes: int) -> None:
    machine = Machine(device, cores=2, processes=processes)
    if videos < 2 * processes:
        with pytest.raises(InputError, match=rf"holds {videos} video\(s\) to train on, {2 * processes} are needed"):
            fit(videos, scored_by_label=False, machine=machine, given={})
        return
    choices = fit(videos, scored_by_label=videos > 100, machine=machine, given={})
    assert all(one.why for one in choices)
    assert ("optim.fit", "auto") in [one[:2] for one in choices] if device == "cuda" else "optim.fit" not in str(choices)
    cfg = compose_pretrain("data.train=x", *(f"{one.option}={one.value}" for one in choices))
    values = {
        "optim.batch": cfg.optim.batch,
        "optim.accumulate": cfg.optim.accumulate,
        "optim.epochs": cfg.optim.epochs,
        "optim.warmup_epochs": cfg.optim.warmup_epochs,
        "optim.precision": cfg.optim.precision.value,
        "sce.queue": cfg.sce.queue,
    }
    assert refusals(values, videos, machine) == []


def test_an_option_of_the_user_is_kept_and_the_others_follow_it() -> None:
    choices = {one.option: one.value for one in fit(60, scored_by_label=False, machine=CPU, given={"optim.batch": 4})}
    assert "optim.batch" not in choices
    assert choices["sce.queue"] == 32
    assert choices["optim.epochs"] == 20  # 15 steps an epoch


def test_refusals_name_values_that_would_do() -> None:
    values = {
        "optim.batch": 64,
        "optim.accumulate": 1,
        "optim.epochs": 10,
        "optim.warmup_epochs": 20,
        "optim.precision": "bf16",
        "sce.queue": 10,
        "system.bf16_clips": True,
    }
    found = {one.option: one.value for one in refusals(values, 60, CPU)}
    wanted = {"optim.precision": "fp32", "system.bf16_clips": "false", "optim.batch": 32, "sce.queue": 64}
    assert found == wanted | {"optim.warmup_epochs": 1.0}
    fixed = values | found
    assert refusals(fixed, 60, CPU) == []
    assert [one.option for one in refusals(fixed | {"optim.batch": 33}, 60, Machine("cpu", 1, processes=2))] == ["optim.batch"]


def test_power_of_two_is_the_largest_that_fits() -> None:
    assert [power_of_two(value) for value in (0, 1, 2, 3, 4, 63.9, 64)] == [1, 1, 2, 2, 4, 32, 64]


def test_every_fifth_video_of_a_class_is_held_out() -> None:
    videos = [Video(f"{label}{index}", label) for index in range(11) for label in "ab"]
    kept, held = hold_out(videos, 0.2)
    assert [video.path for video in held] == ["a4", "b4", "a9", "b9"]
    assert sorted(kept + held) == sorted(videos)
    assert hold_out(videos, 0) == (videos, [])


def test_pair_scores_of_features_with_a_known_answer() -> None:
    corners = torch.eye(4)[:, None].expand(4, 2, 4) * torch.tensor([1.0, 2.0])[None, :, None]  # equal up to their length
    found = pair_scores(corners)
    assert found["pair_r_at_1"] == 1
    assert found["effective_rank"] == pytest.approx(3)  # four corners less their mean
    assert found["feature_spread"] == pytest.approx((3 / 16) ** 0.5 * 2)
    collapsed = pair_scores(torch.ones(4, 2, 4))
    assert collapsed["feature_spread"] == pytest.approx(0)
    assert collapsed["pairs"] == 0, "videos whose clips are equal say nothing"
    assert "pair_r_at_1" not in collapsed


def odd_folder(videos: Path, folder: Path) -> Path:
    """Fourteen videos with odd names, in no classes."""
    names = ["a b", "it's", "x=y", "naïve", "日本語", "50%", "semi;colon", "[x]", "c, d", "(e)", 'quote"d', "-dash", "#f", "$g"]
    for number, (name, path) in enumerate(zip(names, sorted(videos.rglob("*.mp4")), strict=False)):
        target = folder / ("deep/er" if number % 2 else ".") / f"{name}.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return folder


SHORT = ("optim.epochs=2", "augment.size=32")


@pytest.fixture(scope="module")
def own(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A working folder with a run on own videos, and how its program ended."""
    folder = tmp_path_factory.mktemp("own")
    odd_folder(videos, folder / "my 'odd' vidéos=1")
    return folder, run_tool("pretrain", "data.train=my 'odd' vidéos=1", *SHORT, cwd=folder)


def test_one_command_trains_on_a_folder_with_odd_names_and_its_last_line_works(
    own: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, before = own
    assert before.returncode == 0, before.stderr
    block = before.stderr.partition("values that fit them and this machine:")[2].partition("docs/own_videos.md")[0]
    for option in ("optim.batch=4", "sce.queue=8", "optim.warmup_epochs=0.2", "optim.precision=fp32", "system.workers="):
        assert re.search(rf"^  {re.escape(option)}\S* +\S+", block, re.M), block
    assert "optim.epochs" not in block, "the user's own"
    assert "kNN" not in before.stderr, "nothing is scored but these videos"
    score = r"epoch 2: .*feature spread \S+, effective rank \S+ \| untrained network: .* \(two clips of each of 14 videos of my"
    assert re.search(score, before.stderr)
    (following,) = re.findall(r"next: python tools/(\w+)\.py (.*)", before.stderr)
    result = run_tool(following[0], *shlex.split(following[1]), cwd=folder)
    assert result.returncode == 0, result.stderr
    assert (folder / "runs/own/features.npz").is_file()
    again = run_tool("pretrain", "data.train=my 'odd' vidéos=1", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert "runs/own: the run goes on with the values that it began with" in again.stderr
    assert "features_2.npz" in again.stderr, "the file of the last one is there already"


@pytest.mark.slow
def test_folders_as_classes_are_scored_on_videos_held_out(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "classes"
    for path in sorted(videos.rglob("*.mp4")):
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        for name in (path.name, f"again_{path.name}"):
            shutil.copy(path, folder / path.parent.name / name)
    result = run_tool("pretrain", "data.train=classes", *SHORT, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = {name: (tmp_path / f"runs/own/lists/{name}.csv").read_text().splitlines()[1:] for name in ("train", "held_out")}
    assert len(rows["train"]) + len(rows["held_out"]) == 64
    assert not set(rows["train"]) & set(rows["held_out"])
    counts = rf"\({len(rows['held_out'])} videos of those held out against {len(rows['train'])} of classes\)"
    assert re.search(rf"epoch 2: kNN .* \| untrained network: kNN .* {counts}", result.stderr)
    (following,) = re.findall(r"next: python tools/(\w+)\.py (.*)", result.stderr)
    scored = run_tool(following[0], *shlex.split(following[1]), cwd=tmp_path)
    assert scored.returncode == 0, scored.stderr


def test_all_refusals_of_a_named_recipe_come_at_once_with_a_command_that_works(videos: Path, tmp_path: Path) -> None:
    odd_folder(videos, tmp_path / "my videos")
    arguments = ["recipe=sce_r3d18_ucf101", "data.train=my videos", "optim.epochs=2", "sce.queue=10", "system.device=cpu"]
    result = run_tool("pretrain", *arguments, cwd=tmp_path)
    assert result.returncode == 70
    for words in (
        "optim.precision=bf16 needs a GPU",
        "optim.batch (64) is larger",
        "sce.queue (10) must",
        "optim.warmup_epochs (20",
    ):
        assert words in result.stderr
    assert len(result.stderr.splitlines()) <= 10
    assert not (tmp_path / "runs").exists()
    (command,) = re.findall(r"this fits: python \S+ (.*)", result.stderr)
    smaller = ["augment.size=32", "data.num_frames=2", "preview=views.png"]  # composed and checked as a run, but drawn only
    shown = run_tool("pretrain", *shlex.split(command), *smaller, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert refusals_of(command, tmp_path) == ""


def refusals_of(command: str, folder: Path) -> str:
    """The refusal of a command, found without training."""
    code = (
        "import sys\nfrom start.own_videos import complete\nfrom sce_video.command_line import read_words\n"
        "from sce_video.config.pretrain import PretrainConfig\ncomplete(read_words(sys.argv[1:], PretrainConfig))\n"
    )
    words = [sys.executable, "-c", code, *shlex.split(command)]
    return subprocess.run(
        words, cwd=folder, env={**os.environ, "PYTHONPATH": TESTS_TOO}, capture_output=True, text=True, check=False
    ).stderr


def test_the_log_has_times_and_log_txt_the_steps(own: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    run = own[0] / "runs/own"
    found = records(run)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", record["time"]) for record in found)
    elapsed = [record["elapsed_s"] for record in found]
    assert elapsed == sorted(elapsed)
    for name in ("curves.png", "views.png"):
        with Image.open(run / name) as picture:
            assert picture.width == 800, name
    text = (run / "log.txt").read_text()
    assert re.search(r"^ep 1/2 it 1/\d+ \| loss", text, re.M), "the first step, though a record comes every 20"
    assert re.search(r"^needs: \S+ hours of video; 0\.\d M trained parameters; \d+ MB of memory .* disk", text, re.M)


@pytest.mark.slow
def test_a_run_begun_with_the_demo_recipe_on_own_videos_continues(videos: Path, tmp_path: Path) -> None:
    """As before values were fitted: the same command without a recipe was the demo's recipe."""
    odd_folder(videos, tmp_path / "mine")
    common = ["data.train=mine", "optim.batch=4", "sce.queue=16", "system.log_every=1", "data.max_bad_fraction=0.5"]
    first = run_tool("pretrain", "recipe=demo", *common, "optim.epochs=2", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "kNN" not in first.stderr, "the built-in videos are not scored"
    again = run_tool("pretrain", *common, "optim.epochs=2", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "runs/demo: the run goes on" in again.stderr
    assert len(losses(tmp_path / "runs/demo")) == 6
    assert json.loads((tmp_path / "runs/demo/status.json").read_text())["restarts"] == 1


@pytest.mark.slow
def test_finetuning_fits_its_lists_too_and_continues(videos: Path, tmp_path: Path) -> None:
    lists = [f"train={videos / 'train.csv'}", f"test={videos / 'val.csv'}"]
    options = [*lists, "backbone=tiny3d", "data.num_frames=2", "data.clip_seconds=0.5", "optim.epochs=2", "optim.batch=8"]
    result = run_tool("finetune", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert re.search(r"^  optim.warmup_epochs=0.2 +a tenth of the epochs$", result.stderr, re.M)
    again = run_tool("finetune", *lists, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "runs/finetune_own: the run goes on" in again.stderr
    assert "runs/finetune_own is done" in again.stdout


@pytest.mark.slow
def test_all_refusals_of_finetuning_come_at_once(videos: Path, tmp_path: Path) -> None:
    wrong = ["recipe=ucf101", "optim.warmup_epochs=300", "optim.precision=bf16", "system.device=cpu", "backbone=tiny3d"]
    result = run_tool("finetune", f"train={videos / 'train.csv'}", f"test={videos / 'val.csv'}", *wrong, cwd=tmp_path)
    assert result.returncode == 70
    for words in ("precision=bf16 needs a GPU", "batch (64) is larger", "warmup_epochs (300.0) must"):
        assert words in result.stderr
    assert "this fits: python" in result.stderr


@pytest.mark.slow
def test_a_sweep_gets_values_that_fit_and_a_folder_for_each_run(videos: Path, tmp_path: Path) -> None:
    odd_folder(videos, tmp_path / "mine")
    result = run_tool("pretrain", "-m", "seed=0,1", "data.train=mine", *SHORT, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "optim.batch=4" in result.stderr
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["own_0", "own_1"]
    assert losses_at(tmp_path / "runs/own_0") != losses_at(tmp_path / "runs/own_1")
    assert given_values(["optim.batch=4,16,8", "seed=range(3)"]) == {"optim.batch": 16, "seed": 2}


def losses_at(run: Path) -> list[float]:
    return [record["train/loss"] for record in records(run) if "train/loss" in record]


@pytest.mark.slow
@pytest.mark.parametrize(("labels", "advice"), [(True, "add data.held_out=0.2 "), (False, "add monitor.videos=256 ")])
def test_a_named_recipe_says_what_would_score_it(labels: bool, advice: str, videos: Path, tmp_path: Path) -> None:
    source = videos / "train.csv" if labels else odd_folder(videos, tmp_path / "mine")
    options = ["recipe=demo", f"data.train={source}", "optim.batch=4", *SHORT, "optim.warmup_epochs=0"]
    result = run_tool("pretrain", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"not scored: {advice}" in result.stderr
    assert "kNN" not in result.stderr
