"""Training with labels: what is trained, what is not, how it is tested, and that it continues exactly."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, compose_finetune, losses, records, run_tool

import sce_video
from sce_video.errors import InputError
from sce_video.models import backbones
from sce_video.models.encoder import Classifier
from sce_video.programs.finetune import finetune
from sce_video.runs import checkpoint
from sce_video.training.optim import by_depth
from sce_video.weights import load

TINY = [
    "recipe=demo",
    "data.num_frames=4",
    "data.clip_seconds=0.8",
    "augment.size=32",
    "optim.batch=8",
    "optim.epochs=3",
    "optim.warmup_epochs=0",
    "optim.lr_per_256=0.1",
    "augment.short_side_min=0",
    "augment.short_side_max=0",
    "testing.size=0",
    "testing.clips_per_video=2",
    "system.workers=0",
    "system.log_every=1",
]


LEARNING = ["optim.epochs=12", "optim.lr_per_256=0.3", "optim.name=adamw", "model.dropout=0", "augment.view.jitter_probability=0"]


def lists(videos: Path) -> list[str]:
    return [f"train={videos / 'train.csv'}", f"test={videos / 'val.csv'}"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weight file of tiny3d with batch-norm statistics that are not the initial ones."""
    network, _ = backbones.build("tiny3d")
    generator = torch.Generator().manual_seed(5)
    for name, buffer in network.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5, generator=generator)
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    torch.save(network.state_dict(), path)
    return path


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = checkpoint.load(checkpoint.find(folder))[0]["method"]
    return state


