"""Each file under examples/ does what docs/extending.md says (the method: tests/test_methods.py)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY_RECIPE, losses, run_tool

import sce_video
from sce_video.data import manifest
from sce_video.randomness import generator

EXAMPLES = ROOT / "examples"


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


def test_backbone_is_pretrained_and_loaded(videos: Path, tmp_path: Path) -> None:
    options = [option for option in TINY_RECIPE if not option.startswith("model.backbone=")]
    options += [f"data.train={videos}/train.csv", "model.backbone=backbone:build", "optim.epochs=1"]
    path = f"{EXAMPLES}:{ROOT}"
    result = run_tool("pretrain", *options, "optim.warmup_epochs=0", "out=run", cwd=tmp_path, PYTHONPATH=path)
    assert result.returncode == 0, result.stderr
    assert len(losses(tmp_path / "run")) == 3
    encoder = sce_video.load_encoder(tmp_path / "run", trust=True)
    assert encoder(torch.zeros(2, 3, 4, 32, 32)).shape == (2, 64)


def test_data_set_lists_every_video_with_its_label(tmp_path: Path) -> None:
    for name in ("archery_0001.mp4", "deep/bowling_0002.avi", "notes.txt"):
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / name).touch()
    out = tmp_path / "lists/mine.csv"
    command = [sys.executable, str(EXAMPLES / "data_set.py"), str(tmp_path / "videos"), str(out)]
    assert "2 videos" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    listed = manifest.read(out)
    assert [(Path(video.path).name, video.label) for video in listed] == [
        ("archery_0001.mp4", "archery"),
        ("bowling_0002.avi", "bowling"),
    ]


def test_augmentation_is_drawn_per_clip_and_applied() -> None:
    import augmentation

    rows = [generator(0, "reverse", row) for row in range(2000)]
    chosen = augmentation.draw_reversed(0.25, rows)
    assert 0.2 < chosen.double().mean() < 0.3
    one = augmentation.draw_reversed(0.25, [generator(0, "reverse", 7)])
    assert one.item() == chosen[7].item()

    clips = torch.rand(2, 3, 5, 4, 4)
    shown = augmentation.reverse_time(clips, torch.tensor([True, False]))
    assert torch.equal(shown[0], clips[0].flip(1))
    assert torch.equal(shown[1], clips[1])


@pytest.mark.slow
def test_the_parts_train_in_a_plain_loop(videos: Path) -> None:
    import plain_loop

    history = plain_loop.train(f"{videos}/train.csv", epochs=8)
    assert len(history) == 24
    assert sum(history[-6:]) < sum(history[3:9]) - 1  # before, the queue holds random keys, which are easy to tell apart
    assert plain_loop.train(f"{videos}/train.csv", epochs=1) == history[:3]


@pytest.mark.slow
def test_the_parts_train_in_a_lightning_module(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Lightning, which is no dependency, the example's own stand-in trains the module."""
    import lightning_loop

    monkeypatch.chdir(tmp_path)  # Lightning writes into the working directory
    module = lightning_loop.main(f"{videos}/train.csv")
    assert int(module.queue.pointer) == 24
    changed = [
        not torch.equal(new, old) for new, old in zip(module.target.parameters(), module.online.parameters(), strict=False)
    ]
    assert any(changed)
    assert all(torch.isfinite(value).all() for value in module.online.parameters())
