"""How clips travel from the worker to the device changes bytes, not pixels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from benchmarks import kinetics_like
from conftest import TINY_RECIPE, compose_pretrain, numbered_frames, records, run_tool
from hard_files import bt709, encode, full_range

from sce_video.config.shared import Transport
from sce_video.data import manifest
from sce_video.data.crops import Box, RandomResized
from sce_video.data.dataset import ClipDataset, collate
from sce_video.data.decode import open_video
from sce_video.data.packed import Packed
from sce_video.data.readers import planes
from sce_video.training.setup import as_planes


def dataset(videos: Path, **options: object) -> ClipDataset:
    settings: dict[str, object] = {"num_frames": 4, "clip_seconds": 0.8, "seed": 1, "difference_probability": 0.3}
    settings |= {"draw_boxes": [RandomResized((0.3, 0.8), (0.75, 4 / 3))] * 2, **options}
    return ClipDataset(manifest.read(videos / "train.csv"), **settings)  # type: ignore[arg-type]


def test_planes_become_the_same_clips_and_are_half_the_bytes(videos: Path) -> None:
    rgb, planar = (collate([dataset(videos, planes=way)[0, row] for row in range(6)]) for way in (False, True))
    for one, other in zip(rgb.views, planar.views, strict=True):
        assert other.pixels.numel() < 0.6 * one.pixels.numel()
        assert torch.equal(one.shapes, other.shapes)
        for clip, converted in zip(one.unpack(), other.unpack(), strict=True):
            # To the bit on x86, where FFmpeg's scaler computes as we do.
            assert (clip.int() - converted.int()).abs().max() <= 3
            assert (clip.float() - converted.float()).abs().mean() <= 1


def test_clips_of_both_kinds_share_a_batch(tmp_path: Path) -> None:
    boxes = [Box(3, 5, 30, 41)]
    with open_video(str(encode(tmp_path / "a.mp4"))) as video:
        clips = [torch.arange(0, 20, 4)]
        rgb, (planar,) = video.read_clips(clips, boxes), video.read_planes(clips, boxes) or []
    packed = Packed.pack([rgb[0], planar, rgb[0][:2], planar])
    found = packed.to(torch.device("cpu")).unpack()
    assert [tuple(clip.shape) for clip in found] == [tuple(shape) for shape in packed.shapes.tolist()]
    assert torch.equal(found[0], rgb[0])
    assert torch.equal(found[2], rgb[0][:2])
    assert torch.equal(found[1], planar.rgb())
    assert torch.equal(found[3], planar.rgb())


@pytest.mark.parametrize(("name", "prepare", "pix_fmt"), [("709", bt709, "yuv420p"), ("full", full_range, "yuvj420p")])
def test_the_files_own_matrix_and_range_are_used(name: str, prepare: object, pix_fmt: str, tmp_path: Path) -> None:
    frames = torch.randint(0, 256, (1, 8, 8, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    colours = frames.repeat_interleave(8, 1).repeat_interleave(8, 2).expand(4, -1, -1, -1).numpy()
    path = encode(tmp_path / f"{name}.mp4", frames=colours, prepare=prepare, pix_fmt=pix_fmt, crf="1")  # type: ignore[arg-type]
    box = Box(0, 0, 64, 64)
    with open_video(str(path)) as video:
        rgb, (planar,) = (video.read_clips([torch.arange(4)], [box])[0], video.read_planes([torch.arange(4)], [box]) or [])
    assert planar.coding == (planes.Coding(1, False) if name == "709" else planes.Coding(2, True))
    assert (planar.rgb().int() - rgb.int()).abs().max() <= 3
    planar.coding = planes.Coding(2, False)
    assert (planar.rgb().int() - rgb.int()).abs().max() > 8, "with another coding the colours are others"


def test_conversion_is_the_standards_within_a_step() -> None:
    """Against the formulas of BT.601 in float64: truncation loses up to two steps, never more."""
    draw = torch.Generator().manual_seed(0)
    luma = torch.randint(16, 236, (2, 8, 10), generator=draw, dtype=torch.uint8)
    chroma = torch.randint(16, 241, (2, 2, 4, 5), generator=draw, dtype=torch.uint8)
    found = planes.PlanarClip(luma, chroma, 1, 0, 6, 9, planes.Coding(5, False)).rgb()
    for t in range(2):
        for row in range(6):
            for column in range(9):
                y = (float(luma[t, row + 1, column]) - 16) / 219
                cb = (float(chroma[t, 0, (row + 1) // 2, column // 2]) - 128) / 224
                cr = (float(chroma[t, 1, (row + 1) // 2, column // 2]) - 128) / 224
                right = [y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb]
                for value, got in zip(right, found[t, row, column].tolist(), strict=True):
                    assert -0.1 <= min(max(255 * value, 0), 255) - got <= 3


def test_large_boxes_may_be_scaled_in_the_worker(tmp_path: Path) -> None:
    path = encode(tmp_path / "large.mp4", frames=numbered_frames(30, 144, 192))
    (tmp_path / "list.csv").write_text(f"path\n{path}\n")
    options = {"num_frames": 4, "clip_seconds": 0.8, "seed": 1}
    box = RandomResized((0.9, 1.0), (0.9, 1.1))
    native, scaled, small = (
        ClipDataset(manifest.read(tmp_path / "list.csv"), draw_boxes=[box], resize_to=size, planes=way, **options)[0, 0].clips[0]
        for size, way in ((None, False), ([64], True), ([500], False))
    )
    assert torch.equal(native, small)
    assert scaled.shape == (4, 64, 64, 3)
    right = F.interpolate(native.permute(0, 3, 1, 2).float(), size=(64, 64), mode="bilinear").permute(0, 2, 3, 1)
    assert (scaled.float() - right).abs().max() <= 0.51


def test_planes_are_the_default_beside_a_gpu_only() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [as_planes(Transport.auto, device) for device in (cpu, gpu)] == [False, True]
    assert as_planes(Transport.planes, cpu)
    assert not as_planes(Transport.rgb, gpu)


@pytest.mark.slow
def test_training_does_not_see_how_clips_travel(videos: Path, tmp_path: Path) -> None:
    losses = []
    for name, options in {"rgb": ["data.transport=rgb"], "planes": ["data.transport=planes"]}.items():
        result = run_tool(
            "pretrain",
            *TINY_RECIPE,
            "optim.epochs=1",
            f"data.train={videos / 'train.csv'}",
            f"out={name}",
            *options,
            cwd=tmp_path,
        )
        assert result.returncode == 0, result.stderr
        losses.append([line["train/loss"] for line in records(tmp_path / name) if "train/loss" in line])
    assert losses[0] == pytest.approx(losses[1], abs=0.05)


def test_options_of_decoding_are_read() -> None:
    cfg = compose_pretrain("data.loop_filter=reference", "data.resize_on=worker", "data.decoder=pyav")
    assert cfg.data.loop_filter.value == "reference"
    assert cfg.data.resize_on.value == "worker"


def test_skipping_the_loop_filter_is_close_and_not_equal(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", frames=kinetics_like.render(0, 40), crf="30", g="250", bf="3")
    found = {}
    for way in ("exact", "reference", "off"):
        with open_video(str(path), "pyav", loop_filter=way) as video:
            found[way] = video.read(range(40)).float()
    for way in ("reference", "off"):
        error = (found[way] - found["exact"]).square().mean()
        assert 0 < error < 60
    assert (found["reference"] - found["exact"]).square().mean() < (found["off"] - found["exact"]).square().mean()
