"""Kinetics: the published tables, both styles of file names, what is present, missing and extra, splits kept apart."""

from __future__ import annotations

import json
from pathlib import Path

import kinetics
import pytest
from annotations.kinetics_files import ClipFiles
from annotations.kinetics_tables import Clip, read_list, refuse_shared, take_once
from conftest import SHARED
from test_data_prep_lists import program, real, refused

from sce_video.data import manifest
from sce_video.errors import InputError

TABLES = SHARED / "annotations/kinetics"
HEADER = "label,youtube_id,time_start,time_end,split,is_cc\n"
ROWS = (
    '"arm wrestling",-bc_efghijk,27,37,train,0\n'
    "massaging person's head,_bcdefghijk,0,10,train,0\n"
    '"passing American football (in game)",A_000027_00,27,37,validate,0\n'
)


@real
@pytest.mark.parametrize(
    ("path", "rows", "classes", "split"),
    [
        (TABLES / "kinetics-400_val.csv", 19906, 400, "val"),
        (TABLES / "kinetics-400_test.csv", 38685, 0, "test"),
        (TABLES / "kinetics-600_val_first400.csv", 399, 8, "val"),
        (TABLES / "tiny_train.csv", 400, 400, "train"),
        (TABLES / "tiny_val.csv", 400, 400, "val"),
        (SHARED / "clips/lists/k400.csv", 82, 11, "val"),
    ],
    ids=lambda value: value.stem if isinstance(value, Path) else None,
)
def test_real_tables(path: Path, rows: int, classes: int, split: str) -> None:
    clips = read_list(path)
    assert len(clips) == len({clip.youtube_id for clip in clips}) == rows
    assert len({clip.label for clip in clips} - {None}) == classes
    assert {clip.split for clip in clips} == {split}
    assert {clip.end - clip.start for clip in clips} == {10}


@real
def test_every_real_table_was_looked_at() -> None:
    assert len(list(TABLES.iterdir())) == 5


@real
def test_real_ids_begin_with_dashes_and_lists_stay_apart() -> None:
    clips = [
        clip for name in ("tiny_train", "kinetics-400_val", "kinetics-400_test") for clip in read_list(TABLES / f"{name}.csv")
    ]
    assert sum(clip.youtube_id[0] in "-_" for clip in clips) > 1000
    refuse_shared(clips)
    assert not list(kinetics.both_lists(clips))


@real
def test_program_on_the_shared_subset(tmp_path: Path) -> None:
    lists = (SHARED / "clips/lists/k400.csv", TABLES / "kinetics-400_test.csv")
    result = program("kinetics", "--lists", *lists, "--videos", SHARED / "clips/k400", "--out", tmp_path, "--probe", "2")
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    counts = {name: (part["listed"], part["present"]) for name, part in summary["lists"].items()}
    assert counts == {"val": (82, 82), "test": (38685, 0)}
    assert summary["notes"] == ["no video of test is here: test.csv is not written"]
    videos = manifest.read(tmp_path / "val.csv")
    assert len(videos) == 82
    assert all(Path(video.path).is_file() for video in videos)
    assert all(Path(video.path).parent.name == (video.label or "").replace(" ", "_") for video in videos)
    assert len(read_list(tmp_path / "missing.csv")) == len((tmp_path / "missing.txt").read_text().splitlines()) == 38685


@real
def test_half_a_download_says_what_is_missing_and_extra(tmp_path: Path) -> None:
    """The complete validation list of Kinetics-400, of which the subset has some; the subset's other files are extra."""
    arguments = ("--lists", TABLES / "kinetics-400_val.csv", "--videos", SHARED / "clips/k400", "--out", tmp_path)
    result = program("kinetics", *arguments)
    assert result.returncode == 0, result.stderr
    part = json.loads((tmp_path / "summary.json").read_text())["lists"]["val"]
    have = {clip.youtube_id for clip in read_list(SHARED / "clips/lists/k400.csv")}
    listed = {clip.youtube_id for clip in read_list(TABLES / "kinetics-400_val.csv")}
    assert part["present"] == len(have & listed)
    assert part["missing"] == 19906 - part["present"]
    if have - listed:
        assert f"{len(have - listed)} videos are in none of the lists" in result.stdout


