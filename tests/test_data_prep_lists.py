"""Official lists of UCF101 and HMDB51: the real ones and their published counts, every malformed row by file:line."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import hmdb51
import lists
import pytest
import ucf101
from annotations.entries import Entry, refuse_shared, unique
from conftest import SHARED, run_program

from sce_video.data import manifest
from sce_video.errors import InputError

UCF = SHARED / "annotations/ucfTrainTestlist"
HMDB = SHARED / "annotations/hmdb51_splits"
real = pytest.mark.skipif(not (SHARED / "clips").is_dir(), reason="the shared lists and clips are not here")


def program(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run data_prep/<name>.py as a user does."""
    return run_program(f"data_prep/{name}.py", *arguments, timeout=120)


def refused(result: subprocess.CompletedProcess[str]) -> str:
    """Return the one line of a program that refused its input."""
    assert result.returncode == 70, result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ")
    return result.stderr


@real
def test_real_ucf101_lists_have_the_published_counts() -> None:
    classes = ucf101.read_classes(UCF / "classInd.txt")
    assert (len(classes), classes[0], classes[36], classes[100]) == (101, "ApplyEyeMakeup", "HandstandPushups", "YoYo")
    for number, (train_count, test_count) in {1: (9537, 3783), 2: (9586, 3734), 3: (9624, 3696)}.items():
        train = ucf101.read_list(UCF / f"trainlist0{number}.txt", classes, "/videos")
        test = ucf101.read_list(UCF / f"testlist0{number}.txt", classes, "/videos")
        assert (len(train), len(test)) == (train_count, test_count)
        assert {row.label for row in train} == {row.label for row in test} == set(classes)
        refuse_shared(train, test)
        assert unique([*train, *test])[1] is None
        assert any("v_HandStandPushups_" in row.name and row.label == "HandstandPushups" for row in train)
        assert all(row.name.endswith(".avi") for row in train), "no line end stays in a name"


@real
def test_shared_ucf101_subset_lists() -> None:
    classes = ucf101.read_classes(UCF / "classInd.txt")
    lists = SHARED / "clips/lists"
    assert len(ucf101.read_list(lists / "ucf101_trainlist01.txt", classes, "/videos")) == 87
    assert len(ucf101.read_list(lists / "ucf101_testlist01.txt", classes, "/videos")) == 40


@real
def test_real_hmdb51_lists_have_the_published_counts() -> None:
    lists = hmdb51.find_lists(HMDB, (1, 2, 3))
    names: set[str] = set()
    for files in lists.values():
        splits = [hmdb51.read_list(path, label, "/videos") for label, path in files.items()]
        assert len(splits) == 51
        assert all((len(split.train), len(split.test)) == (70, 30) for split in splits)
        names |= {row.name for split in splits for row in (*split.train, *split.test)}
    assert "brush_hair/Brushing_Her_Hair__[_NEW_AUDIO_]_UPDATED!!!!_brush_hair_h_cm_np1_fr_goo_0.avi" in names
    stems = {Path(name).stem.lower() for name in names}
    assert len(stems) == len(names), "file names alone tell the videos apart, as flat folders need"


@pytest.mark.slow
@real
def test_ucf101_program_on_the_shared_subset(tmp_path: Path) -> None:
    command = ("ucf101", "--lists", UCF, "--videos", SHARED / "clips/ucf101", "--out", tmp_path / "out")
    message = refused(program(*command))
    assert "13193 of 13320 listed videos are not in" in message
    assert "trainlist" in message
    assert "--allow-missing" in message
    assert not (tmp_path / "out").exists()

    result = program(*command, "--allow-missing", "--probe", "3")
    assert result.returncode == 0, result.stderr
    lists = json.loads((tmp_path / "out/summary.json").read_text())["lists"]
    assert {name: (part["listed"], part["present"]) for name, part in lists.items()} == {
        "train1": (9537, 87),
        "test1": (3783, 40),
        "train2": (9586, 66),
        "test2": (3734, 61),
        "train3": (9624, 101),
        "test3": (3696, 26),
    }
    assert lists["train1"]["probe"]["resolutions"] == {"320x240": 3}
    for name, part in lists.items():
        videos = manifest.read(tmp_path / f"out/{name}.csv")
        assert len(videos) == part["present"]
        assert all(Path(video.path).is_file() and Path(video.path).parent.name == video.label for video in videos)
    missing = (tmp_path / "out/missing.txt").read_text().splitlines()
    assert len(missing) == len(set(missing)) == 13193

    again = program(*command, "--allow-missing", "--probe", "3")
    assert "0 files written" in again.stdout
    (tmp_path / "out/test1.csv").write_text("path,label\nmine.avi,mine\n")
    assert "test1.csv' exists with other content" in refused(program(*command, "--allow-missing", "--probe", "3"))
    assert "mine.avi" in (tmp_path / "out/test1.csv").read_text()


