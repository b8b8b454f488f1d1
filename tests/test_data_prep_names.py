"""Any folder and others' lists: hostile names come back as they are, what leads out is refused, writing is all or nothing."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import folder
import lists
import pytest
from annotations.file_search import find_videos
from annotations.video_statistics import evenly
from conftest import ROOT, SHARED
from output_files import csv_text, write_all
from test_data_prep_lists import program, real, refused

from sce_video.data import manifest
from sce_video.data.manifest import Video
from sce_video.errors import InputError

HOSTILE = [
    "-rf.mp4",
    "$(touch marker).mp4",
    "a;touch marker;.mp4",
    'quote".mp4',
    "it's.mp4",
    "comma, blank .mp4",
    " leading.mp4",
    "new\nline.mp4",
    "return\r.mp4",
    "#hash.mp4",
    "=1+1.mp4",
    "Re: holiday.mp4",
    "file:c.mp4",
    "100%.mp4",
    "back\\slash.mp4",
    "bytes\udcff\udc80.mp4",
    "\u65e5\u672c\u8a9e \u202e.mp4",
    "a.mp4 3.mp4",
    "x" * 251 + ".mp4",
]


def hostile_folder(place: Path) -> Path:
    for number, name in enumerate(HOSTILE):
        path = place / "videos" / ('class, "one"' if number % 2 else "cl\udcffss\n2") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return place / "videos"


def test_hostile_names_come_back_from_the_manifest_as_they_are(tmp_path: Path) -> None:
    videos = hostile_folder(tmp_path)
    result = program("folder", "--videos", videos, "--out", tmp_path / "out", "--probe")
    assert result.returncode == 0, result.stderr
    rows = manifest.read(tmp_path / "out/all.csv")
    assert sorted(os.path.basename(row.path) for row in rows) == sorted(HOSTILE)
    assert all(os.path.isfile(row.path) for row in rows)
    assert {row.label for row in rows} == {'class, "one"', "cl\udcffss\n2"}
    assert "19 of them unreadable" in result.stdout
    assert "\udcff" not in result.stdout
    assert not list(tmp_path.rglob("marker"))
    assert not (Path.cwd() / "marker").exists()


def test_paths_are_relative_below_the_manifest_and_absolute_elsewhere(tmp_path: Path) -> None:
    videos = [Video(str(tmp_path / "v/file:a.mp4"), "x"), Video("/elsewhere/b.mp4", None)]
    assert csv_text(videos, tmp_path) == "path,label\nv/file:a.mp4,x\n/elsewhere/b.mp4,\n"
    assert csv_text(videos, tmp_path / "v") == "path,label\n./file:a.mp4,x\n/elsewhere/b.mp4,\n"
    assert csv_text([Video(str(tmp_path / "a.mp4"), None)], tmp_path) == "path\na.mp4\n"
    (tmp_path / "v").mkdir()
    (tmp_path / "v/list.csv").write_text(csv_text(videos, tmp_path / "v"))
    assert os.path.normpath(manifest.read(tmp_path / "v/list.csv")[0].path) == videos[0].path


def test_search_takes_video_files_only(tmp_path: Path) -> None:
    for name in ("a/b/c.mp4", "a/._c.mp4", ".hidden/d.mp4", "__MACOSX/e.mp4", "f.txt", "g.MKV"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/outside.mp4").touch()
    (tmp_path / "in/link").symlink_to(tmp_path / "out")
    (tmp_path / "in/circle").symlink_to(tmp_path / "in")
    (tmp_path / "in/h.mp4").symlink_to(tmp_path / "out/outside.mp4")
    (tmp_path / "in/broken.mp4").symlink_to(tmp_path / "nowhere.mp4")
    os.mkfifo(tmp_path / "in/pipe.mp4")
    found = find_videos(tmp_path / "in")
    assert found.names == ["a/b/c.mp4", "g.MKV", "h.mp4", "link/outside.mp4"]
    assert found.notes() == ["passed over 3 other files (2 .mp4, 1 .txt)"], "a broken link and a pipe are no videos"
    with pytest.raises(InputError, match="is not a folder"):
        find_videos(tmp_path / "nowhere")


def make(place: Path, *names: str) -> Path:
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).touch()
    return place


@pytest.mark.parametrize(
    ("names", "labels", "expected"),
    [
        (("walk/a.mp4", "run/b.mp4"), "auto", ["run", "walk"]),
        (("walk/a.mp4", "b.mp4"), "auto", [None, None]),
        (("x/walk/a.mp4", "y/run/b.mp4"), "auto", [None, None]),
        (("x/walk/a.mp4", "y/run/b.mp4"), "folder", ["walk", "run"]),
        (("walk/a.mp4", "run/b.mp4"), "none", [None, None]),
    ],
)
def test_labels_of_a_folder(names: tuple[str, ...], labels: str, expected: list[str | None], tmp_path: Path) -> None:
    videos = make(tmp_path / "v", *names)
    folder.main(["--videos", str(videos), "--out", str(tmp_path / "out"), "--labels", labels])
    assert [video.label for video in manifest.read(tmp_path / "out/all.csv")] == expected


def test_split_is_by_class_repeatable_and_stays_when_videos_come(tmp_path: Path) -> None:
    names = [f"class_{i % 3}/{i}.mp4" for i in range(60)]
    rows = [Video(f"/v/{name}", name[:7]) for name in names] + [Video("/v/single/x.mp4", "single")]
    train, test = folder.split(rows, "/v", test=0.2, seed=0)
    assert (len(train), len(test)) == (49, 12)
    assert set(train) | set(test) == set(rows)
    assert [sum(row.label == f"class_{i}" for row in test) for i in range(3)] == [4, 4, 4]
    assert rows[-1] in train
    assert folder.split(rows[::-1], "/v", test=0.2, seed=0)[1] == test[::-1], "the order is not looked at"
    assert folder.split(rows, "/v", test=0.2, seed=1)[1] != test
    moved = [row._replace(path=row.path.replace("/v/", "/w/")) for row in rows]
    assert [row.path[3:] for row in folder.split(moved, "/w", test=0.2, seed=0)[1]] == [row.path[3:] for row in test]
    more = [*rows, *(Video(f"/v/class_0/{i}.mp4", "class_0") for i in range(100, 105))]
    later = folder.split(more, "/v", test=0.2, seed=0)[1]
    assert len({row.path for row in test} - {row.path for row in later}) <= 1 + 5 * 0.2


@pytest.mark.slow
def test_folder_program_refusals(tmp_path: Path) -> None:
    make(tmp_path / "v", "a.mp4", "notes.txt")
    (tmp_path / "empty").mkdir()
    out = ("--out", tmp_path / "out")
    assert "holds no video" in refused(program("folder", "--videos", tmp_path / "empty", *out))
    assert "'a.mp4' lies in no subfolder" in refused(program("folder", "--videos", tmp_path / "v", *out, "--labels", "folder"))
    assert "needs two videos" in refused(program("folder", "--videos", tmp_path / "v", *out, "--test", "0.5"))
    assert "'1.5' is not a share" in program("folder", "--videos", tmp_path / "v", *out, "--test", "1.5").stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a/b.mp4 3", ("a/b.mp4", "3", "path label")),
        ("a/b.mp4\t3", ("a/b.mp4", "3", "path label")),
        ("a/b.mp4,3", ("a/b.mp4", "3", "path label")),
        ("a/b.mp4, 3", ("a/b.mp4", "3", "path label")),
        ("a b/c d.MP4 3", ("a b/c d.MP4", "3", "path label")),
        ("'a b/c d.mp4' 3", ("a b/c d.mp4", "3", "path label")),
        ('"a b/c, d.mp4",walk', ("a b/c, d.mp4", "walk", "path label")),
        ("a.mp4,riding a bike", ("a.mp4", "riding a bike", "path label")),
        ("a.mp4 0 -1", ("a.mp4", None, "path 0 -1")),
        ("a.mp4,0,-1", ("a.mp4", None, "path 0 -1")),
        ("a.mp4 b.mp4 3", ("a.mp4 b.mp4", "3", "path label")),
        ("-a b.webm", ("-a b.webm", None, "path")),
    ],
)
def test_rows_of_other_programs(line: str, expected: tuple[str, str | None, str]) -> None:
    assert lists.parse(line, "x:1") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.mp4 1\nframes/a 120 3\n", "x.txt:2: a row `folder frames label` in a list of rows `path label`"),
        ("frames/a 1 120 3\n", "x.txt:1: .* 3 numbers: of folders of pictures only mmaction2's rows"),
        ("a.mp4 3 17\n", "x.txt:1: .* has 2 numbers after the path"),
        ("a.mp4,3,17,b\n", "x.txt:1: .* more columns than path and label"),
        ("a.mp4 riding a bike\n", "x.txt:1: .* has blanks; write `path,class`"),
        ("a.txt\n", "x.txt:1: 'a.txt' is not `path label`"),
        ("a.mp4 1\nb.mp4\n", "x.txt:2: a row `path` in a list of rows `path label` .*x.txt:1"),
        ("a.mp4 0 -1\n\nb.mp4 2\n", "x.txt:3: a row `path label` in a list of rows `path 0 -1`"),
        ("../a.mp4 1\n", "x.txt:1: '../a.mp4' leads out of"),
        ("b/../../a.mp4 1\n", "x.txt:1: .* leads out of"),
        ("/etc/a.mp4 1\n", "x.txt:1: '/etc/a.mp4' leads out of"),
        ("rtsp://host/a.mp4 1\n", "x.txt:1: .* is not a file path"),
        ("# nothing\n", "holds no row"),
    ],
)
def test_malformed_lists_of_other_programs_name_the_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        lists.read_list(tmp_path / "x.txt", tmp_path)


def test_lists_program_keeps_paths_classes_and_says_repeats(tmp_path: Path) -> None:
    videos = make(tmp_path / "v", "a b.mp4", "c\udcff.mp4", "sub/d.mp4")
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbfa b.mp4 1\r\nc\xff.mp4 2\r\na b.mp4 1\r\n./c\xff.mp4 2\r\n")
    (tmp_path / "val.csv").write_text(f"{videos}/sub/d.mp4,1\n")
    (tmp_path / "names.txt").write_text("1 walk\n2 run fast\n")
    arguments = ("--lists", tmp_path / "train.txt", tmp_path / "val.csv", "--videos", videos, "--out", tmp_path / "out")
    result = program("lists", *arguments, "--classes", tmp_path / "names.txt")
    assert result.returncode == 0, result.stderr
    assert "train: 2 rows are written twice and were taken once" in result.stdout
    assert [(v.path, v.label) for v in manifest.read(tmp_path / "out/train.csv")] == [
        (f"{videos}/a b.mp4", "walk"),
        (f"{videos}/c\udcff.mp4", "run fast"),
    ]
    assert [(v.path, v.label) for v in manifest.read(tmp_path / "out/val.csv")] == [(f"{videos}/sub/d.mp4", "walk")]
    (tmp_path / "names.txt").write_text("walk\nrun\n")
    message = refused(program("lists", *arguments, "--classes", tmp_path / "names.txt"))
    assert "train.txt:2: class '2' is not one of the 2 numbers" in message
    (videos / "a b.mp4").unlink()
    assert "1 of 3 listed videos are not in" in refused(program("lists", *arguments))


@real
def test_real_lists_of_the_shared_clips(tmp_path: Path) -> None:
    ours = SHARED / "clips/lists"
    parts = {
        "k400": ("k400_train_paths.txt", "k400_val_paths.txt"),
        "ut_interaction": ("ut_interaction_trainlist.txt", "ut_interaction_testlist.txt"),
    }
    counts = {}
    for name, files in parts.items():
        paths = [str(ours / file) for file in files]
        lists.main(["--lists", *paths, "--videos", str(SHARED / "clips" / name), "--out", str(tmp_path / name)])
        for file in files:
            rows = manifest.read(tmp_path / name / Path(file).with_suffix(".csv"))
            assert all(Path(row.path).is_file() for row in rows)
            counts[file] = len(rows)
    assert list(counts.values()) == [62, 20, 41, 19]


@real
def test_folders_of_the_shared_clips(tmp_path: Path) -> None:
    for name, videos, classes in (("ucf101", 127, 6), ("ut_interaction", 60, 6), ("hmdb51", 5, 5), ("k400", 82, 11)):
        folder.main(["--videos", str(SHARED / "clips" / name), "--out", str(tmp_path / name)])
        rows = manifest.read(tmp_path / name / "all.csv")
        assert (len(rows), len({row.label for row in rows})) == (videos, classes)


def test_probing_counts_unreadable_files(videos: Path, tmp_path: Path) -> None:
    for name in ("class_0/00.mp4", "class_1/01.mp4"):
        make(tmp_path / "v", name)
        (tmp_path / "v" / name).write_bytes((videos / name).read_bytes())
    (tmp_path / "v/class_0/broken.mp4").write_text("#EXTM3U\nhttp://host/x.ts\n")
    folder.main(["--videos", str(tmp_path / "v"), "--out", str(tmp_path / "out"), "--probe"])
    figures = json.loads((tmp_path / "out/summary.json").read_text())["lists"]["all"]["probe"]
    assert (figures["probed"], figures["unreadable"]) == (3, 1)
    assert "broken.mp4" in figures["unreadable_first"][0]
    assert figures["resolutions"] == {"64x48": 2}
    assert figures["codecs"] == {"h264 yuv420p": 2}
    assert set(figures["seconds_per_class"]) == {"class_0", "class_1"}
    assert evenly([Video(str(i), None) for i in range(10)], 2) == [Video("2", None), Video("7", None)]


def test_writing_is_all_or_nothing(tmp_path: Path) -> None:
    assert write_all({"a.csv": "path\n1\n", "b.csv": "path\n2\n"}, tmp_path / "new/out") == ["a.csv", "b.csv"]
    (tmp_path / "new/out/b.csv").unlink()
    assert write_all({"a.csv": "path\n1\n", "b.csv": "path\n2\n"}, tmp_path / "new/out") == ["b.csv"]
    (tmp_path / "new/out/b.csv").unlink()
    with pytest.raises(InputError, match="a.csv' exists with other content and is not overwritten"):
        write_all({"b.csv": "path\n2\n", "a.csv": "path\n3\n"}, tmp_path / "new/out")
    assert os.listdir(tmp_path / "new/out") == ["a.csv"]
    with pytest.raises(InputError, match="cannot write to .*a.csv': "):
        write_all({"x": ""}, tmp_path / "new/out/a.csv")


def test_a_full_disk_leaves_no_part_of_a_list(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk."""
    videos = make(tmp_path / "v", *(f"{i:04d}.mp4" for i in range(200)))
    command = [sys.executable, str(ROOT / "data_prep/folder.py"), "--videos", str(videos), "--out", str(tmp_path / "out")]

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))

    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(
        command, capture_output=True, text=True, preexec_fn=small_files, env=environment, timeout=60, check=False
    )
    assert "cannot write to" in refused(result)
    assert os.listdir(tmp_path / "out") == []
    assert program("folder", "--videos", videos, "--out", tmp_path / "out").returncode == 0
    assert len(manifest.read(tmp_path / "out/all.csv")) == 200
