"""CIFAR's and STL-10's archives become folders of PNG pictures, pixel by pixel."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import images
import numpy as np
import pytest
from PIL import Image

from sce_video.data import manifest
from sce_video.errors import InputError


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as packed:
        for name, content in files.items():
            item = tarfile.TarInfo(f"folder/{name}")
            item.size = len(content)
            packed.addfile(item, io.BytesIO(content))
    return path


def pixels(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(side).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize(("name", "ahead"), [("data_batch_1.bin", b""), ("train.bin", b"\x07")])
def test_cifar_pictures_and_classes_are_its_rows(name: str, ahead: bytes, tmp_path: Path) -> None:
    found = pixels(3, 32)
    rows = b"".join(ahead + bytes([i % 2]) + picture.transpose(2, 0, 1).tobytes() for i, picture in enumerate(found))
    names = "batches.meta.txt" if not ahead else "fine_label_names.txt"
    packed = archive(tmp_path / "a.tar.gz", {name: rows, names: b"cat\ndog\n"})
    assert images.unpack(packed, tmp_path / "out") == {"train": 3}
    listed = manifest.read(tmp_path / "out/train")
    assert sorted((Path(row.path).name, row.label) for row in listed) == [
        *(("000000.png", "cat"), ("000001.png", "dog"), ("000002.png", "cat"))
    ]
    for row in listed:
        assert (np.array(Image.open(row.path)) == found[int(Path(row.path).stem)]).all()


def test_stl10_is_stored_by_columns_and_has_pictures_without_a_class(tmp_path: Path) -> None:
    found = pixels(2, 96)
    rows = b"".join(picture.transpose(2, 1, 0).tobytes() for picture in found)
    files = {"train_X.bin": rows, "train_y.bin": bytes([2, 1]), "unlabeled_X.bin": rows, "class_names.txt": b"bird\ncar\n"}
    assert images.unpack(archive(tmp_path / "a.tar.gz", files), tmp_path / "out") == {"train": 2, "unlabeled": 2}
    assert (np.array(Image.open(tmp_path / "out/train/car/000000.png")) == found[0]).all()
    assert (np.array(Image.open(tmp_path / "out/unlabeled/000001.png")) == found[1]).all()
    assert {row.label for row in manifest.read(tmp_path / "out/unlabeled")} == {None}


def test_archives_that_are_cut_or_others_are_refused(tmp_path: Path) -> None:
    cut = archive(tmp_path / "cut.tar.gz", {"test_batch.bin": bytes(4000), "batches.meta.txt": b"cat\n"})
    with pytest.raises(InputError, match="no whole number of pictures"):
        images.unpack(cut, tmp_path / "out")
    with pytest.raises(InputError, match="is none of cifar-10-binary"):
        images.unpack(archive(tmp_path / "other.tar.gz", {"a.txt": b"x"}), tmp_path / "out")
    (tmp_path / "no.tar.gz").write_bytes(b"no")
    with pytest.raises(InputError, match="cannot be read"):
        images.unpack(tmp_path / "no.tar.gz", tmp_path / "out")
