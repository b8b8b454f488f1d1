"""Unpack CIFAR-10, CIFAR-100 or STL-10 into folders of PNG pictures, one folder per class, which every program reads as they are.

python data_prep/images.py --archive cifar-10-binary.tar.gz --out /data/cifar10        train/airplane/00000.png ..., test/...
python data_prep/images.py --archive cifar-100-binary.tar.gz --out /data/cifar100
python data_prep/images.py --archive stl10_binary.tar.gz --out /data/stl10             unlabeled/ too, without classes

Of CIFAR the binary version is read (cifar-10-binary.tar.gz, cifar-100-binary.tar.gz): the Python version holds pickles, which
run code. ImageNet's folders need no program. The archives are downloaded by hand from their pages.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from command_line import parser, run

from sce_video.data.readers.picture import write_png
from sce_video.errors import InputError


class Part(NamedTuple):
    """A file of an archive: split, bytes before each picture (the last is the class), side, whether columns come first."""

    split: str
    labels: int
    side: int
    columns_first: bool = False


PARTS = {
    **{f"data_batch_{number}.bin": Part("train", 1, 32) for number in range(1, 6)},
    **{"test_batch.bin": Part("test", 1, 32), "train.bin": Part("train", 2, 32), "test.bin": Part("test", 2, 32)},
    **{f"{split}_X.bin": Part(split, 0, 96, columns_first=True) for split in ("train", "test", "unlabeled")},
}
NAMES = ("batches.meta.txt", "fine_label_names.txt", "class_names.txt")


def read_rows(content: bytes, part: Part, where: str) -> Iterator[tuple[int | None, np.ndarray]]:
    """Yield the class, None without one, and the pixels uint8 [side, side, 3] of each picture."""
    size = part.labels + 3 * part.side**2
    if not content or len(content) % size:
        raise InputError(f"{where}: {len(content)} bytes are no whole number of pictures of {size}: download the archive again")
    for row in np.frombuffer(content, np.uint8).reshape(-1, size):
        planes = row[part.labels :].reshape(3, part.side, part.side)
        yield (
            int(row[part.labels - 1]) if part.labels else None,
            planes.transpose(2, 1, 0) if part.columns_first else planes.transpose(1, 2, 0),
        )


def unpack(archive: Path, out: Path) -> dict[str, int]:
    """Write the pictures of an archive below `out`; return their number by split. Raises InputError for another archive."""
    counts: dict[str, int] = {}
    try:
        with tarfile.open(archive) as packed:
            files = {Path(item.name).name: item for item in packed.getmembers() if item.isfile()}

            def read(name: str) -> bytes:
                found = packed.extractfile(files[name])
                return found.read() if found else b""

            known = [name for name in NAMES if name in files]
            names = [line.strip() for line in read(known[0]).decode().splitlines() if line.strip()] if known else []
            for name in sorted(set(files) & set(PARTS)):
                part = PARTS[name]
                labels = read(name.replace("_X", "_y")) if name.replace("_X", "_y") in files and not part.labels else b""
                for number, (label, pixels) in enumerate(read_rows(read(name), part, f"{archive}: {name}")):
                    label = labels[number] - 1 if labels else label  # STL-10 counts from 1
                    if label is not None and label >= len(names):
                        raise InputError(f"{archive}: {name}: picture {number} has class {label}, named are {len(names)}")
                    folder = out / part.split / (names[label] if label is not None else "")
                    folder.mkdir(parents=True, exist_ok=True)
                    write_png(folder / f"{counts.get(part.split, 0):06d}.png", np.ascontiguousarray(pixels))
                    counts[part.split] = counts.get(part.split, 0) + 1
    except (OSError, tarfile.TarError, UnicodeDecodeError, EOFError) as error:
        raise InputError(f"{archive} cannot be read: {error}") from error
    if not counts:
        raise InputError(f"{archive} is none of cifar-10-binary.tar.gz, cifar-100-binary.tar.gz, stl10_binary.tar.gz")
    return counts


def main(arguments: Sequence[str]) -> None:
    """Run the program."""
    options = parser(__doc__)
    options.add_argument("--archive", required=True, type=Path, help="the downloaded .tar.gz")
    options.add_argument("--out", required=True, type=Path, help="folder to write; it must not exist")
    given = options.parse_args(arguments)
    if given.out.exists():
        raise InputError(f"--out {given.out} exists: choose another folder, or remove it")
    for split, count in unpack(given.archive, given.out).items():
        print(f"{given.out / split}: {count} pictures")


if __name__ == "__main__":
    run(main)
