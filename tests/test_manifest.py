"""Every list format, and errors that name the line."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import SHARED

from sce_video.data import manifest
from sce_video.data.manifest import Video, label_ids, read
from sce_video.errors import InputError


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_csv_with_header(tmp_path: Path) -> None:
    text = 'label,path,seconds\r\nwalk,"a, b.mp4",1.5\r\nrun,/abs/c d.mp4,2\r\n,e.mp4,3\r\n'
    videos = read(write(tmp_path / "x.csv", text))
    assert videos == [
        Video(str(tmp_path / "a, b.mp4"), "walk", 2),
        Video("/abs/c d.mp4", "run", 3),
        Video(str(tmp_path / "e.mp4"), None, 4),
    ]


def test_csv_without_labels_and_with_root(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    videos = read(write(tmp_path / "x.csv", "\ufeffpath\na.mp4\n"), tmp_path / "root")
    assert videos == [Video(str(tmp_path / "root/a.mp4"), None, 2)]


@pytest.mark.parametrize(
    ("line", "path", "label"),
    [
        ("a/b.avi 3", "a/b.avi", "3"),
        ("a/b.avi\t3\r", "a/b.avi", "3"),
        ("a/b.avi,3", "a/b.avi", "3"),
        ("with space/b.avi 3", "with space/b.avi", "3"),
        ('"with space/b.avi" walk', "with space/b.avi", "walk"),
        ("with space/b.AVI", "with space/b.AVI", None),
        ("-dash.mp4 0", "-dash.mp4", "0"),
    ],
)
def test_lists(line: str, path: str, label: str | None, tmp_path: Path) -> None:
    videos = read(write(tmp_path / "x.txt", f"# comment\n\n{line}\n"))
    assert videos == [Video(str(tmp_path / path), label, 3)]


def test_folder_of_classes_and_folder_without(tmp_path: Path) -> None:
    for name in ("walk/a.mp4", "walk/b.avi", "run/c.webm", "run/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [(Path(v.path).name, v.label) for v in read(tmp_path)] == [("c.webm", "run"), ("a.mp4", "walk"), ("b.avi", "walk")]
    (tmp_path / "top.mp4").touch()
    assert {v.label for v in read(tmp_path)} == {None}, "videos beside the subfolders: no classes"
    assert len(read(tmp_path)) == 4


def test_labels_from_folders(tmp_path: Path) -> None:
    path = write(tmp_path / "x.txt", "Archery/a.avi\nYoYo/b.avi\n")
    assert [video.label for video in read(path, labels="folder")] == ["Archery", "YoYo"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "a.mp4,1\n", r"x.csv:1: the header is \['a.mp4', '1'\], it must name `path`"),
        ("x.csv", "path,label\na.mp4\n", "x.csv:2: 1 columns where the header has 2"),
        ("x.csv", "path,label\na.mp4,1\nhttp://host/a.mp4,1\n", "x.csv:3: 'http://host/a.mp4' is not a file path"),
        ("x.csv", "path\nconcat:a.mp4|b.mp4\n", "x.csv:2: .* is not a file path"),
        ("x.txt", "a.mp4 1\nwalk 3\n", "x.txt:2: 'walk 3' is not `path label`"),
        ("x.txt", "# nothing\n", "holds no video"),
    ],
)
def test_errors_name_the_line(name: str, text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read(write(tmp_path / name, text))


def test_missing_manifest_root_and_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read(tmp_path / "x.csv")
    with pytest.raises(InputError, match="root .* is not a folder"):
        read(write(tmp_path / "x.csv", "path\na.mp4\n"), tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no video"):
        read(tmp_path / "empty")


def test_classes_of_several_lists_are_numbered_together() -> None:
    train = [Video("a", "10"), Video("b", "9"), Video("c", "walk")]
    test = [Video("d", "walk"), Video("e", "11")]
    assert label_ids(train, test) == (["9", "10", "11", "walk"], [[1, 0, 3], [3, 2]])
    with pytest.raises(InputError, match="f has no label"):
        label_ids(train, [Video("f", None)])


def test_rows_know_their_lines(tmp_path: Path) -> None:
    table = write(tmp_path / "x.csv", 'path,label\na.mp4,1\n"b\nb.mp4",2\nc.mp4,3\n')
    assert [video.line for video in read(table)] == [2, 4, 5], "the line a row ends in"
    assert [video.line for video in read(write(tmp_path / "x.txt", "# list\n\na.mp4 1\nb.mp4 2\n"))] == [3, 4]


def test_doubtful_pairs_of_lists_are_told() -> None:
    train = [Video("/v/a.mp4", "run", 1), Video("/v/b.mp4", "walk", 2), Video("/v/c.mp4", "jump", 3)]
    test = [Video("/v/d.mp4", "run", 1), Video("/v/x/../b.mp4", "walk", 2), Video("/v/e.mp4", "sit", 3)]
    assert manifest.compare(train, test) == [
        "1 of 3 test videos are in the train list too, e.g. /v/x/../b.mp4 (line 2 of the train list, line 2 of the test list)",
        "1 of 4 classes have no test video, e.g. 'jump'",
        "1 of 4 classes have no train video, e.g. 'sit'",
    ]
    numbered = [Video(f"{label}.mp4", label) for label in ("1", "2", "5")]
    assert manifest.compare(numbered, [Video(f"t{v.path}", v.label) for v in numbered]) == [
        "labels are numbers up to 5, but no video has 3 (2 such gaps)"
    ]
    from_one = [Video(f"{label}.mp4", str(label)) for label in (1, 2, 3)]
    assert not manifest.compare(from_one, [Video(f"t{v.path}", v.label) for v in from_one])


@pytest.mark.skipif(not (SHARED / "clips").is_dir(), reason="the shared lists are not here")
def test_real_lists() -> None:
    lists = SHARED / "clips/lists"
    train = manifest.read(lists / "ucf101_trainlist01.txt", SHARED / "clips/ucf101")
    test = manifest.read(lists / "ucf101_testlist01.txt", SHARED / "clips/ucf101", labels="folder")
    assert (len(train), len(test)) == (87, 40)
    assert train[0].label == "3"
    assert {video.label for video in test} == {path.name for path in (SHARED / "clips/ucf101").iterdir()}
    assert all(Path(video.path).is_file() for video in (*train, *test))
    assert len(read(SHARED / "clips/ucf101")) == 127