def small(folder: Path, *names: str, rows: str = ROWS) -> Path:
    """A table `list.csv` and empty files below `videos`."""
    (folder / "list.csv").write_text(HEADER + rows)
    for name in names:
        path = folder / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def prepare(folder: Path, *arguments: str | Path) -> list[str]:
    """Run the program on `small`'s files; return its notes."""
    kinetics.main(
        [
            "--lists",
            str(folder / "list.csv"),
            "--videos",
            str(folder / "videos"),
            "--out",
            str(folder / "out"),
            *map(str, arguments),
        ]
    )
    notes: list[str] = json.loads((folder / "out/summary.json").read_text())["notes"]
    return notes


@pytest.mark.parametrize(
    "names",
    [
        ("-bc_efghijk_000027_000037.mp4", "_bcdefghijk.mkv", "A_000027_00.webm"),
        ("arm wrestling/-bc_efghijk.mp4", "massaging person's head/_bcdefghijk_000000_000010.mp4", "x/A_000027_00.mp4"),
        (
            "train/arm_wrestling/-bc_efghijk_000027_000037.MP4",
            "train/massaging_person's_head/_bcdefghijk.mp4",
            "val/passing_American_football_in_game/A_000027_00_000027_000037.mp4",
        ),
    ],
    ids=["flat", "class folders with blanks", "split and class folders with underscores"],
)
def test_names_and_layouts(names: tuple[str, ...], tmp_path: Path) -> None:
    assert not [note for note in prepare(small(tmp_path, *names)) if "classes have no" not in note]
    train, val = (manifest.read(tmp_path / f"out/{split}.csv") for split in ("train", "val"))
    assert [(video.path, video.label) for video in (*train, *val)] == [
        (str(tmp_path / "videos" / names[0]), "arm wrestling"),
        (str(tmp_path / "videos" / names[1]), "massaging person's head"),
        (str(tmp_path / "videos" / names[2]), "passing American football (in game)"),
    ]
    assert not (tmp_path / "out/missing.txt").exists()


def test_missing_extra_copies_and_misplaced_files_are_said(tmp_path: Path) -> None:
    small(
        tmp_path,
        "val/passing american football/-bc_efghijk_000027_000037.mp4",  # a train clip in the folder of val
        "train/arm wrestling/-bc_efghijk.mp4",
        "train/arm wrestling/_bcdefghijk.mp4",  # in the folder of another class
        "train/x/A_000027_00_000050_000060.mp4",  # other seconds
        "train/x/zzzzzzzzzzz.mp4",
        "train/x/holiday.mp4",
    )
    text = "\n".join(prepare(tmp_path))
    for sentence in (
        "1 files lie in the folder of another split than their list's, e.g. ",
        "1 files lie in the folder of another class than their list's",
        "1 files are further copies of a clip and were not taken",
        "1 files are other seconds of a listed video and were not taken",
        "1 videos are in none of the lists",
        "1 videos are not named as clips of Kinetics",
        "no video of val is here: val.csv is not written",
    ):
        assert sentence in text
    assert (tmp_path / "out/missing.txt").read_text() == "A_000027_00_000027_000037\n"
    assert read_list(tmp_path / "out/missing.csv")[0][:5] == read_list(tmp_path / "list.csv")[2][:5]


def test_a_copy_in_the_folder_of_the_clips_split_goes_first(tmp_path: Path) -> None:
    small(tmp_path, "train/-bc_efghijk.mp4", "val/-bc_efghijk.mp4", "val/A_000027_00.mp4", "train/A_000027_00.mp4")
    prepare(tmp_path)
    assert manifest.read(tmp_path / "out/train.csv")[0].path == str(tmp_path / "videos/train/-bc_efghijk.mp4")
    assert manifest.read(tmp_path / "out/val.csv")[0].path == str(tmp_path / "videos/val/A_000027_00.mp4")


