"""Examine the health of one file: decode it as training does and return a status.

| status          | meaning                                                                                    |
|-----------------|--------------------------------------------------------------------------------------------|
| ok              | every frame to show decodes                                                                |
| short           | the same, but there are few frames                                                         |
| truncated       | it breaks off, or is damaged from some frame on: only frames [0, `frames`) are sound       |
| no video stream | a container of sound or something else                                                    |
| unreadable      | missing, not permitted, no frame comes out, frames change their size, the decoder crashes  |
| not a video     | its first bytes are not those of a video container: empty, text, a web page, a zip file    |
| hang            | the decoder made no progress for the time allowed                                          |
| refused         | would make a decoder open other files or the network, is no regular file, or is too large  |

The reference is a forward decode, as for the readers of `sce_video.data.decode`. A header may promise two or three frames
more than exist (AVI files with packed B-frames); that alone is not a fault.
"""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import time
from typing import Any

import av
from jobs.workers import Alive

from media.examine_pictures import examine_pictures
from media.probe import measured_rate, missing_bytes, opened, rotation_of, seconds_of, time_in
from media.shots import Cuts
from sce_video.data.decode import reading
from sce_video.data.health import stamp
from sce_video.data.readers.headers import one_frame
from sce_video.data.readers.media import (
    HEAD,
    NAMES_FILES,
    DecodeError,
    NoVideo,
    TooLarge,
    check_media,
    demux,
    is_frames,
    reason_of,
)
from sce_video.errors import printable

STATUSES = ("ok", "short", "truncated", "no video stream", "unreadable", "not a video", "hang", "refused")
NAMES_OTHERS = "a playlist: a decoder would open the files or addresses that it names"
SAMPLE_FRAMES = 8  # decoded at each of three positions by --quick

Row = dict[str, Any]


def examine(path: str, alive: Alive, *, quick: bool, min_frames: int, shots: bool = False) -> Row:
    """Return the health of a file: `id`, `status`, `reason` and the figures of `measured`.

    quick: count packets, and decode some frames at the start, the middle and the end instead of all. shots: `cuts` has the
    numbers of the frames that begin a shot, but the first.
    """
    strike(path)
    row: Row = {"id": path, **stamped(path)}
    try:
        with reading(path):
            return _examine(row, path, alive, quick=quick, min_frames=min_frames, shots=shots)
    except DecodeError as error:  # what a library raised
        return {**row, "status": "unreadable", "reason": without(path, error)}


def _examine(row: Row, path: str, alive: Alive, *, quick: bool, min_frames: int, shots: bool) -> Row:
    if is_frames(path):
        return {**row, **examine_pictures(path, alive, quick=quick, min_frames=min_frames)}
    try:
        check_media(path)
    except DecodeError as error:
        status = status_at_the_gate(path)
        playlist = status == "refused" and os.path.isfile(path)
        return {**row, "status": status, "reason": NAMES_OTHERS if playlist else without(path, error)}
    try:
        row["sha256"] = sha256_of(path, alive)
        with opened(path) as (container, stream):
            found = Frames(container, stream, Cuts() if shots else None)
            try:
                (found.sample if quick else found.decode)(container, alive)
            except (av.FFmpegError, OSError, MemoryError) as error:
                found.broken = reason_of(error)
            row.update(measured(container, stream, found))
            if len(container.streams.video) > 1:
                found.other_videos = f"stream {stream.index} is read of {len(container.streams.video)} with pictures"
    except NoVideo as error:
        return {**row, "status": "no video stream", "reason": without(path, error)}
    except TooLarge as error:
        return {**row, "status": "refused", "reason": without(path, error)}
    except (DecodeError, OSError) as error:
        return {**row, "status": "unreadable", "reason": without(path, error)}
    row["status"], row["reason"] = verdict(row, found, path, min_frames)
    return {**row, "cuts": found.cuts.found} if found.cuts else row


