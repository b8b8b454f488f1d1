"""Write the results of doctor.py: a table, a clean manifest, a quarantine list and an HTML page.

All files depend on the rows alone (no date, duration or machine), so that the same videos give the same bytes, also after
the work was split, killed and continued.
"""

from __future__ import annotations

import importlib.util
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from jinja2 import Environment
from jobs.journal import Row
from jobs.manifest_items import videos_of
from output_files import csv_bytes, csv_text

from media.examine import STATUSES
from sce_video.data.decode import DecodeError, FrameReader
from sce_video.data.manifest import Video
from sce_video.errors import printable
from sce_video.runs.files import write_atomically

COLUMNS: dict[str, type] = {
    "path": str,
    "status": str,
    "reason": str,
    "container": str,
    "codec": str,
    "pixel_format": str,
    "width": int,
    "height": int,
    "rotation": int,
    "fps": float,
    "variable_rate": bool,
    "seconds": float,
    "start_seconds": float,
    "end_seconds": float,
    "frames": int,
    "frames_promised": int,
    "frames_hidden": int,
    "key_frame_interval": int,
    "has_audio": bool,
    "bytes": int,
    "changed_ns": int,  # modification time; training compares it and `bytes` to detect a changed file
    "sha256": str,
    "listed": int,  # number of rows of the manifest that name this file
}
SHOWN_AT_MOST = 500  # files in each list of the page

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Health of {{ total }} videos</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 62em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: .6em 0 1.6em }
th, td { text-align: left; padding: .2em .9em .2em 0; border-bottom: 1px solid #ddd; vertical-align: top }
td.number { text-align: right } td.path { word-break: break-all; font-family: monospace; font-size: 13px }
</style></head><body>
<h1>Health of {{ total }} videos</h1>
<p>{{ kept }} of {{ total }} are in <code>clean.csv</code>, {{ total - kept }} in <code>quarantine.csv</code>.
The kept ones last {{ hours }} hours and take {{ gigabytes }} GB.
{% if quick %}Looked at quickly: packets counted, a few frames decoded; damage elsewhere is not seen.{% endif %}
{% if repeated %}{{ repeated }} rows of the manifest name a file that an earlier row names.{% endif %}</p>
<table><tr><th>status</th><th>files</th></tr>
{% for name, count in statuses %}<tr><td>{{ name }}</td><td class="number">{{ count }}</td></tr>
{% endfor %}</table>
<h2>What the kept videos are</h2>
{% for title, counts in figures %}<table><tr><th>{{ title }}</th><th>files</th></tr>
{% for name, count in counts %}<tr><td>{{ name }}</td><td class="number">{{ count }}</td></tr>
{% endfor %}</table>
{% endfor %}
{% for title, rows in lists if rows %}<h2>{{ title }}: {{ rows|length }}</h2>
<table><tr><th>file</th><th>status</th><th>reason</th></tr>
{% for row in rows[:at_most] %}<tr><td class="path">{{ row.path }}</td><td>{{ row.status }}</td><td>{{ row.reason }}</td></tr>
{% endfor %}</table>
{% if rows|length > at_most %}<p>and {{ rows|length - at_most }} more, see the tables.</p>{% endif %}
{% endfor %}
</body></html>
"""


def write(out: Path, items: Sequence[Row], rows: Sequence[Row], *, drop_short: bool, quick: bool) -> list[Row]:
    """Write health.csv, clean.csv, quarantine.csv, summary.html and, where pyarrow is installed, health.parquet to `out`.

    items: see `items_of`; rows: from `examine`, in the same order. Short videos are kept unless drop_short: they decode,
    readers repeat their frames, and a test set without them is another test set. Segments that the file does not give are left
    out of clean.csv. Returns the rows in quarantine.
    """
    table = [{**row, "path": row["id"], "listed": item["listed"]} for item, row in zip(items, rows, strict=True)]
    good = ("ok",) if drop_short else ("ok", "short")
    bad = [row for row in table if row["status"] not in good]
    videos, outside = list[Video](), list[Row]()
    for item, row in zip(items, rows, strict=True):
        for video in videos_of(item, item["id"]) if row["status"] in good else ():
            reason = outside_of(video, row)
            videos += [] if reason else [video]
            outside += [{"path": item["id"], "status": "segment", "reason": reason}] if reason else []
    write_atomically(out / "health.csv", csv_bytes(COLUMNS, table), flush=True)
    write_atomically(out / "quarantine.csv", csv_bytes(("path", "status", "reason"), [*bad, *outside]), flush=True)
    write_atomically(out / "clean.csv", csv_text(videos, out).encode("utf-8", "surrogateescape"), flush=True)
    write_atomically(out / "summary.html", _page(table, bad, quick=quick).encode(), flush=True)
    if importlib.util.find_spec("pyarrow") is not None:
        write_atomically(out / "health.parquet", _parquet(table), flush=True)
    return bad + outside


def outside_of(video: Video, row: Row) -> str:
    """Return why the file does not give a row's segment, "" where it does or the row is a whole video."""
    reader = FrameReader(video.path)
    reader.num_frames, reader.fps = row["frames"], Fraction(row["fps"]).limit_denominator(1001)
    try:
        reader.cut(video.segment, video.where)
    except DecodeError as error:
        return printable(str(error).removeprefix(f"{video.path}: "))
    return ""


def _parquet(rows: Sequence[Row]) -> bytes:
    """Return the table as Parquet, which holds text only: bytes of a path that are not UTF-8 become \\x escapes."""
    import pyarrow
    import pyarrow.parquet

    kinds = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64(), bool: pyarrow.bool_()}
    schema = pyarrow.schema([(name, kinds[kind]) for name, kind in COLUMNS.items()])
    told = [
        {**row, "path": "".join(printable(char) if "\udc80" <= char <= "\udcff" else char for char in row["path"])}
        for row in rows
    ]
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(told, schema=schema), buffer)
    return buffer.getvalue()


