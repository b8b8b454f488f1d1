"""On files that readers often get wrong, every reader returns exactly the frames of a forward decode or raises an error."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from conftest import SHARED
from hard_files import BUILDERS, build, encode, numbered_frames, pixels_of_16_to_11, turn
from test_decode import forward_decode

from sce_video.data.crops import Box
from sce_video.data.decode import DecodeError, open_video
from sce_video.data.readers.headers import h264, mp4
from sce_video.data.readers.pyav import PyAVReader

# How frames are found where it is not in the index that the file holds.
PACKETS = {"open_gop.mkv", "b_pyramid_strict.mkv", "variable_rate.mkv", "vp9.webm", "vp9_odd_size.webm", "av1.mkv"}
PACKETS |= {"hevc_open_gop.mkv", "fragmented.mp4", "fragmented_indexed.mp4"}
COUNTED = {"vp8.webm", "mpeg4.mp4", "mpeg4.avi", "packed_b_frames.avi", "h264.avi", "transport.ts", "mpeg2.mpg"}
COUNTED |= {"odd_size.avi", "broken_off.ts"}
COUNTED |= {"interlaced.mp4"} if hasattr(av.VideoCodecContext, "field_order") else set()
# Opened in full, because their headers do not tell all; what is not MP4 always is.
NOT_BY_HEADER = {"one_key_a_frame.mp4", "interlaced.mp4", "stream_copy_cut.mp4", "stream_copy_cut.mov", "rotated.mp4"}
NOT_BY_HEADER |= {"variable_rate.mp4", "fragmented.mp4", "fragmented_indexed.mp4", "hevc.mp4", "av1.mp4", "mpeg4.mp4"}
NOT_BY_HEADER |= {"one_frame.mp4", "ten_bit.mp4", "full_chroma.mp4"}
B_FRAME = 3  # FFmpeg's picture types
REFUSED = {"broken_off.avi", "broken_off_faststart.mp4"}  # damaged in the middle of a packet: the error is the stated one
WHOLE = [name for name in BUILDERS if name not in REFUSED]
ONLY_RGB = {"ten_bit.mp4", "full_chroma.mp4", "rotated.mp4", "interlaced.mp4"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hard")


def index_sets(num_frames: int) -> Iterator[list[int]]:
    draw = random.Random(num_frames)
    yield list(range(num_frames))
    yield [num_frames - 1]
    yield [0, 0, num_frames - 1, 0]
    for count in (1, 2, 8, 8, 16):
        yield [draw.randrange(num_frames) for _ in range(count)]
    for _ in range(4):  # two clips, as training reads them
        yield sorted(draw.randrange(num_frames) for _ in range(8)) + sorted(draw.randrange(num_frames) for _ in range(8))


@pytest.mark.parametrize("name", WHOLE)
def test_frames_are_those_of_a_forward_decode_to_the_bit(name: str, folder: Path) -> None:
    path = build(name, folder)
    expected = forward_decode(path)
    with open_video(str(path)) as video:
        assert isinstance(video, PyAVReader)
        assert (video.num_frames, video.height, video.width) == expected.shape[:3]
        by = "packets" if name in PACKETS or name.startswith("broken_off") else "container"
        assert video.found_by == ("counting" if name in COUNTED else by)
        for indices in index_sets(video.num_frames):
            assert np.array_equal(video.read(indices).numpy(), expected[indices]), indices
        assert video.found_by == ("counting" if name in COUNTED else by), "an index was given up on the way"


@pytest.mark.parametrize("name", WHOLE)
def test_clips_and_planes_are_cut_from_the_same_frames(name: str, folder: Path) -> None:
    path = folder / name if (folder / name).exists() else build(name, folder)
    with open_video(str(path)) as video:
        clips = [torch.arange(0, video.num_frames, 7), torch.arange(video.num_frames - 1, -1, -5)]
        boxes = [Box(0, 0, video.height, video.width), Box(5, 3, video.height - 11, video.width - 20)]
        cut = video.read_clips(clips, boxes)
        for clip, box, frames in zip(clips, boxes, cut, strict=True):
            whole = video.read(clip)[:, box.top : box.top + box.height, box.left : box.left + box.width]
            assert torch.equal(frames, whole)
        planes = video.read_planes(clips, boxes)
        if name in ONLY_RGB:
            assert planes is None
            return
        assert planes is not None
        for clip, frames in zip(planes, cut, strict=True):
            difference = (clip.rgb().int() - frames.int()).abs().float()
            assert difference.mean() <= 1
            assert difference.max() <= 3
            assert clip.luma.numel() + clip.chroma.numel() <= 0.5 * frames.numel() + 6 * len(frames) * 60


@pytest.mark.parametrize("name", [name for name in WHOLE if name.endswith((".mp4", ".mov"))])
def test_a_header_tells_what_ffmpeg_finds_out_by_decoding(name: str, folder: Path) -> None:
    path = build(name, folder)
    with open_video(str(path)) as video, PyAVReader(str(path), is_mp4=False) as in_full:
        assert isinstance(video, PyAVReader)
        assert video.header_only == (name not in NOT_BY_HEADER)
        assert not in_full.header_only
        for fact in ("num_frames", "height", "width", "fps", "stream_index", "found_by", "plain_mp4", "pixel_aspect"):
            assert getattr(video, fact) == getattr(in_full, fact), fact


def test_headers_of_mp4_that_end_anywhere_are_no_error(folder: Path) -> None:
    """And so are headers with any byte changed: no times, or as many as there are samples."""
    header = mp4.read_header(str(build("plain.mp4", folder)))
    offsets = mp4.composition_offsets(header, 1, 70)
    assert offsets is not None
    assert len(offsets) == 70
    draw = random.Random(0)
    for end in range(len(header)):
        changed = bytearray(header)
        changed[draw.randrange(len(header))] = draw.randrange(256)
        for damaged in (header[:end], bytes(changed)):
            found = mp4.composition_offsets(damaged, 1, 70)
            assert found is None or len(found) == 70


def plain_picture(header: bytes) -> h264.Picture | None:
    parameters = h264.parse_parameters(header)
    return parameters and parameters.picture


@pytest.mark.parametrize(("height", "width"), [(48, 64), (46, 66), (62, 50), (256, 340), (16, 18)])
def test_size_of_plain_h264_is_the_one_that_ffmpeg_decodes(height: int, width: int, tmp_path: Path) -> None:
    path = encode(tmp_path / "sized.mp4", frames=numbered_frames(3, 264, 344)[:, :height, :width], bf="2")
    with av.open(str(path)) as container:
        header = container.streams.video[0].codec_context.extradata
    assert header is not None
    assert plain_picture(header) == (height, width, True)
    assert forward_decode(path).shape[1:3] == (height, width)
    units = 9 + int.from_bytes(header[6:8], "big")  # where its first parameter set ends
    for end in range(units - 8):  # what comes last is not asked for
        assert plain_picture(header[:end]) is None
    draw = random.Random(height)
    for _ in range(2000):  # whatever is in it, an answer
        changed = bytearray(header)
        changed[draw.randrange(len(header))] = draw.randrange(256)
        plain_picture(bytes(changed))


@pytest.mark.parametrize(
    ("told", "expected"), [("nowhere", 1), ("in the stream", "16/11"), ("twice", "16/11"), ("turned", "11/16")]
)
@pytest.mark.parametrize("decoder", ["auto", "decord"])
@pytest.mark.filterwarnings("ignore:.*decord")
def test_the_shape_of_pixels_is_told(told: str, expected: str, decoder: str, tmp_path: Path) -> None:
    """x264 writes it to the stream, the muxer also to the track's header, in a box named pasp."""
    path = encode(tmp_path / "wide.mp4", prepare=None if told == "nowhere" else pixels_of_16_to_11)
    content = path.read_bytes()
    assert (b"pasp" in content) == (told != "nowhere")
    if told == "in the stream":
        path.write_bytes(content.replace(b"pasp", b"free"))
    if told == "turned":
        turn(path)
    with open_video(str(path), decoder) as video:
        assert video.pixel_aspect == Fraction(expected)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_damaged_files_are_refused_by_name(name: str, folder: Path) -> None:
    with pytest.raises(DecodeError, match=f"{name}: .*Invalid data"):
        open_video(str(build(name, folder)))


