"""What the readers rely on in PyAV and FFmpeg, one fact a test: a release that changes one fails here by name."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.sidedata.sidedata import Type
from conftest import numbered_frames
from hard_files import encode, turn
from reported_files import renamed, with_sound

from sce_video.data.readers.media import FORMATS

HEADER_ONLY = {"codec_whitelist": "none", "fflags": "+noparse", "protocol_whitelist": "file", "format_whitelist": FORMATS}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encode(tmp_path_factory.mktemp("facts") / "a.mp4", g="12", bf="2")


@pytest.fixture
def opened(path: Path) -> Iterator[Any]:
    with av.open(str(path)) as container:
        yield container


def packets_of(container: Any) -> list[Any]:
    return [packet for packet in container.demux(container.streams.video[0]) if packet.size]


def test_a_fresh_container_begins_with_its_first_packet_although_streams_were_probed(opened: Any) -> None:
    first = next(opened.demux(opened.streams.video[0]))
    assert (first.pts, first.is_keyframe) == (0, True)
    assert first.dts == opened.streams.video[0].index_entries[0].timestamp


def test_rates_and_time_bases_become_fractions(opened: Any) -> None:
    stream = opened.streams.video[0]
    assert Fraction(stream.average_rate) == Fraction(stream.guessed_rate) == 30
    assert Fraction(stream.time_base) == Fraction(1, 15360)
    assert Fraction(stream.sample_aspect_ratio or 1) == 1


def test_packets_say_their_times_and_what_becomes_of_them(opened: Any) -> None:
    packets = packets_of(opened)
    assert len(packets) == 70
    assert sorted(packet.pts for packet in packets) == [512 * number for number in range(70)]
    assert all(one.dts < other.dts for one, other in zip(packets[:-1], packets[1:], strict=True))
    assert [number for number, packet in enumerate(packets) if packet.is_keyframe][:3] == [0, 12, 24]
    assert not any(packet.is_discard or packet.is_corrupt for packet in packets)


def test_the_last_packet_is_empty_and_makes_the_decoder_return_all_frames(opened: Any) -> None:
    *_, last = opened.demux(opened.streams.video[0])
    assert (last.size, last.pts) == (0, None)


def test_the_index_of_mp4_holds_dts_positions_and_flags_of_all_packets(opened: Any, path: Path) -> None:
    entries = list(opened.streams.video[0].index_entries)
    packets = packets_of(opened)
    assert [entry.timestamp for entry in entries] == [packet.dts for packet in packets]
    assert [bool(entry.flags & 1) for entry in entries] == [packet.is_keyframe for packet in packets]
    assert max(entry.pos + entry.size for entry in entries) <= path.stat().st_size
    assert all(hasattr(entry, "is_discard") for entry in entries[:1])


def test_the_number_of_a_stream_of_mp4_is_its_track(tmp_path: Path) -> None:
    content = bytearray(encode(tmp_path / "a.mp4", frames=numbered_frames(3)).read_bytes())
    at = content.index(b"tkhd") + 16
    content[at : at + 4] = struct.pack(">I", 7)
    (tmp_path / "a.mp4").write_bytes(content)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].id == 7


def test_a_seek_arrives_at_the_key_before_and_empties_the_decoder(opened: Any) -> None:
    stream = opened.streams.video[0]
    keys = [packet.dts for packet in packets_of(opened) if packet.is_keyframe]
    for key in reversed(keys):
        opened.seek(key + 2 * 512, stream=stream, backward=True)
        packet = next(opened.demux(stream))
        assert packet.dts == key
        frames = [*stream.codec_context.decode(packet), *stream.codec_context.decode(None)]
        assert [frame.pts for frame in frames] == [packet.pts]


def test_decoded_frames_keep_the_pts_of_their_packets_and_come_in_order(opened: Any) -> None:
    frames = list(opened.decode(opened.streams.video[0]))
    assert [frame.pts for frame in frames] == [512 * number for number in range(70)]
    assert not any(frame.is_corrupt for frame in frames)
    assert all(frame.make_writable() is None for frame in frames[:3])


def test_frames_carry_the_display_matrix(tmp_path: Path) -> None:
    with av.open(str(turn(encode(tmp_path / "a.mp4", frames=numbered_frames(2))))) as container:
        frame = next(container.decode(video=0))
        matrix = struct.unpack("=9i", bytes(frame.side_data.get(Type.DISPLAYMATRIX)))
    assert matrix[:5] == (0, 1 << 16, 0, -(1 << 16), 0)


def test_streams_have_dispositions_and_no_codec_without_a_decoder(tmp_path: Path) -> None:
    with av.open(str(renamed(tmp_path / "a.mp4", b"avc1", b"zzzz"))) as container:
        (stream,) = container.streams.video
        assert stream.codec_context is None
        assert stream.disposition & av.stream.Disposition.default
        assert not stream.disposition & av.stream.Disposition.attached_pic


def test_a_header_can_be_read_without_a_decoder_and_decoded_later(path: Path) -> None:
    with av.open(str(path), options=HEADER_ONLY) as container:
        stream = container.streams.video[0]
        codec = stream.codec_context
        assert (codec.width, codec.height, codec.name, bytes(codec.extradata)[:1]) == (64, 48, "h264", b"\x01")
        packets = packets_of(container)
        assert sum(len(codec.decode(packet)) for packet in [*packets, None]) == 70


def test_packets_of_streams_can_be_left_out(tmp_path: Path) -> None:
    with av.open(str(with_sound(tmp_path / "a.mp4", "libx264")), options=HEADER_ONLY) as container:
        container.streams.audio[0].discard = av.stream.Discard.all
        kinds = [packet.stream.type for packet in container.demux() if packet.size]
    assert kinds.count("video") == 70
    assert kinds.count("audio") <= 1  # read while opening


def test_larger_pictures_than_allowed_are_an_error_of_ffmpeg(path: Path) -> None:
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.options = {"max_pixels": "100"}
        with pytest.raises(av.FFmpegError):
            list(container.decode(video=0))


def test_a_converter_of_ones_own_converts_on_one_thread(opened: Any) -> None:
    frame = next(opened.decode(video=0))
    picture = av.video.reformatter.VideoReformatter().reformat(frame, format="rgb24", threads=1)
    plane = np.frombuffer(picture.planes[0], dtype=np.uint8).reshape(48, picture.planes[0].line_size)
    assert np.array_equal(plane[:, : 3 * 64].reshape(48, 64, 3), frame.to_ndarray(format="rgb24"))


def test_errors_are_ffmpeg_errors_or_those_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(100))
    with pytest.raises((av.FFmpegError, OSError)):
        av.open(str(tmp_path / "a.mp4"))
    assert issubclass(av.error.InvalidDataError, av.FFmpegError)
