"""Copies as JPEG pictures, and copies that the ffmpeg program writes, show what their sources show."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import ROOT, SHARED, numbered_frames
from media import ffmpeg_copies, transcode
from media.copy_form import Form
from test_decode import encode, forward_decode
from test_shrink import TIMES, rows_of, shrink, times_of, varying, wide_pixels

from sce_video.data import manifest
from sce_video.data.decode import open_video

HAS_FFMPEG = shutil.which("ffmpeg") is not None
needs_ffmpeg = pytest.mark.skipif(not HAS_FFMPEG, reason="there is no ffmpeg program here")


def still_there() -> None:
    """No hang is looked for here."""


def copy(source: Path, target: Path, form: Form) -> dict[str, object]:
    working = target.with_name(f"unfinished{form.ending}")
    row = transcode.shrink(str(source), target, working, form, still_there)
    assert not working.exists()
    return row


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("kinds")
    return [
        encode(folder / "plain.mp4", numbered_frames(20, 96, 128)),
        encode(folder / "b_frames.avi", numbered_frames(20), "mpeg4", g="12", bf="2"),
        encode(folder / "plain.mkv", numbered_frames(20), rate=24),
        encode(folder / "plain.ts", numbered_frames(20)),
        encode(folder / "one.mp4", numbered_frames(1)),
        varying(folder / "varying.mp4"),
        wide_pixels(folder / "wide.mp4"),
    ]


@pytest.mark.parametrize("kind", ["jpeg-folder", "jpeg-zip"])
def test_pictures_show_the_frames_of_their_source_in_order(kind: str, kinds: list[Path], tmp_path: Path) -> None:
    form = Form(32, kind, quality=95)
    for source in kinds:
        target = tmp_path / f"{source.name}{form.ending}"
        row = copy(source, target, form)
        if source.name == "varying.mp4":
            assert row["reason"] == "its rate varies, and pictures have one rate: take --form video"
            continue
        assert row["status"] == "ok", (source.name, row)
        expected = forward_decode(source)
        with open_video(str(target)) as video, open_video(str(source), "pyav") as original:
            assert (video.num_frames, video.fps) == (original.num_frames, original.fps), source.name
            assert (video.width, video.height) == (row["width"], row["height"])
            assert video.height == 32
            shown = video.read(range(video.num_frames)).numpy()
        off = np.abs(shown.mean((1, 2, 3)) - expected.mean((1, 2, 3)))  # 10 and more for another frame
        assert off.max() < 4, source.name
    assert (row["width"], row["height"]) == (64, 32)  # 96 x 48 as shown


def test_the_same_source_gives_the_same_pictures_and_replaces_what_a_killed_run_left(kinds: list[Path], tmp_path: Path) -> None:
    forms = [Form(32, kind) for kind in ("jpeg-folder", "jpeg-zip")]
    contents = []
    for form in forms:
        target = tmp_path / f"copy{form.ending}"
        copy(kinds[0], target, form)
        first = {path.name: path.read_bytes() for path in transcode._files(target)}
        if target.is_dir():  # the folder got its name, but the journal was not told
            (target / "000099.jpg").touch()
            (tmp_path / f"unfinished{form.ending}").mkdir()
        assert copy(kinds[0], target, form)["status"] == "ok"
        contents.append({path.name: path.read_bytes() for path in transcode._files(target)})
        assert contents[-1] == first
    with open_video(str(tmp_path / "copy.frames")) as one, open_video(str(tmp_path / "copy.frames.zip")) as two:
        assert np.array_equal(one.read(range(20)).numpy(), two.read(range(20)).numpy())


def test_better_quality_takes_more_bytes(kinds: list[Path], tmp_path: Path) -> None:
    sizes = [
        copy(kinds[0], tmp_path / f"{quality}", Form(96, "jpeg-zip", quality=quality))["bytes_after"] for quality in (50, 90)
    ]
    assert sizes[0] < sizes[1]


def test_damaged_sources_become_no_pictures(kinds: list[Path], tmp_path: Path) -> None:
    content = kinds[2].read_bytes()
    (tmp_path / "cut.mkv").write_bytes(content[: len(content) * 2 // 3])
    for kind in ("jpeg-folder", "jpeg-zip"):
        row = copy(tmp_path / "cut.mkv", tmp_path / "copy", Form(32, kind))
        assert row["status"] == "failed"
        assert not (tmp_path / "copy").exists()


@needs_ffmpeg
def test_the_program_writes_what_its_source_shows(kinds: list[Path], tmp_path: Path) -> None:
    ffmpeg_copies.check_program()
    for source in kinds:
        target = tmp_path / f"{source.name}.mp4"
        row = copy(source, target, Form(32, engine="ffmpeg"))
        assert row["status"] == "ok", (source.name, row)
        expected, shown = forward_decode(source), forward_decode(target)
        assert len(shown) == len(expected)
        assert np.abs(shown.mean((1, 2, 3)) - expected.mean((1, 2, 3))).max() < 8, source.name
        with av.open(str(target)) as container:
            assert container.streams.video[0].codec_context.name == "h264"
            assert len(container.streams) == 1
    np.testing.assert_allclose(times_of(tmp_path / "varying.mp4.mp4"), np.array(TIMES) / 1000, atol=1e-9)
    assert (row["width"], row["height"]) == (64, 32)


@needs_ffmpeg
def test_names_are_arguments_of_the_program_not_commands(kinds: list[Path], tmp_path: Path) -> None:
    for name in ("-y", "$(touch PWN);'\"", "pipe:1", "new\nline %d"):
        source = tmp_path / f"{name}.mp4"
        shutil.copy(kinds[0], source)
        assert copy(source, tmp_path / "copy.mp4", Form(32, engine="ffmpeg"))["status"] == "ok", name
    assert not Path("PWN").exists()


@needs_ffmpeg
def test_a_program_that_fails_is_a_reason(kinds: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for an ffmpeg that fails, writes too little, or finds the disk full."""
    program = tmp_path / "bin/ffmpeg"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    for script, reason in (
        ("echo 'Cannot allocate memory' >&2; exit 1", "ffmpeg: Cannot allocate memory"),
        ("kill -9 $$", "ffmpeg: exit code -9"),
        ("exit 0", "No such file"),
    ):
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        row = copy(kinds[0], tmp_path / "copy.mp4", Form(32, engine="ffmpeg"))
        assert row["status"] == "failed"
        assert reason in str(row["reason"])
    program.write_text("#!/bin/sh\necho 'av_interleaved_write_frame(): No space left on device' >&2; exit 1\n")
    with pytest.raises(OSError, match="No space left on device"):
        copy(kinds[0], tmp_path / "copy.mp4", Form(32, engine="ffmpeg"))
    for version, message in (("ffmpeg version 4.4.1 x", "5.1 or newer"), ("ffmpeg version N-1 x", "without libx264")):
        program.write_text(f"#!/bin/sh\necho '{version}'\n")
        with pytest.raises(ValueError, match=message):
            ffmpeg_copies.check_program()


