"""Every list format, and errors that name the line."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from conftest import SHARED

from sce_video.data import manifest
from sce_video.data.manifest import Video, label_ids, read
from sce_video.errors import InputError


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
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


def test_search_of_a_folder_leaves_out_what_machines_write_and_follows_links_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [
        "b/2.mp4",
        "a/1.mkv",
        "a/._1.mkv",
        "a/@eaDir/1.mp4",
        "a/.ipynb_checkpoints/1.mp4",
        "__MACOSX/1.mp4",
        "a/x.TXT",
        "y",
        "z",
    ]
    for name in names:
        write(tmp_path / "in" / name, "")
    write(tmp_path / "out/c/3.mp4", "")
    (tmp_path / "in/zz").symlink_to(tmp_path / "out/c")
    (tmp_path / "in/b/again").symlink_to(tmp_path / "out/c")
    (tmp_path / "in/b/circle").symlink_to(tmp_path / "in")
    (tmp_path / "in/itself").symlink_to(tmp_path / "in/itself")
    (tmp_path / "in/a-b").symlink_to(tmp_path / "in/a")
    found, passed = manifest.find_files(tmp_path / "in")
    assert found[:2] == ["a/1.mkv", "b/2.mp4"]
    assert found[2:] in (["b/again/3.mp4"], ["zz/3.mp4"]), "once, by one of its names"
    assert passed == {".txt": 1, "no ending": 3}
    assert len(manifest.read(tmp_path / "in")) == 3
    assert "3 videos; passed over 4 other files (3 no ending, 1 .txt)" in capsys.readouterr().err


def test_both_spellings_of_an_accent_name_the_file(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "\u00dcbung.mp4") for form in ("NFC", "NFD"))
    (tmp_path / decomposed).touch()
    assert [video.path for video in manifest.read(write(tmp_path / "x.txt", composed))] == [str(tmp_path / decomposed)]
    (tmp_path / composed).touch()
    assert [video.path for video in manifest.read(write(tmp_path / "x.txt", composed))] == [str(tmp_path / composed)]


def test_videos_listed_again_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest.read(write(tmp_path / "x.txt", "a.mp4 1\nb.mp4 2\n./a.mp4 1\n"))
    assert f"x.txt: 1 rows list a video again, e.g. {tmp_path}/a.mp4 (lines 1 and 3)" in capsys.readouterr().err
    manifest.read(write(tmp_path / "x.txt", "a.mp4 1\nb.mp4 2\na.mp4 1\nb.mp4 3\n"))
    assert (
        f"x.txt: 2 rows list a video again, e.g. {tmp_path}/b.mp4 (lines 2 and 4, with another label)" in capsys.readouterr().err
    )


def test_video_in_both_lists_is_seen_through_links(tmp_path: Path) -> None:
    for folder in ("pool", "train", "test"):
        (tmp_path / folder).mkdir()
    (tmp_path / "pool/a.mp4").touch()
    (tmp_path / "train/a.mp4").symlink_to(tmp_path / "pool/a.mp4")
    (tmp_path / "test/b.mp4").symlink_to("../pool/a.mp4")
    (warning,) = manifest.compare([Video(f"{tmp_path}/train/a.mp4", "1", 1)], [Video(f"{tmp_path}/test/b.mp4", "1", 4)])
    assert warning.startswith(f"1 of 1 test videos are in the train list too, e.g. {tmp_path}/test/b.mp4 (line 1 of the train")


def test_lists_of_other_forms_are_read_right_or_refused_with_their_line(tmp_path: Path) -> None:
    assert read(write(tmp_path / "x.txt", '"a b.mp4","3"\n')) == [Video(str(tmp_path / "a b.mp4"), "3", 1)]
    for text in ('{"path": "a.mp4", "label": 1}', '{"label": 1, "path": "a.mp4"}', '["a.mp4", 3]'):
        with pytest.raises(InputError, match=r"x\.jsonl:2: .* is not `path label`"):
            read(write(tmp_path / "x.jsonl", f"b.mp4 1\n{text}\n"))
    with pytest.raises(InputError, match=r"x\.csv:1: the header is \['a\.mp4', '3'\], it must name `path`"):
        read(write(tmp_path / "x.csv", '"a.mp4","3"\n'))
    with pytest.raises(InputError, match=r"x\.csv:3: ' b\.mp4' begins or ends with a blank"):
        read(write(tmp_path / "x.csv", "path,label\na.mp4,1\n b.mp4,2\n"))
    (tmp_path / " b.mp4").touch()
    assert len(read(write(tmp_path / "x.csv", "path,label\na.mp4,1\n b.mp4,2\n"))) == 2, "a file with such a name"
    with pytest.raises(InputError, match="classes '01' and '1' are the same number"):
        label_ids([Video("a", "1")], [Video("b", "01")])