@real
def test_hmdb51_program_on_the_shared_subset(tmp_path: Path) -> None:
    command = ("hmdb51", "--lists", HMDB, "--videos", SHARED / "clips/hmdb51", "--out", tmp_path, "--allow-missing")
    result = program(*command)
    assert result.returncode == 0, result.stderr
    lists = json.loads((tmp_path / "summary.json").read_text())["lists"]
    counts = [(part["listed"], part["present"]) for part in lists.values()]
    assert counts == [(3570, 3), (1530, 2), (3570, 2), (1530, 3), (3570, 5), (1530, 0)]
    assert "no video of test3 is here: test3.csv is not written" in result.stdout
    videos = manifest.read(tmp_path / "train1.csv")
    assert [(Path(video.path).name[:5], video.label) for video in videos] == [
        ("(HQ)_", "climb"),
        ("6arro", "shoot_bow"),
        ("Baseb", "swing_baseball"),
    ]
    assert all(Path(video.path).is_file() for video in videos)


CLASSES = "1 Archery\r\n2 HandstandPushups\r\n"
TRAIN = "Archery/v_Archery_g08_c01.avi 1\r\nHandstandPushups/v_HandStandPushups_g08_c01.avi 2\r\n"
TEST = "Archery/v_Archery_g01_c01.avi\r\nHandstandPushups/v_HandStandPushups_g01_c01.avi\r\n"


def small_ucf101(folder: Path, train: str = TRAIN, test: str = TEST, classes: str = CLASSES) -> Path:
    """A folder `lists` as UCF101's, of one split, and the videos it names (empty files) in `videos`."""
    (folder / "lists").mkdir()
    for name, text in (("classInd", classes), ("trainlist01", train), ("testlist01", test)):
        (folder / f"lists/{name}.txt").write_bytes(text.encode("utf-8", "surrogateescape"))
    for row in (TRAIN + TEST).split("\r\n"):
        if row:
            path = folder / "videos" / row.split()[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return folder


def run_ucf101(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    places = ("--lists", folder / "lists", "--videos", folder / "videos", "--out", folder / "out")
    return program("ucf101", *places, "--splits", "1", *arguments)


def test_ucf101_layouts_flat_transcoded_and_other_case(tmp_path: Path) -> None:
    small_ucf101(tmp_path)
    for path in list((tmp_path / "videos").rglob("*.avi")):
        path.rename(tmp_path / "videos" / (path.stem.replace("Stand", "stand") + ".mp4"))
    for folder in (tmp_path / "videos").iterdir():
        if folder.is_dir():
            folder.rmdir()
    result = run_ucf101(tmp_path)
    assert result.returncode == 0, result.stderr
    assert [(Path(v.path).name, v.label) for v in manifest.read(tmp_path / "out/train1.csv")] == [
        ("v_Archery_g08_c01.mp4", "Archery"),
        ("v_HandstandPushups_g08_c01.mp4", "HandstandPushups"),
    ]
    assert "split 1 lists (2, 2) train and test videos; published are (9537, 3783)" in result.stdout


def test_ucf101_extra_and_ambiguous_files(tmp_path: Path) -> None:
    small_ucf101(tmp_path)
    (tmp_path / "videos/Archery/v_Archery_g99_c01.avi").touch()
    (tmp_path / "videos/Archery/._v_Archery_g08_c01.avi").touch()
    assert "1 videos of" in run_ucf101(tmp_path).stdout
    first = tmp_path / "videos/Archery/v_Archery_g08_c01.avi"
    shutil.copy(first, first.with_suffix(".mkv"))
    first.rename(first.with_suffix(".mp4"))
    assert "could be 'Archery/v_Archery_g08_c01.mkv' or 'Archery/v_Archery_g08_c01.mp4'" in refused(run_ucf101(tmp_path))


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("trainlist01", TRAIN + "Archery/v_Archery_g08_c02.avi 0\r\n", r"trainlist01.txt:3: class number 0 is not in 1\.\.2"),
        ("trainlist01", TRAIN + "Archery/v_Archery_g08_c02.avi x\r\n", "trainlist01.txt:3: class number x"),
        ("trainlist01", "Archery/v_Archery_g08_c02.avi 2\r\n", "trainlist01.txt:1: number 2 is class 'HandstandPushups'"),
        ("trainlist01", "\r\nBowling/v_Bowling_g08_c02.avi 2\r\n", "trainlist01.txt:2: .* does not begin with the folder"),
        ("trainlist01", "v_Archery_g08_c02.avi 1\r\n", "trainlist01.txt:1: .* does not begin with the folder"),
        ("trainlist01", "Archery 1\r\n", "trainlist01.txt:1: 'Archery 1' is not"),
        ("trainlist01", "../Archery/v.avi 1\r\n", "trainlist01.txt:1: '../Archery/v.avi' leads out of"),
        ("trainlist01", "Archery/../../v.avi 1\r\n", "trainlist01.txt:1: .* leads out of"),
        ("trainlist01", "/etc/v.avi 1\r\n", "trainlist01.txt:1: '/etc/v.avi' leads out of"),
        ("trainlist01", "http://host/v.avi 1\r\n", "trainlist01.txt:1: 'http://host/v.avi' is not a file path"),
        ("trainlist01", "concat:a.avi|b.avi 1\r\n", "trainlist01.txt:1: .* is not a file path"),
        ("trainlist01", "A\0r\0c\0", "trainlist01.txt:1: NUL bytes"),
        ("trainlist01", "x" * 30000, "trainlist01.txt:1: a line of 30,000 characters"),
        ("trainlist01", "\r\n", "trainlist01.txt' holds no row"),
        ("testlist01", TEST + TRAIN, "testlist01.txt:3: .* is in the train list too .*trainlist01.txt:1"),
        ("classInd", "1 Archery\r\n3 HandstandPushups\r\n", "classInd.txt:2: class number 3 where 2 must follow"),
        ("classInd", "0 Archery\r\n", "classInd.txt:1: class number 0 where 1 must follow"),
        ("classInd", "1 Archery\r\n2 Archery\r\n", "classInd.txt:2: class 'Archery' has number 1 already"),
        ("classInd", "Archery\r\n", "classInd.txt:1: 'Archery' is not `number class`"),
    ],
)
def test_malformed_ucf101_lists_name_the_line(file: str, text: str, message: str, tmp_path: Path) -> None:
    small_ucf101(tmp_path)
    (tmp_path / f"lists/{file}.txt").write_bytes(text.encode())

    def read() -> None:
        classes = ucf101.read_classes(tmp_path / "lists/classInd.txt")
        names = ("trainlist01.txt", "testlist01.txt")
        refuse_shared(*(ucf101.read_list(tmp_path / "lists" / name, classes, tmp_path / "videos") for name in names))

    with pytest.raises(InputError, match=message):
        read()


