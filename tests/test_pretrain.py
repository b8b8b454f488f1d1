"""The program as users run it: real processes, real kills, real bad input."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import MULTI_CROP, ROOT, TINY_RECIPE, compose_pretrain, losses, records, run_tool
from omegaconf import OmegaConf
from test_stopping import wait_until

from sce_video.config.pretrain import PretrainConfig
from sce_video.errors import InputError, Stopped
from sce_video.methods.sce import SCE
from sce_video.programs.pretrain import build_method, pretrain
from sce_video.runs import checkpoint
from sce_video.runs.status import read_status


def options(videos: Path, out: str, *more: str) -> list[str]:
    return [*TINY_RECIPE, f"data.train={videos / 'train.csv'}", f"out={out}", *more]


def test_killed_run_continues_exactly(videos: Path, tmp_path: Path) -> None:
    """42 steps at once, and 17 + kill -9 in the middle of an epoch + the rest: same weights, queue and losses."""
    common = ["optim.epochs=14", "optim.batch=8", "system.save_every=4", "system.workers=2"]
    whole = run_tool("pretrain", *options(videos, "whole", *common, "system.workers=0"), cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    command = [sys.executable, str(ROOT / "tools/pretrain.py"), *options(videos, "parts", *common)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    log = tmp_path / "parts/log.jsonl"
    deadline = time.time() + 120
    while time.time() < deadline and not (log.exists() and len(log.read_text().splitlines()) >= 17):
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    seen = len(log.read_text().splitlines())
    assert 17 <= seen < 42, "killed in the middle"
    rest = run_tool("pretrain", *options(videos, "parts", *common), cwd=tmp_path)
    assert rest.returncode == 0, rest.stderr
    assert "continuing" in rest.stderr
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 42
    states = [checkpoint.load(checkpoint.find(tmp_path / name))[0] for name in ("whole", "parts")]
    assert checkpoint.state_digest(states[0]) == checkpoint.state_digest(states[1])


@pytest.mark.slow
def test_finished_run_is_not_trained_again(videos: Path, tmp_path: Path) -> None:
    first = run_tool("pretrain", *options(videos, "run", "optim.epochs=1"), cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run/checkpoints").rglob("*.pt")}
    again = run_tool("pretrain", *options(videos, "run", "optim.epochs=1"), cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "done: run folder run" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run/checkpoints").rglob("*.pt")} == before


@pytest.mark.slow
def test_accumulation_enqueues_once_per_step(videos: Path, tmp_path: Path) -> None:
    """Two micro-batches of 4 push the keys of one batch of 8: 3 steps move the pointer by 3 * 16 = 48."""
    result = run_tool("pretrain", *options(videos, "run", "optim.accumulate=2", "optim.epochs=1"), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    state, _ = checkpoint.load(checkpoint.find(tmp_path / "run"))
    assert state["method"]["queue.pointer"] == 48 % 40
    assert len(losses(tmp_path / "run")) == 3


@pytest.mark.slow
def test_monitor_and_unlabelled_folder(videos: Path, tmp_path: Path) -> None:
    unlabelled = tmp_path / "my videos"
    for path in videos.rglob("*.mp4"):
        (unlabelled / "deep/er").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, unlabelled / "deep/er" / f"{path.parent.name} {path.name}")
    lists = [f"monitor.train={videos / 'train.csv'}", f"monitor.val={videos / 'val.csv'}", "monitor.every_epochs=2"]
    result = run_tool("pretrain", *options(videos, "run", *lists), f"data.train={unlabelled}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    scored = [record for record in records(tmp_path / "run") if "eval/knn_top1" in record]
    assert [record["step"] for record in scored] == [0, 8, 16], "untrained, every second epoch, the end"
    assert "untrained network: kNN" in result.stderr
    assert (tmp_path / "run/tb").is_dir(), "tensorboard is among the dev requirements"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_on_a_gpu(videos: Path, tmp_path: Path, precision: str) -> None:
    result = run_tool("pretrain", *options(videos, "run", f"optim.precision={precision}"), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    whole = run_tool("pretrain", *options(videos, "whole"), cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert losses(tmp_path / "run")[0] == pytest.approx(losses(tmp_path / "whole")[0], abs=0.2)


BAD_INPUT = [
    (["data.train=nowhere.csv"], "manifest 'nowhere.csv' does not exist"),
    (["data.train={videos}/train.csv", "data.root=nowhere"], "root 'nowhere' is not a folder"),
    (["data.train=broken.csv"], "broken.csv:3: 3 columns where the header has 2"),
    (["data.train=broken.txt"], "broken.txt:2: 'no_video 3' is not"),
    (["data.train=unreadable"], "none of 8 videos tried (of 8) can be read"),
    (["optim.batch=25", "sce.queue=64"], "optim.batch (25) is larger than the data (24 videos)"),
    (["optim.batch=9", "optim.accumulate=2"], "optim.batch (9) must be divisible by processes (1) x optim.accumulate"),
    (["sce.queue=15"], "sce.queue (15) must hold at least one step's keys, 2 * optim.batch = 16"),
    (["sce.coef=0.5"], "unknown option 'sce.coef': did you mean sce.coeff?"),
    (["+sce.coef=0.5"], "unknown option 'sce.coef': did you mean sce.coeff?"),
    (["optim.epochs=many"], "option optim.epochs=many: Value 'many' of type 'str' could not be converted to Integer"),
    (["recipe=sce_r3d19"], "recipe 'sce_r3d19' is not one of demo, image_demo, sce_r"),
    (["sce.coeff=1.5"], "sce.coeff (1.5) must be in [0, 1]"),
    (["optim.precision=bf16"], "optim.precision=bf16 needs a GPU: add optim.precision=fp32"),
    (["augment.view1.hue=0.7"], "hue (0.7) must be in [0, 0.5]"),
    (["out=broken.txt/run"], "out=broken.txt/run cannot be written (Not a directory)"),
    (["model.backbone=r3d19"], "backbone 'r3d19' is not one of"),
]


@pytest.mark.parametrize(("overrides", "message"), BAD_INPUT, ids=[" ".join(case[0]) for case in BAD_INPUT])
def test_bad_input_is_one_line_and_nothing_is_written(overrides: list[str], message: str, videos: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.csv").write_text("path,label\na.mp4,1\nb,c.mp4,2\n")
    (tmp_path / "broken.txt").write_text("a.mp4 1\nno_video 3\n")
    (tmp_path / "unreadable").mkdir()
    for name in "abcdefgh":
        (tmp_path / "unreadable" / f"{name}.mp4").write_bytes(b"<html>404</html>")
    before = sorted(tmp_path.rglob("*"))
    overrides = [override.format(videos=videos) for override in overrides]
    result = run_tool("pretrain", *options(videos, "run"), *overrides, cwd=tmp_path)
    assert result.returncode == 70, result.stderr
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_folder_of_another_recipe_is_left_alone(videos: Path, tmp_path: Path) -> None:
    first = run_tool("pretrain", *options(videos, "run", "optim.epochs=1"), cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    before = {path: path.read_bytes() for path in sorted((tmp_path / "run").rglob("*")) if path.is_file()}
    result = run_tool("pretrain", *options(videos, "run", "optim.epochs=1", "sce.coeff=0.7"), cwd=tmp_path)
    assert result.returncode == 70
    assert "out=run holds a run of another recipe (sce.coeff: 0.5 there, 0.7 here)" in result.stderr
    assert {path: path.read_bytes() for path in sorted((tmp_path / "run").rglob("*")) if path.is_file()} == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.tex").write_text("mine")
    result = run_tool("pretrain", *options(videos, "other"), cwd=tmp_path)
    assert result.returncode == 70
    assert "no run folder" in result.stderr
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.tex"]


@pytest.mark.slow
def test_unreadable_videos_are_replaced_counted_and_bounded(videos: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(videos, data)
    (data / "class_0/00.mp4").write_bytes(b"")
    allowed = run_tool("pretrain", *options(data, "run", "data.max_bad_fraction=0.05"), cwd=tmp_path)
    assert allowed.returncode == 0, allowed.stderr
    assert "replaced an unreadable video (1 so far)" in allowed.stderr
    listed = (tmp_path / "run/skipped_videos.csv").read_text().splitlines()
    assert listed[0] == "path,count,reason"
    assert listed[1].startswith(f"{data / 'class_0/00.mp4'},4,"), "once per epoch"
    again = run_tool("pretrain", *options(data, "again", "data.max_bad_fraction=0.05"), cwd=tmp_path)
    assert again.returncode == 0
    assert losses(tmp_path / "again") == losses(tmp_path / "run"), "a deterministic rule"
    stopped = run_tool("pretrain", *options(data, "strict"), cwd=tmp_path)
    assert stopped.returncode == 70
    assert "1 of 24 videos could not be read, more than data.max_bad_fraction (0.01) allows" in stopped.stderr


def test_non_finite_loss_stops_before_the_update(videos: Path, tmp_path: Path) -> None:
    result = run_tool("pretrain", *options(videos, "run", "optim.lr_per_256=1e30", "system.save_every=1"), cwd=tmp_path)
    assert result.returncode == 70
    assert "nothing was updated" in result.stderr
    assert "lr " in result.stderr
    assert ".mp4" in result.stderr
    assert "Traceback" not in result.stderr
    state, _ = checkpoint.load(checkpoint.find(tmp_path / "run"))
    assert all(torch.isfinite(value).all() for value in state["method"].values() if value.is_floating_point())


@pytest.mark.slow
def test_run_on_a_full_disk_goes_on_and_ends_as_if_there_had_been_room(videos: Path, tmp_path: Path) -> None:
    """A disk of 8 MB, filled to the last byte for a while: no checkpoint, no line of the log, then all of them."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        common = ["optim.epochs=40", "system.save_every=30", "system.keep=1"]
        said = tmp_path / "said"
        command = [sys.executable, str(ROOT / "tools/pretrain.py"), *options(videos, str(disk / "run"), *common)]
        with open(said, "w") as errors:
            process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=errors)
        log, filler = disk / "run/log.jsonl", disk / "filler"
        wait_until(lambda: log.exists() and len(log.read_text().splitlines()) >= 3)
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        wait_until(lambda: "training goes on" in said.read_text() or process.poll() is not None)
        filler.unlink()
        assert process.wait(timeout=120) == 0, said.read_text()
        pretrain(compose_pretrain(*options(videos, str(tmp_path / "roomy"), *common)))
        assert losses(disk / "run") == losses(tmp_path / "roomy")
        states = [checkpoint.load(checkpoint.find(folder))[0] for folder in (disk / "run", tmp_path / "roomy")]
        assert checkpoint.state_digest(states[0]) == checkpoint.state_digest(states[1])
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_run_without_its_last_checkpoint_ends_with_70_and_so_do_three_in_a_row(videos: Path, tmp_path: Path) -> None:
    """A file in the place of the folder of checkpoints."""
    run = tmp_path / "run"
    pretrain(compose_pretrain(*options(videos, str(run), "optim.epochs=2")))
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").touch()
    with pytest.raises(Stopped, match="the last checkpoint could not be written to .*: make room"):
        pretrain(compose_pretrain(*options(videos, str(run), "optim.epochs=2", "system.save_every=4")))
    assert "warning: the checkpoint of step 4 could not be written: File exists" in (run / "log.txt").read_text()
    assert len(losses(run)) == 6
    assert (read_status(run)["status"], read_status(run)["exit_code"]) == ("failed", 70)
    with pytest.raises(Stopped, match="could not be written: File exists .* that was number 3 in a row"):
        pretrain(compose_pretrain(*options(videos, str(run), "optim.epochs=2", "system.save_every=1")))
    assert len(losses(run)) < 6