def digest(folder: Path) -> str:
    return checkpoint.state_digest(checkpoint.load(checkpoint.find(folder))[0])


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run from scratch without augmentation, with one video of the test list unreadable."""
    folder = tmp_path_factory.mktemp("finished")
    text = (videos / "val.csv").read_text() + "gone.mp4,3\n"
    (folder / "test.csv").write_text(text)
    result = run_tool(
        "finetune",
        "backbone=tiny3d",
        f"train={videos / 'train.csv'}",
        "test=test.csv",
        f"root={videos}",
        "out=run",
        *TINY,
        *LEARNING,
        cwd=folder,
    )
    assert result.returncode == 0, result.stderr
    assert "of 8/9 videos" in result.stderr
    assert "with the 1 unreadable ones" in result.stderr
    assert "gone.mp4" in result.stderr
    return folder / "run"


def test_predictions_name_the_best_classes_in_order(finished: Path) -> None:
    for row in rows(finished / "predictions.csv"):
        if row["predicted"] == "unreadable":
            assert row["probability_2"] == ""
            continue
        shares = [float(row[f"probability{rank}"]) for rank in ("", "_2", "_3", "_4")]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1, abs=2.1e-4), "there are four classes"


def test_unlabelled_videos_are_classified_as_in_the_test(finished: Path, videos: Path, tmp_path: Path) -> None:
    """The same videos as the test list's, without labels: the same probabilities to the digit."""
    names = [row["path"] for row in rows(finished / "predictions.csv") if row["predicted"] != "unreadable"]
    folder = tmp_path / "more videos"
    folder.mkdir()
    for name in names:
        shutil.copy(name, folder / Path(name).name)
    (folder / "broken.mp4").write_bytes(b"no video")
    result = run_tool("finetune", f"checkpoint={finished}", f"predict={folder}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "broken.mp4" in result.stderr
    found = {Path(row.pop("path")).name: row for row in rows(finished / "predictions_more videos.csv")}
    assert found.pop("broken.mp4")["predicted"] == "unreadable"
    for row in rows(finished / "predictions.csv"):
        name, _ = Path(row.pop("path")).name, row.pop("label")
        assert row["predicted"] == "unreadable" or found[name] == row


@pytest.mark.slow
def test_windows_of_a_video_cover_it(finished: Path, videos: Path, tmp_path: Path) -> None:
    video = next(videos.rglob("*.mp4"))  # two seconds
    options = [f"checkpoint={finished}", f"predict={video}", "window_seconds=0.5", "out=windows.csv"]
    result = run_tool("finetune", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    times = [(float(row["start"]), float(row["end"])) for row in rows(tmp_path / "windows.csv")]
    assert len(times) == 4
    assert times[0][0] == 0
    assert times[-1][1] == 2
    again = run_tool("finetune", *options, cwd=tmp_path)
    assert again.returncode == 70
    assert "out=windows.csv exists" in again.stderr


PREDICT_WRONG = [
    (["predict=x"], "predict= needs checkpoint="),
    (["predict=nowhere", "checkpoint={finished}"], "'nowhere' does not exist"),
    (["predict=nowhere", "checkpoint=nowhere"], "nowhere"),
    (["predict=x", "window_seconds=-1", "checkpoint=c"], "window_seconds (-1.0) must be at least 0 seconds"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("options", "message"), PREDICT_WRONG, ids=[" ".join(case[0]) for case in PREDICT_WRONG])
def test_wrong_predictions_are_refused(options: list[str], message: str, finished: Path, tmp_path: Path) -> None:
    result = run_tool("finetune", *(option.format(finished=finished) for option in options), cwd=tmp_path)
    assert result.returncode == 70, result.stderr
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_windows_are_for_predictions() -> None:
    with pytest.raises(InputError, match="window_seconds= is for predict=FOLDER: give it too"):
        compose_finetune("window_seconds=2", "train=a", "test=b", "checkpoint=c", "recipe=ucf101")


def test_it_learns_and_the_rate_follows_the_schedule(finished: Path) -> None:
    steps = [record for record in records(finished) if "train/loss" in record]
    assert len(steps) == 36
    assert sum(losses(finished)[-3:]) < 0.8 * sum(losses(finished)[:3])
    base = 0.3 * 8 / 256
    expected = [base / 2 * (1 + math.cos(math.pi * i / 36)) for i in range(36)]
    assert [step["train/lr"] for step in steps] == pytest.approx(expected, rel=1e-5)


def test_report_files_agree_with_each_other(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    predictions = rows(finished / "predictions.csv")
    read = [row for row in predictions if row["predicted"] != "unreadable"]
    assert (len(read), len(predictions)) == (8, 9)
    right = [row["label"] == row["predicted"] for row in read]
    assert result["test"]["top1"] == sum(right) / 8
    assert result["test"]["top1_of_listed"] == pytest.approx(sum(right) / 9)
    assert (result["test"]["scored"], result["test"]["listed"]) == (8, 9)
    for row in rows(finished / "per_class.csv"):
        own = [hit for hit, one in zip(right, read, strict=True) if one["label"] == row["label"]]
        assert int(row["videos"]) == len(own)
        assert float(row["top1"]) == pytest.approx(sum(own) / len(own))
        assert result["per_class"][row["label"]] == pytest.approx(float(row["top1"]))
    for row in rows(finished / "confusion.csv"):
        label = row.pop("true \\ predicted")
        for predicted, count in row.items():
            assert int(count) == sum((r["label"], r["predicted"]) == (label, predicted) for r in read)
    assert result["selected"] == "the last weights"


def test_test_scores_are_the_mean_of_softmax_over_views(finished: Path, videos: Path) -> None:
    """One video of predictions.csv, all six views cut by hand."""
    from sce_video.data.decode import open_video

    classifier, classes = sce_video.load_classifier(finished)
    assert classes == ["0", "1", "2", "3"]
    row = rows(finished / "predictions.csv")[0]
    probabilities = []
    with open_video(row["path"], "pyav") as video:  # 60 frames of 48 x 64 at 30 per second
        for indices in ([0, 8, 16, 24], [36, 43, 51, 59]):
            clip = video.read(indices).permute(3, 0, 1, 2).float() / 255
            clip = torch.stack([F.interpolate(c[:, None], (37, 49), mode="bilinear")[:, 0] for c in clip])
            for left in (0, 6, 12):
                with torch.no_grad():
                    logits = classifier(clip[None, :, :, :, left : left + 37])
                probabilities.append(logits.softmax(dim=1)[0])
    best = torch.stack(probabilities).mean(0).max(0)
    assert row["predicted"] == classes[int(best.indices)]
    assert float(row["probability"]) == pytest.approx(best.values.item(), abs=1e-4)


@pytest.mark.slow
def test_a_finished_run_is_not_run_again_and_is_an_encoder(finished: Path, videos: Path) -> None:
    before = digest(finished)
    arguments = [f"train={videos / 'train.csv'}", "test=test.csv", f"root={videos}", "out=run", *TINY]
    again = run_tool("finetune", "backbone=tiny3d", *arguments, *LEARNING, cwd=finished.parent)
    assert again.returncode == 0, again.stderr
    assert "is done: top-1" in again.stdout
    assert digest(finished) == before
    encoder = load.load_encoder(finished)
    assert torch.equal(encoder.backbone.state_dict()["blocks.1.0.weight"], state_of(finished)["backbone.blocks.1.0.weight"])


def test_a_pretraining_run_is_no_classifier(videos: Path, tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, {"method": {}}, {"encoder": {"backbone": "tiny3d"}}, keep=1)
    with pytest.raises(InputError, match="was not trained with labels"):
        sce_video.load_classifier(tmp_path)


def test_linear_probe_leaves_the_encoder_as_it_was(videos: Path, weights: Path, tmp_path: Path) -> None:
    start = [f"checkpoint={weights}", "backbone=tiny3d", *lists(videos), *TINY]
    finetune(compose_finetune(*start, "model.frozen=true", "model.dropout=0", f"out={tmp_path}/run"))
    original = torch.load(weights, weights_only=True)
    trained = state_of(tmp_path / "run")
    for key, value in original.items():
        assert torch.equal(trained[f"backbone.{key}"], value), key
    assert trained["linear.weight"].std() > 0.01
    assert json.loads((tmp_path / "run/result.json").read_text())["frozen"] is True


def test_frozen_norms_stay_and_the_rest_moves(videos: Path, weights: Path, tmp_path: Path) -> None:
    start = [f"checkpoint={weights}", "backbone=tiny3d", *lists(videos), *TINY]
    finetune(compose_finetune(*start, "model.freeze_norm=true", f"out={tmp_path}/run"))
    original = torch.load(weights, weights_only=True)
    trained = state_of(tmp_path / "run")
    for key, value in original.items():
        norm = key.split(".")[2] == "1"  # blocks.N is convolution, norm, ReLU
        assert torch.equal(trained[f"backbone.{key}"], value) == norm, key


def test_weights_best_on_the_test_list_are_only_taken_when_asked(videos: Path, tmp_path: Path) -> None:
    common = ["backbone=tiny3d", *lists(videos), *TINY, "testing.every_epochs=1"]
    finetune(compose_finetune(*common, "testing.select=test", f"out={tmp_path}/test"))
    looks = {r["step"]: r["eval/test_top1"] for r in records(tmp_path / "test") if "eval/test_top1" in r}
    assert list(looks) == [3, 6, 9]
    written = json.loads((tmp_path / "test/result.json").read_text())
    assert written["step"] == next(step for step, value in looks.items() if value == max(looks.values()))
    assert "test list itself" in written["selected"]
    assert checkpoint.find(tmp_path / "test/best").name == f"step_{written['step']:08d}"
    val = ["testing.select=val", f"val={videos / 'val.csv'}"]
    finetune(compose_finetune(*common, *val, f"out={tmp_path}/val"))
    assert "validation list" in json.loads((tmp_path / "val/result.json").read_text())["selected"]
    assert not any("eval/test_top1" in record for record in records(tmp_path / "val"))


def test_splits_and_their_mean(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in (1, 2):
        for name, source in (("train", "train"), ("test", "val")):
            (tmp_path / f"{name}0{split}.csv").write_text((videos / f"{source}.csv").read_text())
    arguments = ["backbone=tiny3d", f"train={tmp_path}/train0%.csv", f"test={tmp_path}/test0%.csv", f"root={videos}"]
    finetune(compose_finetune(*arguments, *TINY, "optim.epochs=1", "splits=[1,2]", f"out={tmp_path}/run"))
    summary = json.loads((tmp_path / "run/splits.json").read_text())
    tops = [100 * summary["splits"][split]["test"]["top1"] for split in ("1", "2")]
    assert summary["mean"]["top1"] == pytest.approx(sum(tops) / 2)
    assert tops[0] == tops[1], "the same lists, the same seed, the same result"
    assert f"{'mean':<8}{summary['mean']['top1']:8.2f}" in capsys.readouterr().out


@pytest.mark.slow
def test_killed_and_continued_equals_straight(videos: Path, tmp_path: Path) -> None:
    arguments = ["backbone=tiny3d", *lists(videos), *TINY, "system.save_every=2", "optim.epochs=4"]
    arguments += ["augment.cutmix_alpha=1", "augment.view.rand_augment_operations=1", "augment.view.erase_probability=0.3"]
    arguments += ["data.speed_min=0.8", "data.speed_max=1.25", "data.frame_jitter=0.5"]
    arguments += ["augment.mixup_alpha=0.2", "optim.layer_decay=0.8", "optim.label_smoothing=0.1", "model.dropout=0.5"]
    straight = run_tool("finetune", *arguments, "out=straight", cwd=tmp_path)
    assert straight.returncode == 0, straight.stderr
    command = [sys.executable, str(ROOT / "tools/finetune.py"), *arguments, "out=killed"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    saved = tmp_path / "killed/checkpoints"
    deadline = time.monotonic() + 120
    while len(checkpoint.checkpoints(saved)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed/result.json").exists()
    rest = run_tool("finetune", *arguments, "out=killed", cwd=tmp_path)
    assert rest.returncode == 0, rest.stderr
    assert "continuing" in rest.stderr
    assert losses(tmp_path / "killed") == losses(tmp_path / "straight")
    assert digest(tmp_path / "killed") == digest(tmp_path / "straight")


@pytest.mark.slow
def test_two_processes_train_and_test_as_one(videos: Path, tmp_path: Path) -> None:
    arguments = ["backbone=tiny3d", *lists(videos), *TINY, "optim.lr_per_256=0.02"]
    arguments += ["augment.mixup_alpha=0.2", "augment.cutmix_alpha=1.0"]
    for processes in (0, 2):
        result = run_tool("finetune", *arguments, f"out={processes}", cwd=tmp_path, processes=processes)
        assert result.returncode == 0, result.stderr
    assert losses(tmp_path / "0") == pytest.approx(losses(tmp_path / "2"), abs=2e-5)
    one, two = (json.loads((tmp_path / f"{n}/result.json").read_text()) for n in (0, 2))
    assert one == two


def test_layer_decay_scales_by_distance_from_the_output() -> None:
    network, width = backbones.build("tiny3d")
    classifier = Classifier(network, width, 3, dropout=0.0)
    groups = by_depth(classifier.stages(), 0.1, 0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert len(scale) == sum(1 for _ in classifier.parameters())
    assert scale[id(classifier.linear.weight)] == 1
    # blocks.0 standardises and has no parameters: four stages of the backbone, then the linear layer
    for depth in (1, 2, 3, 4):
        assert {scale[id(p)] for p in network.blocks[depth].parameters()} == {0.5 ** (5 - depth)}  # type: ignore[index,operator]
    assert all(group["weight_decay"] == (0.1 if p.ndim > 1 else 0) for group in groups for p in group["params"])


def test_dropout_keeps_the_mean_and_drops_the_given_share() -> None:
    class Ones(torch.nn.Module):
        def forward(self, clips: torch.Tensor) -> torch.Tensor:
            return torch.ones(len(clips), 20_000)

    classifier = Classifier(Ones(), 20_000, 1, dropout=0.8)
    torch.nn.init.ones_(classifier.linear.weight)
    uniform = torch.rand(2, 20_000, generator=torch.Generator().manual_seed(0))
    logits = classifier(torch.zeros(2, 1), uniform)
    kept = (uniform >= 0.8).sum(dim=1)
    assert torch.allclose(logits[:, 0], kept / 0.2, rtol=1e-4)
    assert torch.allclose(kept / 20_000, torch.tensor(0.2), atol=0.01)
    assert classifier(torch.zeros(1, 1)).item() == pytest.approx(20_000)


BAD: list[tuple[list[str], str]] = [
    (["train={v}/train.csv", "test={v}/val.csv"], "give checkpoint=..., or backbone=... to train from scratch"),
    (["backbone=tiny3d", "train={v}/train.csv", "test={v}/val.csv"], "data.num_frames must be given"),
    (["backbone=tiny3d", "train={v}/train.csv", "test=more.csv", *TINY], "classes of more.csv have no video in"),
    (["backbone=tiny3d", "train={v}/train.csv", "test=names.csv", *TINY], "the lists do not belong together"),
    (["backbone=tiny3d", "train={v}/train%.csv", "test={v}/val.csv", *TINY], "splits=[1,2,3] and the sign %"),
    (
        ["backbone=tiny3d", "train={v}/train.csv", "test={v}/no%.csv", "splits=[1,2]", *TINY],
        "no1.csv, a list of split 1, does not exist: no split was trained",
    ),
    (["backbone=tiny3d", "train={v}/train.csv", "test={v}/val.csv", "testing.select=val", *TINY], "needs val="),
    (["backbone=tiny3d", "train={v}/train.csv", "test={v}/val.csv", *TINY, "optim.batch=99"], "is larger than the data"),
    (["backbone=tiny3d", "train={v}/train.csv", "test={v}/val.csv", *TINY, "model.dropout=1"], "model.dropout (1.0) must be a"),
    (["backbone=tiny3d", "train={v}/train.csv", "test=gone.csv", *TINY], "none of 2 videos tried (of 2) can be read, e.g. "),
    (["backbone=r3d18", "checkpoint={w}", "train={v}/train.csv", "test={v}/val.csv", *TINY], "tiny3d"),
    (
        ["backbone=tiny3d", "train={v}/train.csv", "test={v}/val.csv", *TINY, "augment.short_side_min=20"],
        "must begin at augment.size (32)",
    ),
    (
        ["backbone=tiny3d", "train={v}/train.csv", "test={v}/val.csv", *TINY, "augment.view.blur_probability=0.5"]
        + ["augment.view.blur_kernel=71"],
        "augment.view.blur_kernel (71) must be odd and under twice the clip's side (32)",
    ),
    (
        ["backbone=tiny3d", "train={v}/train.csv", "test={v}/val.csv", *TINY, "augment.cutmix_alpha=-1"],
        "augment.cutmix_alpha (-1.0) must be a number from 0 to 1000",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[message[:24] for _, message in BAD])
def test_bad_input_is_refused_before_anything_is_written(
    arguments: list[str], message: str, videos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more.csv").write_text(f"path,label\n{videos}/class_0/00.mp4,0\nx.mp4,9\n")
    (tmp_path / "gone.csv").write_text("path,label\nx.mp4,0\ny.mp4,1\n")
    (tmp_path / "names.csv").write_text("path,label\nx.mp4,archery\n")
    filled = [argument.format(v=videos, w=weights) for argument in arguments]
    with pytest.raises(InputError, match=re.escape(message)):
        finetune(compose_finetune(*filled, "out=run"))
    assert not (tmp_path / "run").exists()


def test_bad_input_is_one_line(videos: Path, tmp_path: Path) -> None:
    result = run_tool("finetune", "backbone=tiny3d", *lists(videos), "model.frosen=true", cwd=tmp_path)
    assert result.returncode == 70
    assert result.stderr == "error: unknown option 'model.frosen': did you mean model.frozen?\n"


def test_doubts_about_the_lists_are_said_with_both_lines(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (videos / "val.csv").read_text().splitlines()
    shared = (videos / "train.csv").read_text().splitlines()[4]
    (tmp_path / "test.csv").write_text("\n".join([*lines[:3], shared, *lines[3:]]) + "\n")
    arguments = ["backbone=tiny3d", f"train={videos / 'train.csv'}", f"test={tmp_path / 'test.csv'}", f"root={videos}"]
    finetune(compose_finetune(*arguments, *TINY, "optim.epochs=1", f"out={tmp_path}/run"))
    said = capsys.readouterr().err
    assert "1 of 9 test videos are in the train list too" in said
    assert "(line 5 of the train list, line 4 of the test list)" in said