@pytest.mark.slow
def test_ucf101_refusals_are_one_line_and_exit_code_2(tmp_path: Path) -> None:
    small_ucf101(tmp_path, train="Archery/v\udcff_g01.avi 7\r\n")
    assert "trainlist01.txt:1: class number 7 is not in 1..2" in refused(run_ucf101(tmp_path))
    assert "--splits: invalid choice: 4" in program("ucf101", "--lists", "x", "--splits", "4").stderr
    (tmp_path / "lists/testlist01.txt").unlink()
    (tmp_path / "lists/trainlist01.txt").write_bytes(TRAIN.encode())
    assert "cannot read the list" in refused(run_ucf101(tmp_path))
    shutil.rmtree(tmp_path / "videos")
    (tmp_path / "lists/testlist01.txt").write_bytes(TEST.encode())
    assert "--videos" in refused(run_ucf101(tmp_path))


def test_repeated_rows_are_taken_once_and_said() -> None:
    rows = [Entry("a.avi", "x", "l:1"), Entry("b.avi", "x", "l:2"), Entry("a.avi", "x", "l:3")]
    assert unique(rows) == (rows[:2], "1 rows are written twice and were taken once, e.g. l:3 repeats l:1")
    with pytest.raises(InputError, match="l:4: 'a.avi' has class 'y' here and 'x' at l:1"):
        unique([*rows, Entry("a.avi", "y", "l:4")])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.avi 1 \nb.avi 3 \n", "climb_test_split1.txt:2: flag '3' is not 0"),
        ("a.avi \nb.avi 2 \n", "climb_test_split1.txt:1: 'a.avi' is not `video.avi flag`"),
        ("a.avi 1 \nrun/b.avi 2 \n", "climb_test_split1.txt:2: 'run/b.avi' names a folder"),
        ("a.avi 1 \nb.avi 0 \n", "has 1 train and 0 test rows"),
    ],
)
def test_malformed_hmdb51_lists_name_the_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "climb_test_split1.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        hmdb51.read_list(path, "climb", tmp_path)


def test_hmdb51_lists_must_be_complete(tmp_path: Path) -> None:
    for name in ("climb_test_split1", "run_test_split1", "climb_test_split2"):
        (tmp_path / f"{name}.txt").write_text("a.avi 1\nb.avi 2\n")
    with pytest.raises(InputError, match="run_test_split2.txt' is missing"):
        hmdb51.find_lists(tmp_path, (1, 2))
    with pytest.raises(InputError, match="has lists of 2 classes, HMDB51 has 51"):
        hmdb51.find_lists(tmp_path, (1,))
    with pytest.raises(InputError, match="is not a folder"):
        hmdb51.find_lists(tmp_path / "nowhere", (1,))


def test_help_shows_commands_first(capsys: pytest.CaptureFixture[str]) -> None:
    mains: dict[str, Callable[..., None]] = {"ucf101": ucf101.main, "hmdb51": hmdb51.main}
    for name, main in mains.items():
        with pytest.raises(SystemExit):
            main(["--help"])
        assert f"\n\npython data_prep/{name}.py " in capsys.readouterr().out[:200]


def test_our_own_tables_pass_through_lists(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    table = tmp_path / "all.csv"
    table.write_text('label,path\r\n"walk, fast",a.mp4\r\n')
    assert lists.read_list(table, tmp_path) == [Entry("a.mp4", "walk, fast", f"{table}:2")]
    table.write_text("label,path\nwalk,sub/../../a.mp4\n")
    with pytest.raises(InputError, match="all.csv:2: .* leads out of"):
        lists.read_list(table, tmp_path)