class Unsaveable(SCE):
    """With a bug: its state cannot be written."""

    def get_extra_state(self) -> object:
        return threading.Lock()


def test_bug_in_saving_ends_the_run_long_before_the_next_checkpoint(videos: Path, tmp_path: Path) -> None:
    def build(cfg: PretrainConfig) -> SCE:
        method = build_method(cfg)
        method.__class__ = Unsaveable
        return method

    run = tmp_path / "run"
    with pytest.raises(TypeError, match="cannot pickle"):
        pretrain(compose_pretrain(*options(videos, str(run), "optim.epochs=20", "system.save_every=20")), build)
    assert 20 <= len(losses(run)) < 40
    assert (read_status(run)["status"], read_status(run)["exit_code"]) == ("failed", 1)


def test_help_shows_commands_first() -> None:
    for tool in ("pretrain", "retrieval"):
        result = run_tool(tool, "--help", cwd=ROOT)
        assert result.returncode == 0
        commands = [line for line in result.stdout.splitlines() if f"tools/{tool}.py" in line]
        assert len(commands) >= 3


EVERYTHING = [
    "augment.view1.rand_augment_operations=2",
    "augment.view2.erase_probability=0.5",
    "augment.temporal_difference_probability=0.3",
    "augment.antialias=true",
    "data.speed_min=0.5",
    "data.speed_max=2",
    "data.frame_jitter=1",
    "system.channels_last=true",
    "optim.epochs=1",
]


