"""The CSV files that the programs write.

Files are written atomically and flushed to the disk. The same input gives the same bytes, so
that a program can run again: `write_all` keeps a file that exists with the same content and refuses to overwrite one that
differs.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sce_video.data import manifest
from sce_video.data.manifest import Video
from sce_video.errors import InputError
from sce_video.runs.files import write_atomically


def write_all(files: Mapping[str, str], folder: str | Path) -> list[str]:
    """Write texts by name into `folder`, which is created if it does not exist; return the names of the new files.

    Raises InputError if one of the files exists with other content, before any is written, or if the disk refuses.
    """
    target = Path(folder)
    contents = {name: text.encode("utf-8", "surrogateescape") for name, text in files.items()}
    try:
        for name, content in contents.items():
            if (target / name).exists() and (target / name).read_bytes() != content:
                raise InputError(
                    f"{str(target / name)!r} exists with other content and is not overwritten: "
                    "give another --out, or move it away"
                )
        target.mkdir(parents=True, exist_ok=True)
        new = [name for name in contents if not (target / name).exists()]
        for name in new:
            write_atomically(target / name, contents[name], flush=True)
    except OSError as error:
        raise InputError(f"cannot write to {str(target)!r}: {os.strerror(error.errno or 0)}") from error
    return new


def csv_text(videos: Sequence[Video], folder: str | Path) -> str:
    """Return a manifest for `folder` as text: rows `path,label`, or `path` alone if no video has a label, and segments.

    Paths below `folder` are relative to it, so that the folder can be moved; others are absolute.
    """
    base = os.path.join(os.path.abspath(folder), "")
    columns = manifest.columns(videos)
    if all(video.label is None for video in videos):
        del columns["label"]
    for row, path in enumerate(columns["path"]):
        path = path.removeprefix(base)
        # A file's name that manifest.read would take for an address.
        columns["path"][row] = f"./{path}" if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", path) else path
    lines = [",".join(columns), *(",".join(map(quoted, row)) for row in zip(*columns.values(), strict=True))]
    return "\n".join(lines) + "\n"


def quoted(value: str) -> str:
    """Return a value as a CSV field, with quotes only where CSV requires them."""
    return '"' + value.replace('"', '""') + '"' if re.search(r'[",\r\n]|^\s|\s$', value) else value


def csv_bytes(columns: Iterable[str], rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return a table as the bytes of a CSV file with a header.

    A value that a row does not have becomes an empty field. File names keep bytes that are not UTF-8.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    names = list(columns)
    writer.writerow(names)
    writer.writerows([["" if row.get(name) is None else row[name] for name in names] for row in rows])
    return text.getvalue().encode("utf-8", "surrogateescape")


if __name__ == "__main__":
    raise SystemExit("output_files.py is no program: it serves those that data_prep/README.md lists")