def _page(table: Sequence[Row], bad: Sequence[Row], *, quick: bool) -> str:
    paths = {row["path"] for row in bad}
    kept = [row for row in table if row["path"] not in paths]
    counts = Counter(row["status"] for row in table)
    odd = {
        "turned": sum(bool(row.get("rotation")) for row in kept),
        "variable frame rate": sum(bool(row.get("variable_rate")) for row in kept),
        "frames hidden by an edit list": sum(bool(row.get("frames_hidden")) for row in kept),
        "key frames more than 64 frames apart (slow to read, see shrink.py)": sum(
            row.get("key_frame_interval", 0) > 64 for row in kept
        ),
    }
    figures = [
        ("frame size", _most(f"{row['width']} x {row['height']}" for row in kept)),
        ("frames per second", _most(f"{row['fps']:.3f}".rstrip("0").rstrip(".") for row in kept)),
        ("codec, pixel format", _most(f"{row['codec']}, {row['pixel_format']}" for row in kept)),
        ("worth knowing", [(name, count) for name, count in odd.items() if count]),
    ]
    shown = [{**row, "path": printable(row["path"])} for row in bad]
    short = [{**row, "path": printable(row["path"])} for row in kept if row["status"] == "short"]
    # File names are untrusted text: everything is escaped, and the page may neither load nor run anything.
    template = Environment(autoescape=True).from_string(PAGE)
    return template.render(
        total=len(table),
        kept=len(kept),
        hours=f"{sum(row.get('seconds') or 0 for row in kept) / 3600:.2f}",
        gigabytes=f"{sum(row['bytes'] for row in kept) / 1e9:.3f}",
        quick=quick,
        repeated=sum(row["listed"] - 1 for row in table),
        statuses=[(name, counts[name]) for name in STATUSES],
        figures=[(title, found) for title, found in figures if found],
        lists=[("In quarantine", shown), ("Short, kept", short)],
        at_most=SHOWN_AT_MOST,
    )


def _most(values: Iterable[Any]) -> list[tuple[str, int]]:
    counts = sorted(Counter(values).items(), key=lambda pair: (-pair[1], pair[0]))
    return counts[:12] + ([("others", sum(count for _, count in counts[12:]))] if counts[12:] else [])
