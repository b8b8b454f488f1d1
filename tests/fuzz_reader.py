"""Read damaged variants of videos, in a process of its own: `python fuzz_reader.py FOLDER SEED FIRST LAST`.

A variant is a function of its number: one of the files `whole.*` in the folder, one of four sorts of damage. Prints two
lines of JSON for each: before and after reading it. See tests/test_fuzz.py.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import av
import numpy as np

from sce_video.data.decode import DecodeError, open_video
from sce_video.data.readers.media import LIMITS, open_container

SORTS = ("flips", "cut", "zeros", "tables")


def damage(content: bytes, sort: str, draw: random.Random) -> bytes:
    """Return the content with damage of this sort; the first 16 bytes stay, so that a decoder sees the rest."""
    changed = bytearray(content)
    if sort == "flips":
        for _ in range(draw.choice([1, 3, 10, 40])):
            changed[draw.randrange(16, len(changed))] ^= 1 << draw.randrange(8)
    elif sort == "cut":
        del changed[draw.randrange(16, len(changed)) :]
    elif sort == "zeros":
        start, length = draw.randrange(16, len(changed)), draw.choice([4, 64, 1000])
        changed[start : start + length] = bytes(len(changed[start : start + length]))
    else:  # numbers in the tables of MP4, which follow the pictures, or in the head of other files
        first = content.find(b"moov") if b"moov" in content else 16
        last = len(content) if b"moov" in content else min(400, len(content))
        for _ in range(draw.choice([1, 2, 5])):
            at = draw.randrange(first, last - 4)
            changed[at : at + 4] = draw.choice([0, 1, 2, 255, 1 << 16, 1 << 31, (1 << 32) - 1, draw.getrandbits(32)]).to_bytes(
                4, "big"
            )
    return bytes(changed)


def forward_decode(path: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the frames up to the first error, and those of all packets whatever errors occur."""
    before, every, errors = list[np.ndarray](), list[np.ndarray](), 0
    with open_container(str(path), LIMITS) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        packets = container.demux(stream)
        while errors < 200:
            try:
                for frame in next(packets).decode():
                    every.append(frame.to_ndarray(format="rgb24"))
                    before += [] if errors else every[-1:]
            except StopIteration:
                break
            except av.FFmpegError:
                errors += 1
            except IndexError:  # PyAV does not know streams that begin later
                packets = container.demux(stream)
    return before, every


def read(path: Path, draw: random.Random) -> dict[str, Any]:
    """Read frames in two calls, and compare them with the forward decode.

    outcome: `refused` (DecodeError); `equal` to a forward decode that ends at the first error or goes on after it; `moved`:
    found by an index, and shown by the forward decode at most as many frames earlier as it has lost; else `different`.
    """
    began = time.monotonic()
    found: dict[int, np.ndarray] = {}
    try:
        with open_video(str(path)) as video:
            ways = [video.found_by]  # type: ignore[attr-defined]
            wanted = sorted(draw.randrange(video.num_frames) for _ in range(6))
            for part in (wanted[:3], wanted[3:]):
                found |= dict(zip(part, video.read(part).numpy(), strict=True))
            ways.append(video.found_by)  # type: ignore[attr-defined]
            count = video.num_frames
    except DecodeError as error:
        return {"outcome": "refused", "reason": str(error), "seconds": time.monotonic() - began, "read": len(found)}
    seconds = time.monotonic() - began
    try:
        before, every = forward_decode(path)
    except av.FFmpegError as error:
        return {"outcome": "different", "reason": repr(error), "seconds": seconds}
    wrong = [i for i in found if not (i < len(before) and np.array_equal(before[i], found[i]))]
    wrong = [i for i in wrong if not (i < len(every) and np.array_equal(every[i], found[i]))]
    lost = max(count - len(every), 0)
    moved = [i for i in wrong if any(np.array_equal(found[i], frame) for frame in every[max(i - lost, 0) : i])]
    outcome = "equal" if not wrong else "moved" if wrong == moved and ways[-1] != "counting" else "different"
    row = {"outcome": outcome, "ways": ways, "seconds": seconds, "wrong": wrong, "moved": moved}
    return {**row, "count": count, "before": len(before), "every": len(every)}


def main() -> None:
    folder, seed, first, last = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    av.logging.set_level(av.logging.PANIC)
    originals = sorted(path for path in folder.iterdir() if path.stem == "whole")
    for number in range(first, last):
        draw = random.Random(f"{seed} {number}")
        original = originals[number % len(originals)]
        sort = SORTS[number // len(originals) % len(SORTS)]
        path = folder / f"variant_{number}{original.suffix}"
        path.write_bytes(damage(original.read_bytes(), sort, draw))
        print(json.dumps({"number": number, "begins": path.name}), flush=True)
        row = read(path, draw)
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        print(json.dumps({"number": number, "name": path.name, "sort": sort, "peak_kb": int(peak.split()[1]), **row}), flush=True)
        if row["outcome"] in ("equal", "refused"):
            path.unlink()


if __name__ == "__main__":
    main()
