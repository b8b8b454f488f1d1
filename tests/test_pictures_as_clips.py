"""A picture file is read as a video of one frame, with the pixels that a viewer shows; anything else is refused."""

from __future__ import annotations

import io
import os
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from sce_video.data import manifest
from sce_video.data.crops import Box, RandomResized
from sce_video.data.dataset import ClipDataset
from sce_video.data.decode import DecodeError, open_video
from sce_video.errors import InputError

RNG = np.random.default_rng(0)


def smooth(height: int = 40, width: int = 56, channels: int = 3) -> np.ndarray:
    """A picture uint8 [height, width, channels] whose corners all differ."""
    coarse = RNG.integers(0, 255, (5, 7, channels)).astype(np.uint8)
    scaled = [Image.fromarray(coarse[..., c]).resize((width, height), Image.Resampling.BILINEAR) for c in range(channels)]
    return np.stack([np.array(plane) for plane in scaled], axis=-1)


def read(path: Path) -> np.ndarray:
    with open_video(str(path)) as video:
        assert (video.num_frames, video.height, video.width) == (1, *video.read([0]).shape[1:3])
        return video.read([0])[0].numpy()


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.webp", "a.WebP"])
def test_lossless_pictures_are_exact(name: str, tmp_path: Path) -> None:
    pixels = smooth()
    Image.fromarray(pixels).save(tmp_path / name, name.split(".")[1].lower(), lossless=True)
    assert (read(tmp_path / name) == pixels).all()


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG"])
def test_jpeg_is_what_pillow_decodes(name: str, tmp_path: Path) -> None:
    Image.fromarray(smooth()).save(tmp_path / name, "jpeg")
    assert (read(tmp_path / name) == np.array(Image.open(tmp_path / name))).all()


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_exif_orientation_is_applied(turn: int, kind: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    path = tmp_path / f"a.{kind}"
    Image.fromarray(smooth()).save(path, kind, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    assert (read(path) == np.array(expected)).all()


def test_modes_become_rgb_as_a_viewer_shows_them(tmp_path: Path) -> None:
    gray = smooth(channels=1)[..., 0]
    Image.fromarray(gray).save(tmp_path / "gray.png")
    assert (read(tmp_path / "gray.png") == gray[..., None].repeat(3, axis=2)).all()

    palette = Image.fromarray(smooth()).quantize(16)
    palette.save(tmp_path / "palette.png")
    assert (read(tmp_path / "palette.png") == np.array(palette.convert("RGB"))).all()

    Image.fromarray(gray > 100).save(tmp_path / "bits.png")
    assert (read(tmp_path / "bits.png")[..., 0] == np.where(gray > 100, 255, 0)).all()


def test_transparent_pixels_lie_on_white(tmp_path: Path) -> None:
    rgba = smooth(channels=4)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    share = rgba[..., 3:] / 255
    assert np.abs(read(tmp_path / "a.png") - (rgba[..., :3] * share + 255 * (1 - share))).max() <= 1
    palette = Image.new("P", (4, 4))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "key.png", transparency=0)
    assert (read(tmp_path / "key.png")[0, :2] == [[255, 255, 255], [40, 50, 60]]).all()


def test_sixteen_bit_greyscale_is_cut_to_its_high_byte(tmp_path: Path) -> None:
    values = RNG.integers(0, 65536, (9, 11)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert (read(tmp_path / "a.png") == (values >> 8)[..., None]).all()


def test_cmyk_is_converted_by_the_plain_formula(tmp_path: Path) -> None:
    rgb = smooth()
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    assert np.abs(read(tmp_path / "a.jpg").astype(int) - rgb).mean() < 4


def png_header(width: int, height: int) -> bytes:
    """A PNG file that declares so many pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IDAT", body)


@pytest.mark.parametrize("side", [8_200, 12_000, 60_000])
def test_a_picture_that_would_fill_the_memory_is_refused_from_its_header(side: int, tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(side, side))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DecodeError, match=r"bomb\.png: .*pixels"):
        open_video(str(tmp_path / "bomb.png"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def contents() -> dict[str, tuple[bytes, str]]:
    good = io.BytesIO()
    Image.fromarray(RNG.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(good, "jpeg")
    frames = [Image.fromarray(smooth()) for _ in range(2)]
    moving = io.BytesIO()
    frames[0].save(moving, "webp", save_all=True, append_images=frames[1:])
    animated = io.BytesIO()
    frames[0].save(animated, "png", save_all=True, append_images=frames[1:])
    gif = io.BytesIO()
    frames[0].save(gif, "gif")
    return {
        "cut.jpg": (good.getvalue()[: len(good.getvalue()) // 2], "truncated"),
        "empty.jpg": (b"", "cannot identify"),
        "text.png": (b"no picture", "cannot identify"),
        "moving.webp": (moving.getvalue(), "an animation"),
        "moving.png": (animated.getvalue(), "an animation"),
        "really_a_gif.png": (gif.getvalue(), "cannot identify"),
    }


@pytest.mark.parametrize("name", ["cut.jpg", "empty.jpg", "text.png", "moving.webp", "moving.png", "really_a_gif.png"])
def test_what_is_no_whole_picture_is_refused(name: str, tmp_path: Path) -> None:
    content, reason = contents()[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DecodeError, match=f"{name}.*{reason}"):
        read(tmp_path / name)


def test_pipes_and_missing_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for name in ("pipe.jpg", "missing.jpg"):
        with pytest.raises(DecodeError, match=name):
            open_video(str(tmp_path / name))


def test_reduced_jpeg_decoding_gives_the_same_crops_nearly_and_never_too_small(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(smooth(403, 603)).save(tmp_path / "a.jpg", quality=95, exif=exif)
    boxes = [Box(41, 77, 180, 190), Box(200, 100, 300, 300)]
    with open_video(str(tmp_path / "a.jpg")) as video:
        exact = video.read_clips([torch.tensor([0])] * 2, boxes)
        reduced = video.read_clips([torch.tensor([0])] * 2, boxes, no_smaller_than=[40, 64])
        untouched = video.read_clips([torch.tensor([0])] * 2, boxes, no_smaller_than=[100, 64])
    assert [tuple(clip.shape) for clip in exact] == [(1, 180, 190, 3), (1, 300, 300, 3)]
    assert all((a == b).all() for a, b in zip(exact, untouched, strict=True))
    for whole, small, size in zip(exact, reduced, (40, 64), strict=True):
        assert size <= min(small.shape[1:3]) < min(whole.shape[1:3]) / 2
        planes = [clip[0].permute(2, 0, 1)[None].float() for clip in (whole, small)]
        same = [torch.nn.functional.interpolate(plane, (size, size), mode="bilinear", antialias=True) for plane in planes]
        assert (same[0] - same[1]).abs().mean() < 3


def dataset(paths: list[Path], **options: object) -> ClipDataset:
    videos = [manifest.Video(str(path), None) for path in paths]
    box = RandomResized(area=(0.2, 1.0), ratio=(0.75, 4 / 3))
    return ClipDataset(videos, num_frames=1, clip_seconds=0, draw_boxes=[box, box], seed=0, **options)  # type: ignore[arg-type]


def test_views_of_an_image_are_crops_of_its_one_frame(tmp_path: Path) -> None:
    pixels = smooth()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    sample = dataset([tmp_path / "a.png"])[0, 0]
    assert sample.differences == [False, False]
    for clip in sample.clips:
        _, height, width, _ = clip.shape
        inside = [
            (pixels[top : top + height, left : left + width] == clip[0].numpy()).all()
            for top in range(41 - height)
            for left in range(57 - width)
        ]
        assert any(inside)


def test_workers_reduce_large_jpegs_only_where_they_resize_too(tmp_path: Path) -> None:
    Image.fromarray(smooth(400, 600)).save(tmp_path / "a.jpg", quality=95)
    exact, small = dataset([tmp_path / "a.jpg"])[0, 0], dataset([tmp_path / "a.jpg"], resize_to=[32, 32])[0, 0]
    assert min(exact.clips[0].shape[1:3]) > 64
    assert [tuple(clip.shape) for clip in small.clips] == [(1, 32, 32, 3)] * 2


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("cat/1.jpg", "cat/2.JPEG", "dog/1.png", "dog/2.webp", "dog/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def test_a_folder_of_images_is_a_list_of_them_with_classes(tree: Path) -> None:
    found = manifest.read(tree)
    assert [(Path(video.path).name, video.label) for video in found] == [
        *(("1.jpg", "cat"), ("2.JPEG", "cat")),
        *(("1.png", "dog"), ("2.webp", "dog")),
    ]
    (tree / "loose.jpg").write_bytes(b"x")
    assert {video.label for video in manifest.read(tree)} == {None}


def test_pictures_beside_videos_are_passed_over_and_frames_folders_stay_videos(tree: Path) -> None:
    (tree / "a.frames").mkdir()
    (tree / "a.frames/000000.jpg").write_bytes(b"x")
    assert [Path(video.path).name for video in manifest.read(tree)] == ["a.frames"]


def test_lists_name_images_as_they_name_videos(tree: Path) -> None:
    (tree / "list.txt").write_text("cat/1.jpg 0\ndog/2.webp 1\n")
    (tree / "list.csv").write_text("path,label\ncat/1.jpg,cat\n")
    assert [video.label for video in manifest.read(tree / "list.txt")] == ["0", "1"]
    assert manifest.read(tree / "list.csv") == [manifest.Video(str(tree / "cat/1.jpg"), "cat", 2)]
    assert manifest.read(tree / "cat/1.jpg") == [manifest.Video(str(tree / "cat/1.jpg"), None)]


def test_images_among_videos_and_videos_among_images_are_refused(tree: Path) -> None:
    image, video = (manifest.Video(f"/d/{name}", None) for name in ("a.JPG", "a.mp4"))
    with pytest.raises(InputError, match=r"a\.JPG is an image, .*clips of 2\.56 s.*sce_r50_imagenet"):
        manifest.check_kind([video, image], 2.56)
    with pytest.raises(InputError, match=r"a\.mp4 is no image, .*single images.*recipe=sce_r3d18"):
        manifest.check_kind([image, video], 0)
