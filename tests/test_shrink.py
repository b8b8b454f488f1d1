"""Small copies show the same frames at the same times, whatever the source is, and broken sources stop nothing."""

from __future__ import annotations

import csv
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from conftest import ROOT, SHARED, numbered_frames, run_program
from jobs.manifest_items import items_of, targets_of
from media.copy_form import Form, Shown, compared, size_in
from test_decode import encode, forward_decode
from test_doctor import FAULTS, is_running

from sce_video.data import manifest
from sce_video.data.decode import open_video
from sce_video.data.manifest import Video

LISTS = ("manifest.csv", "shrunk.csv", "failed.csv")
TIMES = [0, 33, 66, 100, 300, 333, 366, 400, 700, 733, 766, 800, 1000, 1100, 1133, 1166]  # milliseconds


def shrink(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return run_program("data_prep/shrink.py", *arguments, timeout=200, **environment)


def varying(path: Path) -> Path:
    """A file whose frames are shown at TIMES."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for number, milliseconds in zip(numbered_frames(len(TIMES)), TIMES, strict=True):
            frame = av.VideoFrame.from_ndarray(number, format="rgb24")
            frame.pts, frame.time_base = milliseconds, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def wide_pixels(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.sample_aspect_ratio = Fraction(3, 2)
        for number in numbered_frames(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(number, format="rgb24")))
        container.mux(stream.encode())
    return path


def times_of(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        return [frame.time for frame in container.decode(video=0)]


def rows_of(folder: Path) -> dict[str, dict[str, str]]:
    with open(folder / "shrunk.csv", newline="", errors="surrogateescape") as file:
        return {os.path.basename(row["path"]): row for row in csv.DictReader(file)}


def copies(folder: Path) -> dict[str, str]:
    files = sorted(path for path in (folder / "videos").rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`list.csv` with good videos of many kinds, broken ones and odd names, in two classes."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    encode(folder / "a/plain.mp4", numbered_frames(40, 96, 128))
    encode(folder / "a/plain.avi", numbered_frames(40, 96, 128), "mpeg4", g="12", bf="2")
    encode(folder / "a/plain.mkv", numbered_frames(40), rate=24)
    encode(folder / "a/plain.ts", numbered_frames(40))
    encode(folder / "b/vp9.webm", numbered_frames(20), "libvpx-vp9", deadline="realtime", **{"cpu-used": "8"})
    encode(folder / "b/one.mp4", numbered_frames(1))
    varying(folder / "b/varying.mp4")
    wide_pixels(folder / "b/wide.mp4")
    for name in ('it\'s "so" $(touch PWN);', "-dash", "new\nline", os.fsdecode(b"by\xffte"), "n" * 251):
        shutil.copy(folder / "a/plain.mp4", folder / f"b/{name}.mp4")
    for name in ("hang", "crash"):
        shutil.copy(folder / "a/plain.mp4", folder / f"b/{name}.mp4")
    (folder / "b/zero.mp4").write_bytes(b"")
    (folder / "b/playlist.mp4").write_text(f"#EXTM3U\n#EXTINF:9,\n{folder}/a/plain.ts\n#EXT-X-ENDLIST\n")
    content = (folder / "a/plain.mkv").read_bytes()
    (folder / "b/cut.mkv").write_bytes(content[: len(content) * 2 // 3])
    with open(folder / "list.csv", "w", newline="", errors="surrogateescape") as file:
        paths = sorted(path.relative_to(folder) for path in folder.rglob("*.*") if path.parent != folder)
        csv.writer(file).writerows([("path", "label"), *((path, path.parent.name) for path in paths)])
    return folder


@pytest.fixture(scope="session")
def small(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("small") / "all"
    before = {path: path.read_bytes() for path in sources.rglob("*.*") if path.is_file()}
    result = shrink(sources / "list.csv", "--out", out, "--short-side", "32", "--hang-seconds", "4", **FAULTS)
    assert result.returncode == 0, result.stderr
    assert {path: path.read_bytes() for path in sources.rglob("*.*") if path.is_file()} == before
    return out


def test_good_files_are_copied_with_their_labels_and_broken_ones_listed(sources: Path, small: Path) -> None:
    rows = rows_of(small)
    reasons = {name: row["reason"] for name, row in rows.items() if row["status"] == "failed"}
    assert set(reasons) == {"hang.mp4", "crash.mp4", "zero.mp4", "playlist.mp4", "cut.mkv"}
    assert reasons["hang.mp4"] == "hang: no progress for 4 s"
    assert "SIGSEGV" in reasons["crash.mp4"]
    assert "before its container does" in reasons["cut.mkv"]
    with open(small / "failed.csv", newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [str(sources / "b" / name) for name in sorted(reasons)]
    good = [video for video in manifest.read(sources / "list.csv") if os.path.basename(video.path) not in reasons]
    made = manifest.read(small / "manifest.csv")
    assert [video.label for video in made] == [video.label for video in good]
    assert len(made) == 13
    assert not Path("PWN").exists()
    assert sorted(path.name for path in (small / "shards").iterdir() if "unfinished" in path.name) == []


def test_copies_show_the_same_at_the_same_times(sources: Path, small: Path) -> None:
    for name, row in rows_of(small).items():
        if row["status"] != "ok":
            continue
        source, copy = Path(row["path"]), small / "videos" / row["output"]
        expected, shown = forward_decode(source), forward_decode(copy)
        assert len(shown) == len(expected) == int(row["frames"]), name
        off = np.abs(shown.mean((1, 2, 3)) - expected.mean((1, 2, 3)))  # 10 and more for another frame
        assert off.mean() < 2, name
        assert off.max() < 8, name
        there = np.array(times_of(source)) - times_of(source)[0]
        assert np.abs(np.array(times_of(copy)) - there).max() < 1 / 24, name
        with open_video(str(copy)) as video:
            assert video.num_frames == len(shown)
            assert min(video.height, video.width) == 32
    np.testing.assert_allclose(times_of(small / "videos/b/varying.mp4"), np.array(TIMES) / 1000, atol=1e-9)


def test_copies_have_the_training_form(small: Path) -> None:
    rows = rows_of(small)
    assert (rows["plain.mp4"]["width"], rows["plain.mp4"]["height"]) == ("42", "32")
    assert (rows["wide.mp4"]["width"], rows["wide.mp4"]["height"]) == ("64", "32")  # 96 x 48 as shown
    assert {rows[f"plain.{ending}"]["output"] for ending in ("mp4", "avi")} == {"a/plain.mp4.mp4", "a/plain.avi.mp4"}
    assert rows["-dash.mp4"]["output"] == "b/-dash.mp4"
    with av.open(str(small / "videos/a/plain.mp4.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        frames = list(container.decode(video=0))
    kinds = "".join("?IPB"[int(frame.pict_type)] for frame in frames)
    assert kinds == 2 * "IBBBBBBBPBBBBBBP" + "IBBBBBBP", "the numbers in the pictures make a scene of 16 frames"
    assert frames[0].format.name == "yuv420p"


@pytest.mark.parametrize(
    ("source", "aspect", "expected"),
    [
        ((1920, 1080), 1, (456, 256)),
        ((340, 256), 1, (340, 256)),
        ((321, 241), 1, (320, 240)),
        ((1080, 1920), 1, (256, 456)),
        ((720, 576), Fraction(16, 15), (342, 256)),
        ((1440, 1080), Fraction(4, 3), (456, 256)),
        ((704, 576), Fraction(1, 2), (256, 418)),
        ((1, 1), 1, (2, 2)),
    ],
)
def test_size(source: tuple[int, int], aspect: Fraction, expected: tuple[int, int]) -> None:
    assert size_in(Form(256), *source, Fraction(aspect)) == expected


def test_what_differs_from_its_source_is_refused() -> None:
    pictures = [np.full((32, 32, 3), 100, np.uint8)] * 2
    before = Shown([0.0, 0.1, 0.2], pictures, Fraction(10))
    assert compared(before, before)["reason"] == ""
    for after, reason in (
        (before._replace(times=[0.0, 0.1]), "3 frames became 2"),
        (before._replace(times=[0.0, 0.1, 0.31]), "moved by 0.11 s"),
        (before._replace(pictures=[pictures[0] + np.uint8(9)] * 2), "differ by 9.0 of 255"),
    ):
        assert reason in compared(before, after)["reason"]


def test_names_of_copies_differ_and_stay_below() -> None:
    items = items_of([Video(path, None) for path in ("/d/a.avi", "/d/a.mkv", "/d/a.avi.mp4", "/d/b/c.mp4", "/d/./a.avi")])
    assert [item["listed"] for item in items] == [2, 1, 1, 1]
    assert targets_of(items, "/d") == ["a.avi.mp4", "a.mkv.mp4", "a.avi.mp4.2.mp4", "b/c.mp4"]
    assert targets_of(items, "/elsewhere") == targets_of(items, "/d")
    assert all(not target.startswith(("/", "..")) for target in targets_of(items, "/"))


def contents(folder: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    return {name: (folder / name).read_bytes() for name in LISTS}, copies(folder)


@pytest.mark.slow
def test_killed_again_and_again_it_ends_the_same(sources: Path, small: Path, tmp_path: Path) -> None:
    """kill -9 while it transcodes: no half file under a final name, and the same bytes in the end."""
    options = ["--short-side", "32", "--hang-seconds", "4", "--jobs", "1"]
    arguments = [str(sources / "list.csv"), "--out", str(tmp_path / "out"), *options]
    journal = tmp_path / "out/shards/journal-00000-of-00001.jsonl"
    done = 0
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "data_prep/shrink.py"), *arguments],
            env={**os.environ, **FAULTS},
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + 60
        while time.monotonic() < until and (not journal.exists() or journal.read_bytes().count(b"\n") < done + 4):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not is_running(process.pid)
        done = journal.read_bytes().count(b"\n")
        time.sleep(0.3)  # its worker dies with it
        for path in (path for path in (tmp_path / "out/videos").rglob("*") if path.is_file()):
            assert copies(small)[str(path.relative_to(tmp_path / "out"))]
            forward_decode(path)
    result = shrink(*arguments, **FAULTS)
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path / "out") == contents(small)
    assert not list((tmp_path / "out/shards").glob("unfinished*"))


@pytest.mark.slow
def test_two_shards_join_to_the_same_lists(sources: Path, small: Path, tmp_path: Path) -> None:
    common = [sources / "list.csv", "--out", tmp_path / "out", "--short-side", "32", "--hang-seconds", "4"]
    for index in ("0", "1"):
        result = shrink(*common, "--shard-index", "auto", RANK=index, WORLD_SIZE="2", **FAULTS)
        assert result.returncode == 0, result.stderr
    assert shrink("merge", tmp_path / "out").returncode == 0
    assert contents(tmp_path / "out") == contents(small)
    next((tmp_path / "out/videos/a").iterdir()).unlink()
    result = shrink("merge", tmp_path / "out")
    assert (result.returncode, result.stderr.count("\n")) == (70, 1)
    assert "1 copies are no longer in" in result.stderr


@pytest.mark.slow
def test_estimate_writes_nothing(sources: Path, tmp_path: Path) -> None:
    result = shrink(sources / "list.csv", "--out", tmp_path / "out", "--estimate", "--jobs", "2")
    assert result.returncode == 0, result.stderr
    assert "copies will take about" in result.stdout
    assert "with 2 jobs" in result.stdout
    assert not (tmp_path / "out").exists()
    (tmp_path / "bad.mp4").write_bytes(b"")
    result = shrink(tmp_path / "bad.mp4", "--out", tmp_path / "out", "--estimate")
    assert result.returncode == 70
    (tmp_path / "list.txt").write_text("bad.mp4\n")
    result = shrink(tmp_path / "list.txt", "--out", tmp_path / "out", "--estimate")
    assert (result.returncode, result.stderr.count("\n")) == (70, 1)
    assert "none of the 1 files tried can be shrunk" in result.stderr


@pytest.mark.slow
def test_copies_are_measured_against_their_sources(small: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools/benchmark.py"), "decode", "--rounds", "1", "--shrunk"]
    result = subprocess.run([*command, str(small)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert re.search(r"^copies: 13 files, [\d.]+ MB, [\d.]+ clips/s/core$", result.stdout, re.M), result.stdout
    result = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (result.returncode, "Traceback" in result.stderr) == (70, False)
    assert "has no shrunk.csv" in result.stderr


def test_the_sources_folder_is_not_written_to(sources: Path) -> None:
    for out in (sources, sources / "a/new"):
        result = shrink(sources, "--out", out)
        assert result.returncode == 70
        assert "choose a folder outside" in result.stderr.splitlines()[-1], "after a line on the files passed over"
    result = shrink(sources / "list.csv", "--out", sources)
    assert "give a new or empty folder" in result.stderr


@pytest.mark.slow
def test_a_full_disk_stops_it_and_it_goes_on_afterwards(sources: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", str(tmp_path / "disk")]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    try:
        (tmp_path / "disk/ballast").write_bytes(bytes(88 << 10))
        (tmp_path / "list.txt").write_text(f"{sources}/a/plain.mp4\n{sources}/a/plain.ts\n{sources}/b/varying.mp4\n")
        arguments = (tmp_path / "list.txt", "--out", tmp_path / "disk/out", "--jobs", "1")
        result = shrink(*arguments)
        assert (result.returncode, result.stderr.count("\n")) == (70, 1), result.stderr
        assert "No space left on device: free some space and run the same command again" in result.stderr
        for path in (tmp_path / "disk/out/videos").rglob("*.mp4"):
            forward_decode(path)
        (tmp_path / "disk/ballast").unlink()
        result = shrink(*arguments)
        assert result.stdout.startswith("3 of 3 files shrunk"), result.stderr
    finally:
        subprocess.run(["umount", str(tmp_path / "disk")], check=True)


def chosen_files() -> list[Path]:
    odd = ("issue-134-rotate.mp4", "video_270.mov", "goldeneye-vfr-drop3.mp4", "baseball.mp4", "bt709_full_range.mp4")
    odd += ("no_duration.webm", "v_biking_01_01.mpg", "h265_10bits.mp4", "delayed_start.mp4", "unordered.mov")
    parts = ("k400", "ucf101", "ut_interaction", "hmdb51")
    real = [path for part in parts for path in sorted((SHARED / "clips" / part).glob("*/*.*"))[::40]]
    return [*(SHARED / "clips_odd" / name for name in odd), *real]


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "clips_odd").is_dir(), reason="the shared videos are not here")
def test_real_files_keep_their_frames_times_and_looks(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in chosen_files()))
    result = shrink(tmp_path / "list.txt", "--out", tmp_path / "out", "--short-side", "128")
    assert result.returncode == 0, result.stderr
    rows: dict[str, Any] = rows_of(tmp_path / "out")
    assert len(rows) == len(chosen_files()) > 15
    for path in chosen_files():
        row = rows[path.name]
        assert row["status"] == "ok", row
        with open_video(str(path), "pyav") as source, open_video(str(tmp_path / "out/videos" / row["output"])) as copy:
            assert copy.num_frames == source.num_frames, path.name
            if path.name != "baseball.mp4":  # its rate counts frames that are hidden
                assert abs(copy.seconds - source.seconds) <= 1 / source.fps + Fraction(1, 1000), path.name
            times = np.array(times_of(path))
            if path.suffix == ".avi" and path.read_bytes()[:4] == b"RIFF":  # stores an order, no times: these go up and down
                times = np.arange(source.num_frames) / float(source.fps)
            shown = np.array(times_of(Path(copy.path)))
            assert np.abs(times - times[0] - shown).max() <= 1 / source.fps, path.name
            shape = source.width / source.height
            assert copy.width / copy.height == pytest.approx(shape, rel=0.03) or "v_biking" in path.name, path.name
            middle = source.num_frames // 2
            a, b = (video.read([middle], max_short_side=32).float() for video in (source, copy))
            assert (a.mean((0, 1, 2)) - b.mean((0, 1, 2))).abs().max() < 3, path.name
