"""Every reader returns the frames that a plain forward decode shows, and refuses what is no video."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import SHARED, numbered_frames
from torch.utils.data import DataLoader, Dataset

from sce_video.data import synthetic
from sce_video.data.decode import DecodeError, FrameReader, check_media, open_video


def encode(path: Path, frames: np.ndarray, codec: str = "libx264", rate: int = 30, **options: str) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = options
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def forward_decode(path: Path) -> np.ndarray:
    """The definition: every frame of a plain decode from the start, rotated as the file says."""
    with av.open(str(path)) as container:
        return np.stack(
            [
                np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90) % 4)
                for frame in container.decode(video=0)
            ]
        )


FILES = {
    "h264_b_frames.mp4": {"codec": "libx264", "g": "250", "bf": "3"},
    "short_gop.mp4": {"codec": "libx264", "g": "8", "bf": "2"},
    "no_b_frames.mkv": {"codec": "libx264", "g": "30", "bf": "0"},
    "mpeg4.avi": {"codec": "mpeg4", "g": "12"},
    "mpeg4_b_frames.avi": {"codec": "mpeg4", "g": "12", "bf": "2"},
    "vp9.webm": {"codec": "libvpx-vp9", "deadline": "realtime", "cpu-used": "8"},
    "transport.ts": {"codec": "libx264", "g": "15", "bf": "2"},
}


@pytest.mark.parametrize("decoder", ["auto", "pyav", "decord"])
@pytest.mark.parametrize("name", FILES)
def test_frames_are_those_of_a_forward_decode(name: str, decoder: str, tmp_path: Path) -> None:
    if decoder == "decord" and not name.endswith(".mp4"):
        pytest.skip("asked for by name, decord is on its own; auto does not use it here")
    options = dict(FILES[name])
    path = encode(tmp_path / name, numbered_frames(50), options.pop("codec"), **options)
    expected = forward_decode(path)
    with open_video(str(path), decoder) as video:
        assert (video.num_frames, video.height, video.width) == (len(expected), 48, 64)
        assert video.fps == 30
        assert video.seconds == Fraction(len(expected), 30)
        for indices in ([0], [49], [7, 3, 3, 48, 11], list(range(50)), [20, 21, 22]):
            frames = video.read(indices)
            assert frames.dtype == torch.uint8
            assert np.abs(frames.numpy().astype(int) - expected[indices].astype(int)).mean() < 1.0


def test_auto_uses_decord_only_where_it_is_exact(tmp_path: Path) -> None:
    pytest.importorskip("decord")
    plain = encode(tmp_path / "plain.mp4", numbered_frames(20))
    with open_video(str(plain)) as video:
        assert video.decoder == "decord"
    for name, codec in (("other.avi", "mpeg4"), ("other.mkv", "libx264"), ("mpeg4.mp4", "mpeg4")):
        with open_video(str(encode(tmp_path / name, numbered_frames(20), codec))) as video:
            assert video.decoder == "pyav"


def test_cut_by_stream_copy_is_read_right_by_auto(tmp_path: Path) -> None:
    """An edit list hides frames at the start: decord counts them, and may never return."""
    whole = encode(tmp_path / "whole.mp4", numbered_frames(60), g="250", bf="2")
    cut = tmp_path / "cut.mp4"
    with av.open(str(whole)) as source, av.open(str(cut), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                shift = round(0.5 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                target.mux(packet)
    expected = forward_decode(cut)
    with open_video(str(cut)) as video:
        assert video.decoder == "pyav"
        assert video.num_frames == len(expected)
        assert np.array_equal(video.read(range(len(expected))).numpy(), expected)


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_index_outside_the_video_is_an_error(decoder: str, tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", numbered_frames(10))
    with open_video(str(path), decoder) as video, pytest.raises(IndexError, match="has 10 frames"):
        video.read([10])


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    good = encode(tmp_path / "good.mp4", numbered_frames(10)).read_bytes()
    bad = {
        "empty.mp4": (b"", "is empty"),
        "page.mp4": (b"<html>404 not found</html>" * 9, "first bytes"),
        "playlist.mp4": (b"#EXTM3U\n#EXT-X-VERSION:3\nhttp://127.0.0.1/x.ts\n" * 9, "first bytes"),
        "concat.mp4": (b"ffconcat version 1.0\nfile 'good.mp4'\n" * 9, "first bytes"),
        "head.mp4": (good[:200], "head.mp4"),
        "cut.mp4": (good[: len(good) // 2], "cut.mp4"),
    }
    for name, (content, message) in bad.items():
        (tmp_path / name).write_bytes(content)
        for decoder in ("auto", "pyav", "decord"):
            with pytest.raises(DecodeError, match=message):
                open_video(str(tmp_path / name), decoder)
    os.mkfifo(tmp_path / "pipe.mp4")
    for path in (tmp_path / "pipe.mp4", tmp_path, tmp_path / "missing.mp4"):
        with pytest.raises(DecodeError):
            check_media(str(path))


def test_audio_without_video_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(DecodeError, match="no video stream"):
        open_video(str(path))


def test_names_that_are_no_utf8_are_read(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.mp4")
    os.rename(encode(tmp_path / "a.mp4", numbered_frames(20)), path)
    with open_video(path) as video:
        assert video.decoder == "pyav"
        assert video.read([3]).shape == (1, 48, 64, 3)


def test_unknown_decoder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'ffmpeg' is not one of auto, decord, pyav, torchcodec"):
        open_video(str(tmp_path), "ffmpeg")


class Frames(Dataset[torch.Tensor]):
    def __init__(self, path: str, decoder: str) -> None:
        self.path, self.decoder = path, decoder

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        with open_video(self.path, self.decoder) as video:
            return video.read([index, index + 10])


@pytest.mark.timeout(90)
@pytest.mark.parametrize("context", ["fork", "spawn"])
@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_workers_decode_after_the_parent_has(context: str, decoder: str, tmp_path: Path) -> None:
    """PyAV 19 hangs forked workers once the parent has converted a frame, unless each reader converts by itself."""
    path = encode(tmp_path / "a.mp4", numbered_frames(30))
    dataset = Frames(str(path), decoder)
    expected = [dataset[i] for i in range(8)]
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context=context)
    for frames, right in zip(loader, expected, strict=True):
        assert torch.equal(frames, right)


def test_readers_agree_on_the_built_in_videos(tmp_path: Path) -> None:
    frames, _ = synthetic.render("val", 3)
    synthetic.encode(tmp_path / "a.mp4", frames)
    with open_video(str(tmp_path / "a.mp4"), "pyav") as one, open_video(str(tmp_path / "a.mp4"), "decord") as two:
        assert (one.num_frames, one.fps) == (two.num_frames, two.fps)
        difference = one.read(range(0, 120, 7)).float() - two.read(range(0, 120, 7)).float()
    assert difference.abs().mean() < 1.0


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "clips").is_dir(), reason="the shared videos are not here")
def test_real_files_are_read_exactly() -> None:
    """Every fifth shared file and all odd ones: eight frames each against the forward decode; corrupt ones named."""
    files = sorted((SHARED / "clips").glob("*/*/*.*"))[::5] + sorted((SHARED / "clips_odd").glob("*.*"))
    assert len(files) > 50
    refused = []
    for path in files:
        try:
            with open_video(str(path)) as video:
                check_real(path, video)
        except DecodeError:
            refused.append(path.name)
    assert refused in ([], ["corrupted.mp4"])


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