@pytest.mark.parametrize(
    ("name", "wanted", "most"),
    [
        ("no_pyramid.mp4", [9], 1 + 2 + 1),  # I, P P (each 8 frames on), the B-frame
        ("no_pyramid.mp4", [8, 40], 2 + 2),  # I P; the next I, P: nothing of what lies between
        ("no_pyramid.mp4", [31], 1 + 4 + 1),
        ("one_key_a_frame.mp4", [3, 50], 2),
        ("b_pyramid.mp4", [0], 1),
    ],
)
def test_only_packets_that_wanted_frames_depend_on_are_decoded(name: str, wanted: list[int], most: int, folder: Path) -> None:
    with PyAVReader(str(build(name, folder))) as video:
        assert sum(map(len, video.needed_packets(wanted))) <= most


def test_many_views_are_one_open_and_one_pass(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten clips of a video: the file is opened once, and no packet is decoded twice."""
    from sce_video.data.dataset import EvaluationDataset
    from sce_video.data.manifest import Video

    path = build("no_pyramid.mp4", folder)
    opened: list[str] = []
    real = av.open

    def counting(file: str, *args: Any, **options: Any) -> Any:
        opened.append(file)
        return real(file, *args, **options)

    monkeypatch.setattr(av, "open", counting)
    dataset = EvaluationDataset([Video(str(path), None)], clips_per_video=10, num_frames=8, clip_seconds=1.0)
    sample = dataset[0]
    assert len(opened) == 1
    assert len(sample.clips) == 10


def test_readers_of_h264_headers_understand_what_x264_writes(folder: Path) -> None:
    """Without pyramid every B-frame of x264 is droppable, I-frames are not."""
    with av.open(str(build("no_pyramid.mp4", folder))) as container:
        stream = container.streams.video[0]
        size_bytes = h264.length_size(stream.codec_context.extradata)
        parameters = h264.parse_parameters(stream.codec_context.extradata)
        assert size_bytes == 4
        assert parameters is not None
        packets = [packet for packet in container.demux(stream) if packet.size]
        seen = [h264.inspect(packet, size_bytes) for packet in packets]
        kinds = {frame.pts: int(frame.pict_type) for frame in _decoded(container, stream)}
    for packet, about in zip(packets, seen, strict=True):
        first = h264.first_slice(packet, parameters)
        assert first is not None
        assert first[0] == (kinds[packet.pts] != B_FRAME)
        assert first[1] == packet.is_keyframe
        assert about.entry == packet.is_keyframe
        assert not about.oriented


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    container.seek(0)
    yield from container.decode(stream)


def test_intra_refresh_has_no_entry_but_the_first(folder: Path) -> None:
    """Its key packets start a refresh that completes the picture some frames later: decoding from them is wrong."""
    with av.open(str(build("intra_refresh.mp4", folder))) as container:
        stream = container.streams.video[0]
        keys = [packet for packet in container.demux(stream) if packet.size and packet.is_keyframe]
        assert len(keys) > 1
        assert [h264.inspect(packet, 4).entry for packet in keys] == [True] + [False] * (len(keys) - 1)


def test_bytes_that_are_no_h264_have_no_properties() -> None:
    draw = random.Random(0)
    for length in itertools.chain(range(12), [100] * 200):
        packet, size_bytes = bytes(draw.randrange(256) for _ in range(length)), draw.choice([1, 2, 4])
        about = h264.inspect(packet, size_bytes)
        assert isinstance(about, h264.Packet)
        first = h264.first_slice(packet, h264.Parameters(size_bytes, None, 2, 2, draw.randrange(16), draw.randrange(16), False))
        assert first is None or len(first) == 4
    assert h264.inspect(b"", 4) == h264.Packet(entry=False, oriented=False, parameters=False)
    assert h264.length_size(b"\x00\x00\x00\x01gd\x00") is None


@pytest.mark.skipif(not (SHARED / "clips_odd").is_dir(), reason="the shared videos are not here")
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", ["clips_odd/*.*", "clips/hmdb51/*/*", "clips/k400/*/*", "clips/u*/*/*"])
def test_real_files_are_read_to_the_bit(part: str) -> None:
    """Twelve frames of each shared file in random order; the corrupt one is refused, or breaks off by name."""
    for path in sorted(SHARED.glob(part))[:: 1 if "odd" in part else 3]:
        draw = random.Random(path.name)
        try:
            with open_video(str(path)) as video:  # the last frame alone: nothing before it has been decoded
                count = video.num_frames
                found = {count - 1: video.read([count - 1])[0].numpy()}
            with open_video(str(path)) as video:
                wanted = [draw.randrange(count) for _ in range(12)]
                found |= dict(zip(wanted, video.read(wanted).numpy(), strict=True))
        except DecodeError:
            if path.name != "corrupted.mp4":
                raise
            continue
        with av.open(str(path)) as container:
            number = -1
            for number, frame in enumerate(container.decode(video=0)):
                if number in found:
                    right = np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90) % 4)
                    assert np.array_equal(found[number], right), (path.name, number)
        assert number + 1 == count or path.name == "corrupted.mp4", path.name


def test_frames_that_carry_each_others_times_keep_their_rate(tmp_path: Path) -> None:
    """As in copies of AVI files with packed B-frames; the header of such a copy states 30,000 frames a second."""
    with av.open(str(encode(tmp_path / "whole.mp4", "mpeg4", bf="0"))) as source, av.open(str(tmp_path / "a.mkv"), "w") as target:
        told = source.streams.video[0]
        stream = target.add_stream("mpeg4", rate=30000)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = told.width, told.height, "yuv420p", told.time_base
        stream.codec_context.extradata = told.codec_context.extradata
        packets = [packet for packet in source.demux(told) if packet.size]
        times = [packet.pts for packet in packets]
        for number, packet in enumerate(packets):  # 0, 2, 1, 4, 3, ...
            partner = number + (1 if number % 2 else -1) if number else 0
            packet.pts, packet.dts = times[min(partner, len(times) - 1)], times[number] - 2 * times[1]
            packet.stream = stream
            target.mux(packet)
    with open_video(tmp_path / "a.mkv") as video:
        assert video.num_frames == len(times)
        assert video.seconds == pytest.approx(len(times) / 30, rel=0.02)