class Frames:
    """Decode a stream and count its frames."""

    def __init__(self, container: Any, stream: Any, cuts: Cuts | None = None) -> None:
        self.container, self.stream, self.cuts = container.format.name, stream, cuts
        self.stated: int = stream.frames
        if "mp4" in self.container:  # an edit list may leave out whole groups of pictures
            self.stated = min(self.stated, len(stream.index_entries))
        self.count = 0  # of sound frames from the first on; with `sample`, of packets of frames to show
        self.hidden = 0
        self.joined = False  # whether a sound decode gives fewer frames than there are packets, see `one_frame`
        self.times: list[int] = []
        self.stamps: list[int | None] = []  # see `time_in`, of the packets to show
        self.interval = self._since_key = 0
        self.first: Any = None
        self.broken = self.other_videos = ""

    def _packet(self, container: Any, packet: Any) -> None:
        if packet.size:
            self.stamps += [] if packet.is_discard else [time_in(container, packet)]
            self._since_key = 1 if packet.is_keyframe else self._since_key + 1
            self.interval = max(self.interval, self._since_key)
            self.hidden += packet.is_discard
            codec = self.stream.codec_context
            self.joined = self.joined or not one_frame.gives_one(codec.name, bytes(packet), codec.extradata)

    def _frame(self, frame: Any) -> None:
        if self.first is None:
            self.first = frame
        if frame.is_corrupt:
            self.broken = "the decoder says that it is damaged"
        elif (frame.width, frame.height) != (self.first.width, self.first.height):
            self.broken = f"it is {frame.width}x{frame.height}, the first is {self.first.width}x{self.first.height}"

    def promised(self, first: int | None) -> int:
        """Return how many frames the header promises, without those that are no fault. first: pts of the first frame shown."""
        known = [stamp for stamp in self.stamps if stamp is not None]
        if self.container == "avi":  # FFmpeg counts chunks: a stream copy at twice the rate has an empty one after each frame
            without = max(known[-1] - known[0] + 1 - len(known), 0) if known else 0
        else:  # before the first key frame
            without = 0 if first is None else sum(stamp < first for stamp in known)
        return max(self.stated - self.hidden - without, 0)

    def lacks(self, shown: int, first: int | None) -> bool:
        """Return whether more than a few of the promised frames are missing (AVI files with packed B-frames lack some)."""
        promised = self.promised(first)
        return promised - (len(self.stamps) if self.joined else shown) > max(3, promised // 50)

    def read(self, container: Any) -> None:
        """Read all packets without decoding."""
        for packet in demux(container, self.stream):
            self._packet(container, packet)

    def decode(self, container: Any, alive: Alive) -> None:
        """Decode all frames up to the first fault."""
        for packet in demux(container, self.stream):
            self._packet(container, packet)
            for frame in packet.decode():
                self._frame(frame)
                if self.broken:
                    return
                self.count += 1
                if frame.pts is not None:
                    self.times.append(frame.pts)
                if self.cuts is not None:
                    self.cuts.add(frame)
                alive()

    def sample(self, container: Any, alive: Alive) -> None:
        """Read all packets, and decode a few frames at the start, the middle and the end."""
        keys, decoded = list[int](), 0
        for packet in demux(container, self.stream):
            self._packet(container, packet)
            if packet.size and packet.is_corrupt:
                self.broken = "its packet is cut short"
                break
            for frame in packet.decode() if decoded < SAMPLE_FRAMES else ():
                decoded += 1
                self._frame(frame)
            if packet.size and not packet.is_discard:
                self.count += 1
                if packet.pts is not None:
                    self.times.append(packet.pts)
                    keys += [packet.pts] if packet.is_keyframe else []
            alive()
        self.times.sort()
        for time_wanted in dict.fromkeys([keys[len(keys) // 2], keys[-1]] if keys and not self.broken else []):
            try:
                container.seek(time_wanted, stream=self.stream)
            except av.FFmpegError:  # files may be sound without a way to seek
                return
            for number, frame in enumerate(container.decode(self.stream)):
                self._frame(frame)
                alive()
                if self.broken or number + 1 == SAMPLE_FRAMES:
                    break


def measured(container: Any, stream: Any, found: Frames) -> Row:
    """Return the columns of the stream; seconds are presentation times, `end_seconds` is the end of the last frame."""
    rate = measured_rate(stream, found.stamps)
    row: Row = {
        "container": container.format.name,
        "codec": stream.codec_context.name,
        "fps": round(float(rate), 6) if rate else None,
        "frames": found.count,
        "frames_promised": stream.frames or None,
        "frames_hidden": found.hidden,
        "seconds": _rounded(seconds_of(container, stream)),
        "key_frame_interval": found.interval,
        "has_audio": bool(container.streams.audio),
    }
    if found.first is not None:
        turned = rotation_of(found.first)
        sides = (found.first.width, found.first.height)
        row["width"], row["height"] = sides[::-1] if turned in (90, 270) else sides
        row["rotation"], row["pixel_format"] = turned, found.first.format.name
    times = sorted(found.times)
    gaps = sorted(later - earlier for earlier, later in zip(times[:-1], times[1:], strict=True))
    if times:
        usual = float(1 / rate) if rate else 0.0
        row["start_seconds"] = _rounded(float(times[0] * stream.time_base))
        row["end_seconds"] = _rounded(float(times[-1] * stream.time_base) + usual)
    # Rounding to the time base makes neighbouring gaps differ by one tick, packed B-frames leave one gap of two frames.
    row["variable_rate"] = len(gaps) > 4 and gaps[-2] > 1.5 * gaps[1]
    return row


def verdict(row: Row, found: Frames, path: str, min_frames: int) -> tuple[str, str]:
    """Return status and reason for a file that could be opened."""
    if row["fps"] is None:
        return "unreadable", "its frame rate is not known"
    if found.first is None:
        return "unreadable", printable(found.broken) or "no frame in it"
    first = found.times[0] if found.times else None
    promised = found.promised(first)
    told = f" of {promised}" if promised else ""
    if found.broken.startswith("it is"):
        return "unreadable", f"frames change their size: of frame {row['frames']}{told}, {found.broken}"
    if found.broken:
        return "truncated", f"breaks off at frame {row['frames']}{told}: {printable(found.broken)}"
    if found.lacks(row["frames"], first):
        return "truncated", f"ends after frame {row['frames']}{told}"
    if cut := missing_bytes(path):
        return "truncated", f"the file ends {cut} bytes before its container does"
    if row["frames"] < min_frames:
        return "short", f"{row['frames']} frame{'s' * (row['frames'] != 1)}"
    return "ok", found.other_videos


def stamped(path: str) -> Row:
    """Return the columns that show later whether the file has changed; none if the file does not exist."""
    found = stamp(path)
    return {} if found is None else found._asdict()


def status_at_the_gate(path: str) -> str:
    """Return the status of a file that `check_media` rejects."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return "refused"
        with open(path, "rb") as file:
            text = file.read(HEAD).partition(b"\0")[0]  # the part that FFmpeg searches, as in `check_media`
            return "refused" if NAMES_FILES.search(text) else "not a video"
    except OSError:
        return "unreadable"


def sha256_of(path: str, alive: Alive) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            alive()
    return digest.hexdigest()


def without(path: str, error: BaseException) -> str:
    """Return the first line of an error without the path at its beginning."""
    return printable(reason_of(error).removeprefix(f"{path}: "))


def strike(path: str) -> None:
    """Hang or crash at the files in SCE_FAULTS (`hang@name,crash@name`) if SCE_ALLOW_FAULTS=1; for tests only."""
    if os.environ.get("SCE_ALLOW_FAULTS") != "1" or not os.environ.get("SCE_FAULTS"):
        return
    for fault in os.environ["SCE_FAULTS"].split(","):
        kind, _, name = fault.partition("@")
        if name == os.path.basename(path):
            if kind == "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            while kind == "hang":
                time.sleep(60)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