def test_further_augmentations_train_and_repeat(videos: Path, tmp_path: Path) -> None:
    results = []
    for name, more in (("one", []), ("two", []), ("plain", ["data.frame_jitter=0"])):
        pretrain(compose_pretrain(*options(videos, str(tmp_path / name), *EVERYTHING, *more)))
        results.append(losses(tmp_path / name))
    assert results[0] == results[1] != results[2]
    assert len(results[0]) == 3


def test_a_run_with_options_that_are_gone_is_continued(videos: Path, tmp_path: Path) -> None:
    """Of plumbing only: `system.compile` was an option until the augmentation was no longer compiled."""
    common = options(videos, str(tmp_path / "run"))
    pretrain(compose_pretrain(*common, "optim.epochs=1"))
    path = tmp_path / "run/config.yaml"
    values = OmegaConf.load(path)
    values.system["compile"] = "auto"
    values.optim.epochs = 4
    OmegaConf.save(values, path)
    pretrain(compose_pretrain(*common))
    assert len(losses(tmp_path / "run")) == 12


def test_a_run_from_before_an_option_is_continued_with_its_default(videos: Path, tmp_path: Path) -> None:
    common = options(videos, str(tmp_path / "run"), "optim.epochs=1")
    pretrain(compose_pretrain(*common))
    path = tmp_path / "run/config.yaml"
    values = OmegaConf.load(path)
    del values.augment["local"]
    OmegaConf.save(values, path)
    pretrain(compose_pretrain(*common))
    message = "holds a run of another recipe (augment.local.size: 96 there, 16 here; augment.local.views: 0 there, 2 here)"
    with pytest.raises(InputError, match=re.escape(message)):
        pretrain(compose_pretrain(*common, *MULTI_CROP))


