"""tools/models.py counts what papers count; tools/checkpoint.py precise-bn sets population statistics in a new file."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_tool
from start.precise_norm import set_population_statistics

import sce_video
from sce_video.data import manifest
from sce_video.data.decode import open_video
from sce_video.errors import InputError
from sce_video.evaluation.views import Views, view_outputs
from sce_video.models import backbones
from sce_video.models.encoder import FrozenEncoder


def table(*arguments: str) -> dict[str, list[str]]:
    command = [sys.executable, str(ROOT / "tools/models.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return {line.split()[0]: line.replace(", ", ",").split()[1:] for line in done.stdout.splitlines()[2:]}


def by_hand(size: int, frames: int) -> float:
    """Multiply-adds of tiny3d's four convolutions: outputs x inputs x kernel."""
    total, t, s = 0, frames, size
    for fan_in, fan_out, kernel, (st, ss) in (
        *((3, 16, 25, (1, 2)), (16, 32, 27, (2, 2))),
        *((32, 64, 27, (1, 2)), (64, 128, 27, (2, 2))),
    ):
        t, s = -(-t // st), -(-s // ss)
        total += t * s * s * fan_out * fan_in * kernel
    return total / 1e9


@pytest.mark.slow
def test_counts_are_those_by_hand_and_of_the_paper() -> None:
    rows = table("tiny3d", "x3d_xs", "slowfast_r50", "s3d", "--frames", "4", "--size", "160")
    assert rows["tiny3d"][0] == "291,984"
    assert float(rows["tiny3d"][1]) == pytest.approx(by_hand(160, 4), abs=0.02)  # without the batch norms'
    assert rows["tiny3d"][2:5] == ["128", "4", "16"]
    assert float(rows["x3d_xs"][1]) == pytest.approx(0.60, abs=0.05)  # X3D (Feichtenhofer, 2020), table 4, with its head
    assert rows["slowfast_r50"][3:5] == ["4,1", "32"]
    assert rows["s3d"][1] == "-"  # 4 frames are too few


@pytest.mark.slow
def test_every_backbone_has_a_row_and_torchvisions_figures() -> None:
    rows = table("--frames", "16", "--size", "32")
    assert list(rows) == list(backbones.BACKBONES)
    assert all("-" not in row for row in rows.values())
    documented = [line for line in (backbones.__doc__ or "").splitlines() if line.startswith("| ")][1:]
    assert {line.split()[1]: line.replace(", ", ",").split()[-2] for line in documented} == {
        name: row[3] for name, row in rows.items()
    }
    assert float(table("mvit_v2_s", "--frames", "16")["mvit_v2_s"][1]) == pytest.approx(64.224, rel=0.02)


def test_statistics_are_those_of_all_clips(videos: Path) -> None:
    listed = manifest.read(videos / "train.csv")[:5]
    torch.manual_seed(0)
    encoder = FrozenEncoder(backbones.build("tiny3d")[0], "tiny3d", mean=0.45, std=0.225, clip={})
    views = Views(2, 1, 4, 0.8, 32)
    inputs: list[torch.Tensor] = []
    hook = encoder.backbone.blocks[1][1].register_forward_pre_hook(lambda _, given: inputs.append(given[0].clone()))
    list(view_outputs(encoder, listed, views, device=torch.device("cpu")))
    hook.remove()
    values = torch.cat(inputs).transpose(0, 1).flatten(1).double()
    assert set_population_statistics(encoder, listed, views, device=torch.device("cpu")) == (4, 10)
    norm = encoder.backbone.blocks[1][1]
    assert torch.allclose(norm.running_mean, values.mean(dim=1).float(), atol=1e-6)
    assert torch.allclose(norm.running_var, values.var(dim=1, unbiased=False).float(), rtol=1e-4)
    assert not any(module.training for module in encoder.modules())


def test_statistics_agree_with_fvcores_where_passes_are_equal(videos: Path) -> None:
    """fvcore averages the statistics of equal passes: the same means; its variances too, within one pass."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fvcore.nn.precise_bn import update_bn_stats

    listed = manifest.read(videos / "train.csv")[:8]
    torch.manual_seed(0)
    encoder = FrozenEncoder(backbones.build("tiny3d")[0], "tiny3d", mean=0.45, std=0.225, clip={})
    views, batches = Views(2, 1, 4, 0.8, 32), list[torch.Tensor]()
    record = lambda clips: (batches.append(clips.clone()), encoder(clips))[1]  # noqa: E731
    list(view_outputs(record, listed, views, device=torch.device("cpu")))
    assert [len(batch) for batch in batches] == [8, 8]
    set_population_statistics(encoder, listed, views, device=torch.device("cpu"))
    ours = {key: value.clone() for key, value in encoder.state_dict().items()}
    update_bn_stats(encoder.train(), batches, num_iters=2)
    for key, value in encoder.state_dict().items():
        if "running" in key:
            assert torch.allclose(ours[key], value, rtol=0.02, atol=1e-3), key


def test_networks_without_batch_norm_are_refused(videos: Path) -> None:
    from torch import nn

    flat = FrozenEncoder(nn.Flatten(), "flat", mean=0, std=1, clip={})
    with pytest.raises(InputError, match="flat has no batch norm"):
        set_population_statistics(flat, [], Views(1, 1, 4, 0.8, 32), device=torch.device("cpu"))


@pytest.mark.slow
def test_precise_bn_writes_a_new_file_and_leaves_the_run(videos: Path, tmp_path: Path) -> None:
    from conftest import TINY_RECIPE

    pytest.importorskip("safetensors")
    done = run_tool(
        "pretrain",
        *TINY_RECIPE,
        f"data.train={videos}/train.csv",
        "optim.epochs=1",
        "optim.warmup_epochs=0",
        "out=run",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    digests = lambda: {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in (tmp_path / "run").rglob("*") if p.is_file()}  # noqa: E731
    before = digests()
    command = [
        sys.executable,
        str(ROOT / "tools/checkpoint.py"),
        "precise-bn",
        "run",
        str(videos / "train.csv"),
        "new.safetensors",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "with the statistics of" in done.stdout
    assert digests() == before
    old, new = sce_video.load_encoder(tmp_path / "run"), sce_video.load_encoder(tmp_path / "new.safetensors")
    assert new.name == "tiny3d"
    assert new.projector is not None
    assert torch.equal(old.backbone.blocks[1][0].weight, new.backbone.blocks[1][0].weight)
    assert not torch.allclose(old.backbone.blocks[1][1].running_mean, new.backbone.blocks[1][1].running_mean)
    again = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert again.returncode == 70
    assert "new.safetensors exists" in again.stderr
    with open_video(str(next(videos.rglob("*.mp4")))) as video:
        assert new(video.read([0, 2, 4, 6])[None].permute(0, 4, 1, 2, 3)).shape == (1, 128)