def test_other_lists_are_left_out(tmp_path: Path) -> None:
    small(tmp_path, "-bc_efghijk.mp4", "_bcdefghijk.mp4", "A_000027_00.mp4")
    (tmp_path / "k400_val.csv").write_text(HEADER + "arm wrestling,-bc_efghijk,90,100,val,0\n")
    notes = prepare(tmp_path, "--without", tmp_path / "k400_val.csv")
    assert "1 clips were left out" in notes[0]
    assert [video.label for video in manifest.read(tmp_path / "out/train.csv")] == ["massaging person's head"]
    with pytest.raises(InputError, match="all 3 listed clips are of videos in .*list.csv: --without leaves none"):
        prepare(tmp_path, "--without", tmp_path / "list.csv")


def test_only_the_videos_of_given_ids_are_kept(tmp_path: Path) -> None:
    small(tmp_path, "-bc_efghijk.mp4", "_bcdefghijk.mp4", "A_000027_00.mp4")
    (tmp_path / "ids.txt").write_text("-bc_efghijk\r\nA_000027_00\r\nnotinalist1\r\n")
    notes = prepare(tmp_path, "--only", tmp_path / "ids.txt")
    assert "2 of 3 listed clips were kept (--only); 1 of 3 ids are in no list" in notes
    assert [video.label for video in manifest.read(tmp_path / "out/train.csv")] == ["arm wrestling"]
    (tmp_path / "ids.txt").write_text("-bc_efghijk\n\n-bc_efghijk_000027_000037.mp4\n")
    with pytest.raises(InputError, match="ids.txt:3: .* is no YouTube id"):
        prepare(tmp_path, "--only", tmp_path / "ids.txt")
    (tmp_path / "ids.txt").write_text("notinalist1\n")
    with pytest.raises(InputError, match="none of the 3 listed clips has one of the 1 ids"):
        prepare(tmp_path, "--only", tmp_path / "ids.txt")


def test_several_folders_and_one_inside_another(tmp_path: Path) -> None:
    small(tmp_path, "train/-bc_efghijk.mp4", "train/_bcdefghijk.mp4", "val/A_000027_00.mp4")
    assert not any("copies" in note for note in prepare(tmp_path, "--videos", tmp_path / "videos", tmp_path / "videos/val"))
    assert len(manifest.read(tmp_path / "out/val.csv")) == 1


def test_nothing_found_says_what_is_there(tmp_path: Path) -> None:
    small(tmp_path, "video_1.mp4")
    message = refused(
        program("kinetics", "--lists", tmp_path / "list.csv", "--videos", tmp_path / "videos", "--out", tmp_path / "out")
    )
    assert "none of 3 listed clips" in message
    assert "video_1.mp4" in message
    assert "-bc_efghijk_000027_000037.mp4 or -bc_efghijk.mp4" in message


def test_one_file_for_two_clips_is_refused(tmp_path: Path) -> None:
    small(tmp_path, "-bc_efghijk.mp4", rows=ROWS + '"arm wrestling",-bc_efghijk,50,60,train,0\n')
    with pytest.raises(InputError, match="list.csv:5: .*-bc_efghijk.mp4' could be this clip or that of .*list.csv:2"):
        prepare(tmp_path)
    small(tmp_path, "-bc_efghijk_000050_000060.mp4", rows=ROWS + '"arm wrestling",-bc_efghijk,50,60,train,0\n')
    prepare(tmp_path)
    assert len(manifest.read(tmp_path / "out/train.csv")) == 2


