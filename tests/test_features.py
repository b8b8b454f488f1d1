"""Views equal views that are decoded one by one; the cache returns only features of the same file, encoder and views."""

from __future__ import annotations

import json
import math
import os
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import numbered_frames, run_tool

from sce_video.data import manifest, synthetic
from sce_video.data.decode import open_video
from sce_video.data.manifest import Video
from sce_video.errors import InputError
from sce_video.evaluation import extract
from sce_video.evaluation.cache import identify
from sce_video.evaluation.views import Views
from sce_video.models.encoder import FrozenEncoder
from sce_video.weights.load import untrained_encoder

CPU = torch.device("cpu")
CLIP = {"num_frames": 4, "clip_seconds": 0.8, "size": 32}
VIEWS = Views(clips_per_video=10, num_crops=3, num_frames=4, clip_seconds=0.8, size=37)
SMALL = Views(clips_per_video=2, num_crops=1, num_frames=4, clip_seconds=0.8, size=37)


def tiny(seed: int = 0) -> FrozenEncoder:
    return untrained_encoder("tiny3d", seed=seed, mean=0.45, std=0.225, clip=CLIP)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SCE_VIDEO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def thirty_views(encoder: FrozenEncoder, path: str) -> torch.Tensor:
    """Compute every view from its own open file, with all arithmetic written out: [30, width]."""
    outputs = []
    for clip in range(10):
        for crop in range(3):
            with open_video(path, "pyav") as video:
                duration = Fraction(video.num_frames) / video.fps
                start = clip * (duration - Fraction(0.8)) / 9
                first = math.ceil(video.fps * start)
                last = math.ceil(video.fps * min(start + Fraction(0.8), duration))
                indices = [first + int(i * (last - first - 1) / 3) for i in range(4)]
                frames = video.read(indices).permute(3, 0, 1, 2).float() / 255
            height, width = frames.shape[-2:]
            portrait = height > width
            scaled = (height * 37 // width, 37) if portrait else (37, width * 37 // height)
            frames = torch.stack([F.interpolate(channel[:, None], scaled, mode="bilinear")[:, 0] for channel in frames])
            room = max(scaled) - 37
            offset = (0, math.ceil(room / 2), room)[crop]
            cut = frames[:, :, offset : offset + 37] if portrait else frames[:, :, :, offset : offset + 37]
            outputs.append(encoder(cut[None])[0])
    return torch.stack(outputs)


def test_ten_clips_of_three_crops_equal_thirty_decodes(videos: Path, tmp_path: Path) -> None:
    encoder = tiny()
    frames, _ = synthetic.render("train", 3)
    synthetic.encode(tmp_path / "portrait.mp4", frames[:50, :64, :48].transpose(0, 2, 1, 3)[:, :, :36], gop=12)
    listed = [*manifest.read(videos / "val.csv")[:2], Video(str(tmp_path / "portrait.mp4"), None)]
    found = extract.extract(encoder, listed, VIEWS, device=CPU, decoder="pyav", kinds=("backbone", "backbone_1_view"))
    for row, video in enumerate(listed):
        expected = thirty_views(encoder, video.path)
        assert torch.allclose(found.features["backbone"][row], expected.mean(0), atol=1e-6)
        # `1 view`: the centre crop of the middle clip, number 5 from 0.
        assert torch.allclose(found.features["backbone_1_view"][row], expected[5 * 3 + 1], atol=1e-6)


def test_a_video_is_opened_and_decoded_once(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import av

    opened, real = [], av.open
    monkeypatch.setattr(av, "open", lambda path, *a, **k: opened.append(path) or real(path, *a, **k))
    listed = manifest.read(videos / "val.csv")[:3]
    extract.extract_all([tiny(0), tiny(1)], listed, VIEWS, device=CPU, decoder="pyav")
    assert opened == [os.path.realpath(video.path) for video in listed]


def test_large_frames_are_scaled_down_while_decoding(tmp_path: Path) -> None:
    synthetic.encode(tmp_path / "large.mp4", numbered_frames(12, 304, 424), gop=12)
    with open_video(str(tmp_path / "large.mp4"), "pyav") as video:
        whole = video.read([0, 5, 5, 2])
        small = video.read([0, 5, 5, 2], max_short_side=256)
        assert small.shape == (4, 256, 357, 3)
        expected = F.interpolate(whole.permute(0, 3, 1, 2).float(), (256, 357), mode="bilinear").permute(0, 2, 3, 1)
        assert torch.equal(small, expected.round().to(torch.uint8))
        assert torch.equal(video.read([7], max_short_side=304), video.read([7]))


def test_the_cache_answers_for_any_list_of_the_same_files(videos: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, listed = tiny(), manifest.read(videos / "val.csv")
    first = extract.extract(encoder, listed[:6], SMALL, device=CPU, cached=True)
    assert first.decoded == 6
    monkeypatch.chdir(videos)  # the same files by another name, in another order, and two new ones
    other = [Video(os.path.relpath(video.path), "x") for video in reversed(listed)]
    second = extract.extract(encoder, other, SMALL, device=CPU, cached=True)
    assert (second.decoded, second.rows) == (2, list(range(8)))
    assert torch.equal(second.features["backbone"].flip(0)[:6], first.features["backbone"])
    fresh = extract.extract(encoder, listed, SMALL, device=CPU)
    assert torch.allclose(second.features["backbone"].flip(0), fresh.features["backbone"], atol=1e-6)
    assert len(list((cache / "features").iterdir())) == 1


def test_other_weights_views_or_files_are_not_taken_from_the_cache(videos: Path, cache: Path, tmp_path: Path) -> None:
    shutil.copy(next(videos.rglob("*.mp4")), tmp_path / "a.mp4")
    listed = [Video(str(tmp_path / "a.mp4"), None)]

    def decoded(encoder: FrozenEncoder, views: Views = SMALL) -> int:
        return extract.extract(encoder, listed, views, device=CPU, cached=True).decoded

    assert decoded(tiny()) == 1
    assert decoded(tiny()) == 0
    assert decoded(tiny(seed=1)) == 1
    assert decoded(tiny(), VIEWS) == 1
    other_mean = untrained_encoder("tiny3d", seed=0, mean=0.5, std=0.225, clip=CLIP)
    assert decoded(other_mean) == 1
    os.utime(tmp_path / "a.mp4", (1, 1))
    assert decoded(tiny()) == 1, "a file that changed is decoded again"


def test_a_damaged_part_is_named_and_made_again(videos: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = manifest.read(videos / "val.csv")[:2]
    before = extract.extract(tiny(), listed, SMALL, device=CPU, cached=True)
    (part,) = cache.rglob("*.npz")
    content = bytearray(part.read_bytes())
    content[content.index(before.features["backbone"][1].numpy().tobytes()) + 40] ^= 1
    part.write_bytes(bytes(content))
    again = extract.extract(tiny(), listed, SMALL, device=CPU, cached=True)
    assert again.decoded == 2
    assert torch.equal(again.features["backbone"], before.features["backbone"])
    assert f"cached features {part} are damaged" in capsys.readouterr().err


def test_an_interrupted_extraction_goes_on(videos: Path, cache: Path) -> None:
    class Interrupted(torch.nn.Module):
        """The same weights, and Ctrl-C at the fourth video."""

        def __init__(self, blocks: torch.nn.ModuleList) -> None:
            super().__init__()
            self.blocks, self.calls = blocks, 0

        def forward(self, clips: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.calls > 3:
                raise KeyboardInterrupt
            for block in self.blocks:
                clips = block(clips)
            return clips.mean(dim=(2, 3, 4))

    listed = manifest.read(videos / "val.csv")
    eight = Views(clips_per_video=8, num_crops=1, num_frames=4, clip_seconds=0.8, size=37)
    encoder = tiny()
    broken = FrozenEncoder(Interrupted(encoder.backbone.blocks), "tiny3d", mean=0.45, std=0.225, clip=CLIP)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        extract.extract(broken, listed, eight, device=CPU, cached=True)
    result = extract.extract(encoder, listed, eight, device=CPU, cached=True)
    assert (result.decoded, len(result.rows)) == (5, 8)
    fresh = extract.extract(encoder, listed, eight, device=CPU)
    assert torch.equal(result.features["backbone"], fresh.features["backbone"])


def test_unreadable_videos_are_listed_never_replaced_never_cached(videos: Path, cache: Path, tmp_path: Path) -> None:
    listed = manifest.read(videos / "val.csv")[:3]
    (tmp_path / "cut.mp4").write_bytes(Path(listed[0].path).read_bytes()[:900])
    listed = [Video(str(tmp_path / "gone.mp4"), "0"), listed[0], Video(str(tmp_path / "cut.mp4"), "0"), listed[2]]
    for decoded in (2, 0):
        result = extract.extract(tiny(), listed, SMALL, device=CPU, cached=True)
        assert (result.rows, result.decoded) == ([1, 3], decoded)
        assert [failure.path for failure in result.failures] == [listed[0].path, listed[2].path]
    with pytest.raises(InputError, match="none of the videos could be read, e.g. .*gone.mp4"):
        extract.extract(tiny(), listed[:1], SMALL, device=CPU)


def test_identity_is_the_files_not_the_lists(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"1234")
    (tmp_path / "b.mp4").symlink_to("a.mp4")
    names = [identify(Video(str(tmp_path / name), None)) for name in ("a.mp4", "b.mp4", "c.mp4")]
    assert names[0] == names[1] != names[2]
    assert names[2] is None


@pytest.mark.slow
def test_tool_writes_features_that_others_can_read(videos: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    torch.save(tiny().backbone.state_dict(), tmp_path / "tiny.pt")
    (tmp_path / "list.csv").write_text(
        "path,label\n" + "".join(f"{path},x {i}\n" for i, path in enumerate(sorted(videos.rglob("*.mp4"))[:3]))
    )
    common = [f"checkpoint={tmp_path / 'tiny.pt'}", "backbone=tiny3d", "data=list.csv", "num_frames=4", "size=37"]
    common += ["clip_seconds=0.8", "clips_per_video=2", "num_crops=1", "workers=0"]
    for out in ("f.npz", "f.safetensors"):
        result = run_tool("features", *common, f"out={out}", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert "3/3 videos, 128 features each" in result.stdout
    assert "(0 decoded now)" in result.stdout, "the second one decodes nothing"
    listed = manifest.read(tmp_path / "list.csv")
    expected = extract.extract(tiny(), listed, SMALL, device=CPU).features["backbone"].numpy()
    arrays = np.load(tmp_path / "f.npz")
    assert np.allclose(arrays["features"], expected, atol=1e-6)
    assert arrays["paths"].tolist() == [video.path for video in listed]
    assert arrays["labels"].tolist() == ["x 0", "x 1", "x 2"]
    assert np.array_equal(load_file(tmp_path / "f.safetensors")["features"], arrays["features"])
    assert manifest.read(tmp_path / "f.csv") == listed
    again = run_tool("features", *common, "out=f.npz", cwd=tmp_path)
    assert again.returncode == 70
    assert "out=f.npz exists" in again.stderr


@pytest.mark.slow
def test_three_processes_find_what_one_finds(videos: Path, tmp_path: Path) -> None:
    torch.save(tiny().backbone.state_dict(), tmp_path / "tiny.pt")
    arguments = [f"checkpoint={tmp_path / 'tiny.pt'}", "backbone=tiny3d", "num_frames=4", "clip_seconds=0.8", "size=37"]
    arguments += [f"train={videos / 'train.csv'}", f"test={videos / 'val.csv'}", "clips_per_video=2", "workers=0"]
    arguments += ["cache=false", "shots=[1]", "repeats=2"]
    tables = []
    for processes in (0, 3):
        result = run_tool("evaluate", *arguments, f"out={processes}.json", cwd=tmp_path, processes=processes)
        assert result.returncode == 0, result.stderr
        tables.append(result.stdout.split("written")[0])
        written = json.loads((tmp_path / f"{processes}.json").read_text())
        assert written["rows"]["checkpoint"]["scored"] == {"train": 24, "test": 8}
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_a_video_that_ends_its_decoding_process_is_named_and_the_others_are_read(
    videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = manifest.read(videos / "val.csv")
    expected = extract.extract(tiny(), listed, SMALL, device=CPU)
    monkeypatch.setenv("SCE_VIDEO_ALLOW_FAULTS", "1")
    monkeypatch.setenv("SCE_VIDEO_FAULT", "abort@row=1")
    found = extract.extract(tiny(), listed, SMALL, device=CPU, workers=1)
    assert found.rows == [row for row in expected.rows if row != 1]
    assert [failure.path for failure in found.failures] == [listed[1].path]
    assert "in quarantine (signal 6)" in found.failures[0].reason
    kept = [i for i, row in enumerate(expected.rows) if row != 1]
    assert torch.allclose(found.features["backbone"], expected.features["backbone"][kept], atol=1e-6)
