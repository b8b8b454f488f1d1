"""torchcodec in exact mode meets the readers' contract on the containers it is trusted with, and warns once elsewhere."""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import SHARED, numbered_frames
from test_decode import FILES, Frames, encode, forward_decode
from test_shrink import varying
from torch.utils.data import DataLoader

from sce_video.data.decode import DecodeError, FrameReader, open_video
from sce_video.data.readers import torchcodec as exactness
from sce_video.errors import InputError


@pytest.fixture
def torchcodec() -> None:
    pytest.importorskip("torchcodec", exc_type=(ImportError, RuntimeError))


@pytest.fixture
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exactness, "_warned", set())


def cut(path: Path) -> Path:
    """A stream copy from 0.5 s on: an edit list hides the frames before."""
    whole = encode(path.with_name("whole.mp4"), numbered_frames(60), g="250", bf="2")
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                shift = round(0.5 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                target.mux(packet)
    return path


def made(name: str) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        options = dict(FILES[name])
        return encode(path, numbered_frames(50), options.pop("codec"), **options)

    return make


HARD: dict[str, Callable[[Path], Path]] = {
    **{name: made(name) for name in ("h264_b_frames.mp4", "short_gop.mp4", "no_b_frames.mkv", "vp9.webm")},
    "open_gop.mp4": lambda path: encode(path, numbered_frames(60), g="15", bf="3", **{"x264-params": "open-gop=1"}),
    "cut.mp4": cut,
    "varying.mp4": varying,
    "varying.mkv": varying,
    "one.mp4": lambda path: encode(path, numbered_frames(1)),
    "mpeg4.mp4": lambda path: encode(path, numbered_frames(50), "mpeg4", g="12", bf="2"),
}


@pytest.mark.usefixtures("torchcodec")
@pytest.mark.parametrize("name", HARD)
def test_frames_are_those_of_a_forward_decode(name: str, tmp_path: Path) -> None:
    path = HARD[name](tmp_path / name)
    expected = forward_decode(path)
    shuffled = np.random.default_rng(0).permutation(len(expected)).tolist()
    with open_video(str(path), "torchcodec") as video, open_video(str(path), "pyav") as ours:
        assert video.decoder == "torchcodec"
        assert (video.num_frames, video.fps, video.height, video.width) == (len(expected), ours.fps, 48, 64)
        for indices in (shuffled[:1], shuffled[:12], [*shuffled[:3], *shuffled[:3]], list(range(len(expected)))):
            frames = video.read(indices)
            assert frames.dtype == torch.uint8
            assert np.abs(frames.numpy().astype(int) - expected[indices].astype(int)).mean((1, 2, 3)).max() < 2, name
        with pytest.raises(IndexError):
            video.read([len(expected)])


@pytest.mark.usefixtures("torchcodec", "nothing_told")
def test_it_says_once_where_it_is_not_exact(tmp_path: Path) -> None:
    plain = encode(tmp_path / "plain.mp4", numbered_frames(10))
    first = encode(tmp_path / "a.avi", numbered_frames(10), "mpeg4")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for path in (plain, first, first, plain):
            open_video(str(path), "torchcodec").close()
    assert [str(warning.message) for warning in told] == [
        f"{first}: torchcodec may return other frames of this file than those asked for (and of others like it, which are "
        "not named); decoder=auto reads every file exactly"
    ]


@pytest.mark.usefixtures("nothing_told")
def test_decord_says_once_where_it_is_not_exact(tmp_path: Path) -> None:
    pytest.importorskip("decord")
    plain = encode(tmp_path / "plain.mp4", numbered_frames(10))
    others = [encode(tmp_path / f"{i}.mkv", numbered_frames(10)) for i in range(2)]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for path in (plain, *others):
            open_video(str(path), "decord").close()
            open_video(str(path), "auto").close()
    assert [warning.category for warning in told] == [exactness.Inexact]
    assert str(told[0].message).startswith(f"{others[0]}: decord may return other frames")


@pytest.mark.usefixtures("torchcodec")
def test_what_it_cannot_read_is_named(tmp_path: Path) -> None:
    good = encode(tmp_path / "good.mp4", numbered_frames(10)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(good[: len(good) // 2])
    with pytest.raises(DecodeError, match=r"cut\.mp4: "):
        open_video(str(tmp_path / "cut.mp4"), "torchcodec")
    name = "b\udcffyte.mp4"
    shutil.copy(tmp_path / "good.mp4", tmp_path / name)
    with pytest.raises(DecodeError, match="torchcodec: "):
        open_video(str(tmp_path / name), "torchcodec")


def test_without_torchcodec_it_is_said_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    path = encode(tmp_path / "a.mp4", numbered_frames(5))
    with pytest.raises(InputError, match=r"pip install 'sce_video\[torchcodec\]', and FFmpeg's shared libraries"):
        open_video(str(path), "torchcodec")


@pytest.mark.timeout(90)
@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["torchcodec", "decord"])
def test_forked_workers_decode_after_the_parent_has(decoder: str, tmp_path: Path) -> None:
    pytest.importorskip(decoder, exc_type=(ImportError, RuntimeError))
    dataset = Frames(str(encode(tmp_path / "a.mp4", numbered_frames(30))), decoder)
    expected = [dataset[i] for i in range(8)]
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork")
    for frames, right in zip(loader, expected, strict=True):
        assert torch.equal(frames, right)


@pytest.mark.slow
@pytest.mark.usefixtures("torchcodec")
@pytest.mark.skipif(not (SHARED / "clips_odd").is_dir(), reason="the shared videos are not here")
def test_real_files_are_read_exactly_where_it_is_trusted() -> None:
    """Rotated, two streams, 10 bit, edit lists, streams that start late, 4:4:4 of an old x264 (cockatoo)."""
    names = ("video_90.mov", "video_180.mov", "video_270.mov", "nasa_13013.mp4", "h264_10bits.mp4", "unordered.mov")
    names += ("delayed_start.mp4", "brother.mkv", "issue-236-split-copy.mkv", "cockatoo.mp4", "transparent.webm")
    for name in names:
        path = SHARED / "clips_odd" / name
        with open_video(str(path), "torchcodec") as video:  # no warning, for warnings are errors here
            check_real(path, video, most=3.5 if "10bits" in name else 0.5)  # 10 bits: rounded otherwise by other FFmpegs
    path = SHARED / "clips_odd/cockatoo.mp4"  # noise, unless its first frame has been decoded before
    with open_video(str(path), "torchcodec") as video, open_video(str(path), "pyav") as ours:
        assert (video.read([197]).float() - ours.read(range(198))[197].float()).abs().mean() < 0.5


def check_real(path: Path, video: FrameReader, most: float = 2) -> None:
    indices = np.unique(np.linspace(0, video.num_frames - 1, 8).astype(int)).tolist()
    frames = video.read(indices).numpy()
    expected, count = {}, 0
    with av.open(str(path)) as container:
        converter = av.video.reformatter.VideoReformatter()
        for count, frame in enumerate(container.decode(video=0), start=1):
            if count - 1 in indices:
                image = converter.reformat(frame, format="rgb24").to_ndarray()
                expected[count - 1] = np.rot90(image, k=round(frame.rotation / 90) % 4)
    assert video.num_frames == count, path.name
    for index, frame in zip(indices, frames, strict=True):
        assert frame.shape == expected[index].shape, path.name
        assert np.abs(frame.astype(int) - expected[index].astype(int)).mean() < most, (path.name, index, video.decoder)