def test_an_engine_that_is_not_there_or_does_not_fit_is_said_at_once(kinds: list[Path], tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{kinds[0]}\n")
    arguments = (tmp_path / "list.txt", "--out", tmp_path / "out", "--engine", "ffmpeg")
    result = shrink(*arguments, PATH=str(tmp_path))
    assert (result.returncode, result.stderr.count("\n")) == (70, 1)
    assert "there is no ffmpeg program on PATH" in result.stderr
    result = shrink(*arguments, "--form", "jpeg-zip")
    assert (result.returncode, result.stderr.count("\n")) == (70, 1)
    assert "leave --engine out" in result.stderr


@needs_ffmpeg
@pytest.mark.slow
def test_the_program_dies_with_a_killed_run(tmp_path: Path) -> None:
    source = encode(tmp_path / "a.mp4", numbered_frames(60))
    program = tmp_path / "bin/ffmpeg"
    program.parent.mkdir()
    program.write_text(
        f"#!/bin/sh\ncase $2 in -encoders) echo libx264;; esac\n[ $# -gt 3 ] && echo $$ > {tmp_path}/pid && exec sleep 300\n"
    )
    program.chmod(0o755)
    (tmp_path / "list.txt").write_text(f"{source}\n")
    command = [sys.executable, str(ROOT / "data_prep/shrink.py"), str(tmp_path / "list.txt"), "--out", str(tmp_path / "out")]
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    process = subprocess.Popen([*command, "--engine", "ffmpeg"], env=environment, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not (tmp_path / "pid").exists() and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.2)
    pid = int((tmp_path / "pid").read_text())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    until = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < until, "the program lives on"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "clips_odd").is_dir(), reason="the shared videos are not here")
@pytest.mark.parametrize("options", [["--form", "jpeg-zip"], pytest.param(["--engine", "ffmpeg"], marks=needs_ffmpeg)])
def test_real_files_keep_frames_and_looks(options: list[str], tmp_path: Path) -> None:
    odd = ("issue-134-rotate.mp4", "video_270.mov", "video_90.mov", "goldeneye-vfr-drop3.mp4", "bt709_full_range.mp4")
    odd += ("baseball.mp4", "v_biking_01_01.mpg", "h265_10bits.mp4", "delayed_start.mp4", "unordered.mov", "video3.avi")
    real = [path for part in ("k400", "hmdb51") for path in sorted((SHARED / "clips" / part).glob("*/*.*"))[::60]]
    paths = [*(SHARED / "clips_odd" / name for name in odd), *real]
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in paths))
    result = shrink(tmp_path / "list.txt", "--out", tmp_path / "out", "--short-side", "128", *options)
    assert result.returncode == 0, result.stderr
    assert len(manifest.read(tmp_path / "out/manifest.csv")) == len(paths), rows_of(tmp_path / "out")
    for path in paths:
        row = rows_of(tmp_path / "out")[path.name]
        with open_video(str(path), "pyav") as source, open_video(str(tmp_path / "out/videos" / row["output"])) as made:
            assert made.num_frames == source.num_frames, path.name
            for index in (0, source.num_frames // 2):
                a, b = (video.read([index], max_short_side=32).float() for video in (source, made))
                assert (a.mean((0, 1, 2)) - b.mean((0, 1, 2))).abs().max() < 4, path.name