def first_views(overrides: list[str]) -> list[torch.Tensor]:
    """Train, and return what the method got in the first step."""
    seen: list[list[torch.Tensor]] = []

    def build(cfg: PretrainConfig) -> SCE:
        method = build_method(cfg)
        method.register_forward_pre_hook(lambda _, given: seen.append([view.clone() for view in given[0]]))
        return method

    pretrain(compose_pretrain(*overrides), build)
    return seen[0]


@pytest.mark.parametrize("resize_on", ["device", "worker"])
def test_local_views_come_after_global_ones_that_stay_as_they_were(
    resize_on: str, videos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    more = ["optim.epochs=1", "augment.temporal_difference_probability=0.3", f"data.resize_on={resize_on}"]
    plain = first_views(options(videos, str(tmp_path / "plain"), *more))
    assert "local view" not in capfd.readouterr().err
    both = first_views(options(videos, str(tmp_path / "both"), *more, *MULTI_CROP))
    assert "steps of 8 with 2 local view(s) of 16 px" in capfd.readouterr().err
    assert all(torch.equal(a, b) for a, b in zip(plain, both[:2], strict=True))
    assert [tuple(view.shape) for view in both] == [(8, 3, 4, 32, 32)] * 2 + [(8, 3, 4, 16, 16)] * 2
    assert not torch.equal(both[2], both[3]), "each is drawn for itself"


REFUSED = [
    (["augment.view2.blur_kernel=65"], "augment.view2.blur_kernel (65) must be odd and under twice the clip's side (32)"),
    (["augment.local.views=-1"], "augment.local.views (-1) must be at least 0; 0 is no multi-crop"),
    (["augment.local.views=2"], "augment.local.size (96) must be at most augment.size (32)"),
    (["augment.local.size=15"], "augment.local.size (15) must be at least 16 pixels"),
    (["augment.local.area_min=0.5"], "augment.local.area_min..area_max (0.5..0.328) must rise and be within (0, 1]"),
    (["augment.local.area_max=1.5"], "augment.local.area_min..area_max (0.086..1.5) must rise and be within (0, 1]"),
    (
        ["augment.local.view.blur_kernel=35", *MULTI_CROP],
        "augment.local.view.blur_kernel (35) must be odd and under twice the clip's side (16)",
    ),
    (["augment.local.view.hue=0.7"], "hue (0.7) must be in [0, 0.5]"),
    (["sce.queue=15", *MULTI_CROP], "2 * optim.batch = 16"),
    (["data.speed_min=2"], "data.speed_min..speed_max (2.0..1.0) must be positive and rise"),
    (["data.frame_jitter=1.5"], "data.frame_jitter (1.5) must be a number from 0 to 1"),
    (["system.bf16_clips=true"], "system.bf16_clips needs optim.precision=bf16, not fp32"),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSED, ids=[case[0][0] for case in REFUSED])
def test_options_that_do_not_fit_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        compose_pretrain(*TINY_RECIPE, "data.train=x.csv", *overrides)


def test_local_views_need_no_longer_queue() -> None:
    """Only keys are kept, and local views are none: the rule counts global views."""
    compose_pretrain(*TINY_RECIPE, "data.train=x.csv", "sce.queue=16", *MULTI_CROP)
