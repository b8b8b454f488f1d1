"""What a file says about itself, compared with what a full decode shows."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from conftest import SHARED, numbered_frames
from media.probe import opened, probe
from test_decode import FILES, encode

from sce_video.data.decode import open_video
from sce_video.data.readers.media import DecodeError, Limits, TooLarge


@pytest.mark.parametrize("name", FILES)
def test_probe_tells_what_was_encoded(name: str, tmp_path: Path) -> None:
    options = dict(FILES[name])
    path = encode(tmp_path / name, numbered_frames(50), options.pop("codec"), rate=25, **options)
    found = probe(str(path))
    assert (found.width, found.height, found.rotation, found.pixel_aspect) == (64, 48, 0, 1)
    assert (found.frames, found.frames_per_second, found.pixel_format) == (50, 25, "yuv420p")
    assert found.seconds == pytest.approx(2, abs=0.05)
    assert found.bytes == path.stat().st_size
    assert not found.has_audio
    if options.get("g"):  # encoders may put more key frames
        assert 1 < found.key_frame_interval <= min(int(options["g"]), 50)


def test_what_is_no_video_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "page.mp4").write_bytes(b"<html>404</html>" * 40)
    (tmp_path / "empty.mp4").write_bytes(b"")
    good = encode(tmp_path / "good.mp4", numbered_frames(10)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(good[: len(good) // 2])
    for name, message in (("page", "first bytes"), ("empty", "is empty"), ("cut", "Invalid data"), ("none", "No such")):
        with pytest.raises(DecodeError, match=message):
            probe(str(tmp_path / f"{name}.mp4"))
    with pytest.raises(TooLarge, match="64x48 pixels"), opened(str(tmp_path / "good.mp4"), limits=Limits(1000)):
        pass


@pytest.mark.skipif(not (SHARED / "clips_odd").is_dir(), reason="the shared videos are not here")
def test_probe_agrees_with_the_readers_on_odd_files() -> None:
    """Size as shown, rotation applied, hidden frames left out: as `open_video`, which decodes."""
    for path in sorted((SHARED / "clips_odd").glob("*.*")):
        found = probe(str(path))
        with open_video(str(path), "pyav") as video:
            assert (found.width, found.height) == (video.width, video.height), path.name
            assert found.frames == video.num_frames, path.name
            assert found.frames_per_second is not None
            if not found.frames_hidden:  # the container's rate counts those too
                assert found.frames_per_second.limit_denominator(1001) == video.fps, path.name
    turned = {path.stem: probe(str(path)).rotation for path in (SHARED / "clips_odd").glob("video_*.mov")}
    assert turned == {"video_0": 0, "video_90": 270, "video_180": 180, "video_270": 90}
    assert probe(str(SHARED / "clips_odd/issue-195-aspect-ratio.mp4")).pixel_aspect == Fraction(16, 11)
    assert probe(str(SHARED / "clips_odd/baseball.mp4")).frames_hidden == 16
