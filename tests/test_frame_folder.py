"""Folders and zips of pictures are read like videos; damaged, incomplete and hostile ones are rejected."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import zipfile
from fractions import Fraction
from pathlib import Path

import lists
import numpy as np
import pytest
import torch
from annotations.entries import Entry
from annotations.file_search import Matcher, find_videos
from annotations.video_statistics import measure
from conftest import TINY_RECIPE, numbered_frames, records, run_tool
from PIL import Image
from test_shrink import shrink

from sce_video.data import manifest
from sce_video.data.decode import DecodeError, open_video
from sce_video.data.readers.media import Limits


def picture(frame: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", **{"quality": 95, **options})
    return buffer.getvalue()


def decoded(content: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(content)).convert("RGB"))


def about(frames: np.ndarray, **more: object) -> bytes:
    return json.dumps(
        {"fps": "30000/1001", "num_frames": len(frames), "height": frames.shape[1], "width": frames.shape[2], **more}
    ).encode()


def folder_of(path: Path, frames: np.ndarray, name: str = "{:06d}.jpg", first: int = 0, json: bytes | None = None) -> Path:
    path.mkdir(parents=True)
    for number, frame in enumerate(frames, start=first):
        (path / name.format(number)).write_bytes(picture(frame))
    if json is not None:
        (path / "video.json").write_bytes(json)
    return path


def zip_of(folder: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(f"{folder}.zip", "w", compression) as packed:
        for path in sorted(folder.iterdir()):
            packed.write(path, path.name)
    return Path(f"{folder}.zip")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    frames = numbered_frames(12)
    return folder_of(tmp_path / "clip.frames", frames, json=about(frames))


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("decoder", ["auto", "decord"])
def test_a_folder_and_a_zip_of_it_keep_the_readers_contract(packed: bool, decoder: str, clip: Path) -> None:
    expected = np.stack([decoded(path.read_bytes()) for path in sorted(clip.glob("*.jpg"))])
    with open_video(str(zip_of(clip) if packed else clip), decoder) as video:
        assert (video.decoder, video.num_frames, video.height, video.width) == ("jpeg", 12, 48, 64)
        assert video.fps == Fraction(30000, 1001)
        for indices in ([0], [11, 3, 3, 0], list(range(12))):
            frames = video.read(indices)
            assert frames.dtype == torch.uint8
            assert np.array_equal(frames.numpy(), expected[indices])
        with pytest.raises(IndexError, match="has 12 frames"):
            video.read([12])
        small = video.read([5], max_short_side=24)
        scaled = torch.nn.functional.interpolate(
            torch.from_numpy(expected[5]).permute(2, 0, 1)[None].float(), size=(24, 32), mode="bilinear"
        )
        assert torch.equal(small[0].permute(2, 0, 1), scaled[0].round().to(torch.uint8))


@pytest.mark.parametrize(("name", "first"), [("img_{:05d}.jpg", 1), ("{:d}.JPEG", 0), ("frame{:d}.jpg", 1)])
def test_folders_of_others_are_read_at_the_rate_written_above_them(name: str, first: int, tmp_path: Path) -> None:
    frames = numbered_frames(11)
    clip = folder_of(tmp_path / "rawframes/archery/v_1", frames, name, first)
    (clip / f"flow_x_{1:05d}.jpg").write_bytes(picture(frames[0]))
    (clip / "notes.txt").write_text("not a picture")
    with pytest.raises(DecodeError, match=r'pictures have no rate; write \{"fps": "30"\}'):
        open_video(str(clip))
    (tmp_path / "rawframes/video.json").write_text('{"fps": 25}')
    with open_video(str(clip)) as video:
        assert (video.num_frames, video.fps, video.height) == (11, 25, 48)
        assert abs(video.read([10]).float().mean() - frames[10].mean()) < 2  # in the order of numbers, not of names
    (clip / "video.json").write_text('{"fps": "24000/1001"}')
    with open_video(str(zip_of(clip).rename(tmp_path / "one.frames.zip"))) as video:
        assert (video.num_frames, video.fps) == (11, Fraction(24000, 1001))


def test_what_is_incomplete_or_damaged_is_said(clip: Path, tmp_path: Path) -> None:
    frames = numbered_frames(6)

    def other(name: str, **options: object) -> Path:
        return folder_of(tmp_path / name, frames, **{"json": b'{"fps": 30}', **options})  # type: ignore[arg-type]

    (other("hole") / "000003.jpg").unlink()
    (other("two") / "x1.jpg").write_bytes(picture(frames[0]))
    (other("double") / "0.jpg").write_bytes(picture(frames[0]))
    other("late", first=2)
    (tmp_path / "empty").mkdir()
    for name, content in (
        ("no_json", b"{"),
        ("list", b"[1]"),
        ("rate", b'{"fps": "0"}'),
        ("word", b'{"fps": "fast"}'),
        ("power", b'{"fps": "1e999999999"}'),
        ("infinite", b'{"fps": 1e999999999}'),
        ("negative", b'{"fps": -30}'),
        ("count", about(frames, num_frames=-1)),
        ("side", about(frames, height="48")),
        ("many", about(frames, num_frames=3_000_000)),
        ("large", about(frames, height=10_000, width=10_000)),
    ):
        other(name, json=content)
    for name, reason in (
        ("hole", "no picture number 3: frames are missing"),
        ("two", "more than one series lie in it, e.g. '000000.jpg', 'x1.jpg'|'x1.jpg'"),
        ("double", "have the same number"),
        ("late", "no picture number 1"),
        ("empty", "no numbered JPEG pictures"),
        ("no_json", "no JSON"),
        ("list", "must hold an object"),
        ("rate", "fps is '0', it must be a number above 0"),
        ("word", "fps is 'fast'"),
        ("power", "fps is '1e999999999', it must be a number above 0"),
        ("infinite", "fps is inf"),
        ("negative", "fps is -30"),
        ("count", "num_frames in its video.json is -1"),
        ("side", "height in its video.json is '48'"),
        ("many", "more than the 2000000 frames"),
        ("large", "10000x10000 pixels"),
    ):
        with pytest.raises(DecodeError, match=reason):
            open_video(str(tmp_path / name))

    (clip / "000003.jpg").write_bytes((clip / "000003.jpg").read_bytes()[:200])
    (clip / "000004.jpg").unlink()
    (clip / "000005.jpg").write_bytes(picture(frames[0, :40]))
    (clip / "000006.jpg").unlink()
    os.mkfifo(clip / "000006.jpg")
    buffer = io.BytesIO()
    Image.fromarray(frames[0]).save(buffer, "PNG")
    (clip / "000007.jpg").write_bytes(buffer.getvalue())
    with open_video(str(clip)) as video:
        video.read([0, 1, 2])
        for index, reason in (
            (3, "000003.jpg: "),
            (4, "000004.jpg: No such file"),
            (5, "of another size"),
            (6, "not a regular file"),
            (7, "000007.jpg: cannot identify"),
        ):
            with pytest.raises(DecodeError, match=reason):
                video.read([index])


def test_hostile_zips_are_refused_in_bounded_memory(clip: Path, tmp_path: Path) -> None:
    packed = zip_of(clip)
    compressed = tmp_path / "bomb.frames.zip"
    with zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("video.json", about(numbered_frames(1)))
        bomb.writestr("000000.jpg", bytes(80 << 20))
    stored = tmp_path / "large.frames.zip"
    with zipfile.ZipFile(stored, "w") as large:
        large.writestr("video.json", b'{"fps": 30}')
        large.writestr("000000.jpg", bytes((64 << 20) + 1))
    many = tmp_path / "many.frames.zip"
    many.write_bytes(b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, 65_535, 65_535, 1 << 31, 0, 0))
    damaged = bytearray(packed.read_bytes())
    damaged[damaged.find(b"000002.jpg") + 200] ^= 0xFF
    (tmp_path / "flipped.frames.zip").write_bytes(damaged)
    (tmp_path / "cut.frames.zip").write_bytes(packed.read_bytes()[:-30])
    (tmp_path / "text.frames.zip").write_text("#EXTM3U\n" * 9)
    os.mkfifo(tmp_path / "pipe.frames.zip")
    for name, reason in (
        ("bomb", "compressed or encrypted; pack pictures with"),
        ("large", "more than the 67108864 allowed"),
        ("many", "a zip file holds 65534 pictures at most"),
        ("cut", "does not end as a .frames.zip must"),
        ("text", "does not end as a .frames.zip must"),
        ("pipe", "not a regular file"),
        ("missing", "No such file"),
    ):
        with pytest.raises(DecodeError, match=reason):
            open_video(str(tmp_path / f"{name}.frames.zip"))
    with open_video(str(tmp_path / "flipped.frames.zip")) as video:
        video.read([1, 3])
        with pytest.raises(DecodeError, match="Bad CRC-32"):
            video.read([2])


def test_names_in_a_zip_lead_nowhere(tmp_path: Path) -> None:
    frames = numbered_frames(2)
    path = tmp_path / "a.frames.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("video.json", b'{"fps": 30}')
        for name in ("../000000.jpg", "/tmp/000001.jpg", "sub/000000.jpg"):
            packed.writestr(name, picture(frames[0]))
    with pytest.raises(DecodeError, match="no numbered JPEG pictures"):
        open_video(str(path))
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_picture_that_claims_to_be_huge_is_not_decoded(clip: Path) -> None:
    content = bytearray((clip / "000002.jpg").read_bytes())
    start = content.index(b"\xff\xc0")
    content[start + 5 : start + 9] = struct.pack(">2H", 9000, 9000)
    (clip / "000002.jpg").write_bytes(content)
    with open_video(str(clip)) as video, pytest.raises(DecodeError, match="9000x9000 pixels are more"):
        video.read([2])
    with pytest.raises(DecodeError, match="64x48 pixels are more than the 1000 allowed"):
        open_video(str(clip), limits=Limits(frame_pixels=1000))


def test_lists_and_folders_name_pictures_like_videos(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "set/a").mkdir(parents=True)
    (tmp_path / "set/b").mkdir()
    shutil.move(zip_of(clip), tmp_path / "set/b/two.frames.zip")
    shutil.move(clip, tmp_path / "set/a/one.frames")
    (tmp_path / "set/b/other.zip").touch()
    found = manifest.read(tmp_path / "set")
    assert [(os.path.relpath(video.path, tmp_path), video.label) for video in found] == [
        ("set/a/one.frames", "a"),
        ("set/b/two.frames.zip", "b"),
    ]
    (tmp_path / "list.txt").write_text("set/a/one.frames 3\nset/b/two.frames.zip\n")
    assert [video.label for video in manifest.read(tmp_path / "list.txt")] == ["3", None]
    (tmp_path / "list.csv").write_text("path\nset/a\n")
    assert manifest.read(tmp_path / "list.csv")[0].path == str(tmp_path / "set/a")


@pytest.mark.slow
def test_pictures_are_pretrained_on_like_videos(videos: Path, tmp_path: Path) -> None:
    """shrink --form jpeg-zip, and training on its list: the same rows, frames that differ by JPEG's rounding."""
    result = shrink(videos / "train.csv", "--out", tmp_path / "pictures", "--form", "jpeg-zip", "--jpeg-quality", "100")
    assert result.returncode == 0, result.stderr
    pairs = zip(manifest.read(videos / "train.csv"), manifest.read(tmp_path / "pictures/manifest.csv"), strict=True)
    for source, copy in pairs:
        assert source.label == copy.label
        with open_video(source.path, "pyav") as one, open_video(copy.path) as two:
            assert (one.num_frames, one.fps) == (two.num_frames, two.fps)
            difference = one.read([0, 30, 59]).float() - two.read([0, 30, 59]).float()
        assert difference.abs().mean() < 2  # 0.6 here, 7 and more for the next frame
    options = [*TINY_RECIPE, "optim.epochs=1", f"data.train={tmp_path}/pictures/manifest.csv", f"out={tmp_path}/run"]
    run = run_tool("pretrain", *options, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert len([record for record in records(tmp_path / "run") if "train/loss" in record]) == 3
    assert not (tmp_path / "run/skipped_videos.csv").exists()


def test_lists_of_data_sets_name_pictures(tmp_path: Path) -> None:
    """mmaction2's rows `folder frames label`, copies by shrink under a list's names, and --probe."""
    frames = numbered_frames(9)
    for name in ("rawframes/a/one", "rawframes/b/two"):
        folder_of(tmp_path / name, frames, "img_{:05d}.jpg", 1)
    (tmp_path / "train.txt").write_text("a/one 9 0\nb/two 9 1\n")
    assert [(entry.name, entry.label) for entry in lists.read_list(tmp_path / "train.txt", tmp_path / "rawframes")] == [
        ("a/one", "0"),
        ("b/two", "1"),
    ]
    arguments = ["--lists", str(tmp_path / "train.txt"), "--videos", str(tmp_path / "rawframes")]
    lists.main([*arguments, "--out", str(tmp_path / "out")])
    read = manifest.read(tmp_path / "out/train.csv")
    assert [video.label for video in read] == ["0", "1"]
    assert "have no rate" in (tmp_path / "out/summary.json").read_text()
    (tmp_path / "rawframes/video.json").write_text('{"fps": 30}')
    measured = measure(read, 2)
    assert (measured["unreadable"], measured["resolutions"], measured["seconds"]) == (0, {"64x48": 2}, 0.6)

    folder_of(tmp_path / "copies/A/v_one.frames", frames, json=about(frames))
    shutil.move(zip_of(tmp_path / "copies/A/v_one.frames"), tmp_path / "copies/A/v_two.frames.zip")
    (tmp_path / "copies/list.frames").touch()
    found = find_videos(tmp_path / "copies")
    assert found.names == ["A/v_one.frames", "A/v_two.frames.zip"], "a file cannot be a folder of pictures"
    matched = Matcher(found).match([Entry("B/v_one.avi", "x", "l:1"), Entry("v_two.mp4", "y", "l:2")])
    assert [os.path.basename(video.path) for video in matched.present] == ["v_one.frames", "v_two.frames.zip"]
