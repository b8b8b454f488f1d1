"""Every reader returns the frames of a forward decode and rejects files that are not videos."""

from __future__ import annotations

import contextlib
import gc
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import numbered_frames
from hard_files import build
from torch.utils.data import DataLoader, Dataset

from sce_video.data import synthetic
from sce_video.data.decode import DecodeError, check_media, open_video


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
    """Return all frames of a decode from the start, rotated as the file says: the definition of the frames."""
    with av.open(str(path)) as container:
        return np.stack(
            [np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90) % 4) for frame in container.decode(video=0)]
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


@pytest.mark.parametrize("decoder", ["auto", "decord"])
@pytest.mark.parametrize("name", ["h264_b_frames.mp4", "short_gop.mp4"])
def test_readers_agree_where_all_are_exact(name: str, decoder: str, tmp_path: Path) -> None:
    """test_exact_frames.py has the files on which they differ."""
    if decoder == "decord":
        pytest.importorskip("decord")
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


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="only Linux lists a process's open files this way")
@pytest.mark.parametrize("name", ["broken_off.avi", "broken_off_faststart.mp4", "audio_only"])
def test_what_is_refused_does_not_stay_open(name: str, tmp_path: Path) -> None:
    """Not even until the next garbage collection: a folder of such files would use up all descriptors."""
    path = sound_only(tmp_path / "sound.mp4") if name == "audio_only" else build(name, tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    gc.disable()
    try:
        for _ in range(5):
            with contextlib.suppress(DecodeError):
                open_video(str(path))
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        gc.enable()


def sound_only(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_audio_without_video_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DecodeError, match="no video stream"):
        open_video(str(sound_only(tmp_path / "sound.mp4")))


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
    """PyAV 19 hangs forked workers once the parent has converted a frame, unless each reader has its own converter."""
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
