"""One table per checkpoint, from one decode, with the same values as metrics computed separately."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHARED, compose_program, run_tool
from sklearn.linear_model import LogisticRegression

from sce_video.config.evaluate import EvaluateConfig, RetrievalConfig
from sce_video.data import manifest
from sce_video.errors import InputError
from sce_video.evaluation import extract
from sce_video.evaluation.views import Views
from sce_video.programs.evaluate import evaluate
from sce_video.programs.retrieval import retrieve
from sce_video.weights import load

CLIP = ["num_frames=4", "clip_seconds=0.8", "size=37", "clips_per_video=2", "num_crops=3", "workers=0"]
VIEWS = Views(clips_per_video=2, num_crops=3, num_frames=4, clip_seconds=0.8, size=37)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    encoder = load.untrained_encoder("tiny3d", seed=4, mean=0.45, std=0.225, clip={})
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    torch.save(encoder.backbone.state_dict(), path)
    return path


def arguments(weights: Path, videos: Path) -> list[str]:
    lists = [f"train={videos / 'train.csv'}", f"test={videos / 'val.csv'}"]
    return [f"checkpoint={weights}", "backbone=tiny3d", *lists, *CLIP]


def apart(weights: Path, videos: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features and labels of both lists as arrays."""
    encoder = load.load_encoder(weights, "tiny3d")
    parts = []
    for split in ("train", "val"):
        listed = manifest.read(videos / f"{split}.csv")
        found = extract.extract(encoder, listed, VIEWS, device=torch.device("cpu"))
        parts += [found.features["backbone"].numpy(), np.array([int(video.label or -1) for video in listed])]
    return parts[0], parts[1], parts[2], parts[3]


def unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def test_the_table_equals_the_protocols_written_out(
    weights: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*arguments(weights, videos), "k=3", "shots=[2]", "repeats=3", f"out={tmp_path / 'x.json'}"]
    row = evaluate(compose_program("evaluate", EvaluateConfig, *options))["rows"]["checkpoint"]
    bank, bank_labels, query, query_labels = apart(weights, videos)
    similarity = unit(query - query.mean(0)) @ unit(bank - bank.mean(0)).T
    order = np.argsort(-similarity, axis=1)
    hits = bank_labels[order] == query_labels[:, None]
    for k in (1, 5, 10):
        assert row["recall_at_k"][str(k)] == hits[:, :k].any(1).mean()
    precisions = [np.mean([(i + 1) / (rank + 1) for i, rank in enumerate(np.flatnonzero(one))]) for one in hits]
    assert row["mean_average_precision"] == pytest.approx(np.mean(precisions), abs=1e-6)
    similarity = unit(query) @ unit(bank).T
    right = 0
    for one, label in zip(similarity, query_labels, strict=True):
        votes = np.zeros(4)
        for index in np.argsort(-one)[:3]:
            votes[bank_labels[index]] += np.exp(one[index] / 0.07)
        right += int(votes.argmax() == label)
    assert row["knn_top1"] == right / 8
    model = LogisticRegression(C=row["linear"]["chosen"], max_iter=5000).fit(unit(bank), bank_labels)
    assert row["linear"]["accuracy"] == (model.predict(unit(query)) == query_labels).mean()
    printed = capsys.readouterr().out
    for word in ("kNN", "R@1", "mAP", "2-shot", "linear", "random weights", "8/8, 24/24"):
        assert word in printed
    assert json.loads((tmp_path / "x.json").read_text())["rows"]["checkpoint"]["knn_top1"] == right / 8