def test_train_and_validation_are_kept_apart(tmp_path: Path) -> None:
    small(tmp_path, "-bc_efghijk.mp4", rows=ROWS + '"arm wrestling",-bc_efghijk,27,37,val,0\n')
    with pytest.raises(InputError, match="list.csv:5: -bc_efghijk is val here and train at .*list.csv:2"):
        prepare(tmp_path)
    names = ("-bc_efghijk_000027_000037.mp4", "-bc_efghijk_000050_000060.mp4")
    (tmp_path / "videos/-bc_efghijk.mp4").unlink()
    small(tmp_path, *names, rows=ROWS + '"arm wrestling",-bc_efghijk,50,60,val,0\n')
    assert "1 videos are in two splits with different seconds, e.g. -bc_efghijk" in "\n".join(prepare(tmp_path))


def test_repeated_rows() -> None:
    clip = Clip("-bc_efghijk", 27, 37, "train", "a", "l:2")
    assert take_once([clip, clip._replace(where="l:3")]) == (
        [clip],
        ["1 rows are written twice and were taken once, e.g. l:3 repeats l:2"],
    )
    with pytest.raises(InputError, match="l:3: -bc_efghijk is 'b' here and 'a' at l:2"):
        take_once([clip, clip._replace(label="b", where="l:3")])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("youtube_id,time_start,time_end\nx,1,2\n", r"x.csv:1: the header is .*, it must name split"),
        ("-bc_efghijk,27,37,train\n", "x.csv:1: .* must name youtube_id, time_start, time_end, split"),
        (HEADER + ROWS + "a,-bc_efghijk,27,37,train\n", "x.csv:5: 5 columns where the header has 6"),
        (HEADER + "a, b,-bc_efghijk,27,37,train,0\n", "x.csv:2: 7 columns where the header has 6"),
        (HEADER + "\na,#NAME?,27,37,train,0\n", "x.csv:3: youtube_id '#NAME\\?' is not 11"),
        (HEADER + "a,../../etc/x,27,37,train,0\n", "x.csv:2: youtube_id '../../etc/x' is not 11"),
        (HEADER + "a,../etc/pass,27,37,train,0\n", "x.csv:2: youtube_id '../etc/pass' is not 11"),
        (HEADER + "a,-bc_efghijk,27.5,37,train,0\n", "x.csv:2: time_start '27.5' is not a whole number"),
        (HEADER + "a,-bc_efghijk,-1,37,train,0\n", "x.csv:2: time_start '-1' is not"),
        (HEADER + "a,-bc_efghijk,37,27,train,0\n", "x.csv:2: the clip ends at 27 s"),
        (HEADER + "a,-bc_efghijk,27,37,trian,0\n", "x.csv:2: split 'trian' is not one of train"),
        (HEADER + '"a,-bc_efghijk,27,37,train,0\n' + ROWS, "x.csv:2: .* the row that begins here is no CSV"),
        (HEADER + 'a,-bc_efghijk,27,37,train,"0"1\n', "x.csv:2: .* the row that begins here is no CSV"),
        (HEADER + "a\0,-bc_efghijk,27,37,train,0\n", "x.csv:2: .*NUL"),
        (HEADER, "x.csv' holds no row"),
        ("", "x.csv' is empty"),
    ],
)
def test_malformed_tables_name_the_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_list(tmp_path / "x.csv")


def test_tables_as_others_write_them(tmp_path: Path) -> None:
    text = '\ufeffsplit,youtube_id,label,time_end,time_start\r\nTest,-bc_efghijk,,37.0,27.0\r\n\r\nval,_bcdefghijk,"a, b",9,0\r\n'
    (tmp_path / "x.csv").write_bytes(text.encode())
    assert [clip[:5] for clip in read_list(tmp_path / "x.csv")] == [
        ("-bc_efghijk", 27, 37, "test", None),
        ("_bcdefghijk", 0, 9, "val", "a, b"),
    ]
    with pytest.raises(InputError, match="cannot read the list"):
        read_list(tmp_path / "nowhere.csv")
    assert ClipFiles([str(tmp_path)]).find(read_list(tmp_path / "x.csv")[0]) is None