def test_programs_share_one_decode(
    weights: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCE_VIDEO_CACHE", str(tmp_path / "cache"))
    options = arguments(weights, videos)
    evaluate(compose_program("evaluate", EvaluateConfig, *options, "shots=[]", f"out={tmp_path / 'e.json'}"))
    assert "32 of 32 videos decoded" in capsys.readouterr().err
    retrieve(compose_program("retrieval", RetrievalConfig, *options, f"out={tmp_path / 'r.json'}"))
    assert "0 of 32 videos decoded" in capsys.readouterr().err
    # Another seed: the checkpoint's features are cached, those of the random network are not.
    retrieve(compose_program("retrieval", RetrievalConfig, *options, "seed=1", f"out={tmp_path / 's.json'}"))
    assert "32 of 32 videos decoded" in capsys.readouterr().err


def test_variants_of_retrieval_side_by_side(videos: Path, tmp_path: Path) -> None:
    """A checkpoint in the reference's layout, with a projector: six variants from one decode."""
    encoder = load.untrained_encoder("tiny3d", seed=4, mean=0.45, std=0.225, clip={})
    from sce_video.models.encoder import MLP

    projector = MLP([128, 32, 16], last_norm=True).eval()
    state = {f"trunk.model.{key}": value for key, value in encoder.backbone.state_dict().items()}
    state |= {f"projector.{key}": value for key, value in projector.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "x.ckpt")
    options = [*arguments(tmp_path / "x.ckpt", videos), "variants=true", "cache=false", f"out={tmp_path / 'r.json'}"]
    rows = retrieve(compose_program("retrieval", RetrievalConfig, *options))["rows"]
    assert set(rows) == {"checkpoint", "random weights"}
    for row in rows.values():
        assert len([label for label in row if label.startswith(("backbone", "projector"))]) == 6
    bank, bank_labels, query, query_labels = apart(tmp_path / "x.ckpt", videos)
    nearest = (unit(query) @ unit(bank).T).argmax(1)
    found = rows["checkpoint"]["backbone, all views"]["recall_at_k"]["1"]
    assert found == (bank_labels[nearest] == query_labels).mean()
    with torch.no_grad():  # averaging and a projector of linear layers and ReLU do not commute: compare one view
        loaded = load.load_encoder(tmp_path / "x.ckpt", "tiny3d")
        clip = torch.rand(2, 3, 4, 37, 37)
        assert torch.allclose(loaded.project(loaded(clip)), projector(encoder(clip)), atol=1e-6)


def test_lists_without_a_common_class_are_said_to_be_doubtful(weights: Path, videos: Path, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text((videos / "val.csv").read_text().replace(",", ",x"))
    (tmp_path / "x.csv").write_text((tmp_path / "x.csv").read_text().replace("path,xlabel", "path,label"))
    options = [
        *arguments(weights, videos),
        f"test={tmp_path / 'x.csv'}",
        f"root={videos}",
        "shots=[]",
        "linear=false",
        "out=x.json",
    ]
    result = run_tool("evaluate", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "linear" not in result.stdout
    assert "warning: 4 of 8 classes have no train video, e.g. 'x0'" in result.stderr


def test_bad_input_is_refused(weights: Path, videos: Path, tmp_path: Path) -> None:
    options = [option for option in arguments(weights, videos) if not option.startswith("test=")]
    (tmp_path / "flat.txt").write_text("a.mp4\n")
    for extra, message in (
        ([f"test={tmp_path / 'flat.txt'}"], "has no label"),
        ([f"test={videos / 'val.csv'}", "k=0"], "k \\(0\\) must be a number from 1"),
        ([f"test={videos / 'val.csv'}", "shots=[0]"], "shots .* must be a number from 1"),
        ([f"test={videos / 'val.csv'}", f"out={weights}"], "exists: choose another file"),
        ([f"test={videos / 'val.csv'}", f"out={weights}/x.json"], "cannot be written: give out="),
    ):
        with pytest.raises(InputError, match=message):
            evaluate(compose_program("evaluate", EvaluateConfig, *options, *extra))


@pytest.mark.skipif(not (SHARED / "clips").is_dir(), reason="the shared clips are not here")
@pytest.mark.slow
def test_real_lists_are_scored_whole(weights: Path, tmp_path: Path) -> None:
    """UCF101's own list files, AVI with B-frames and odd timestamps: every video is scored."""
    shared = SHARED / "clips"
    options = [f"checkpoint={weights}", "backbone=tiny3d", *CLIP, "shots=[]", f"out={tmp_path / 'x.json'}"]
    options += [f"train={shared}/lists/ucf101_trainlist01.txt", f"test={shared}/lists/ucf101_testlist01.txt"]
    options += [f"root={shared / 'ucf101'}", "labels=folder"]
    rows = evaluate(compose_program("evaluate", EvaluateConfig, *options))["rows"]
    assert rows["checkpoint"]["scored"] == {"train": 87, "test": 40}
    assert not rows["checkpoint"]["unreadable"]
