"""Write a video as JPEG pictures in a folder or a zip file, for `sce_video.data.readers.frame_folder`.

Pictures take two to three times the bytes of H.264 or more; a reader decodes only the frames it needs. The rate is the one
of `open_video` for the source, and frame i is frame i of the source; the times of a variable rate are not stored. The same
source gives the same bytes (with the same version of libjpeg).
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
from jobs.journal import Row
from jobs.workers import Alive
from PIL import Image

from media.copy_form import Form, Shown, Timing, frames_of, scaling_for, shown
from sce_video.data.readers.frame_folder import DESCRIPTION, MAX_ZIP_ENTRIES, FrameFolder
from sce_video.data.readers.media import DecodeError


class _Target:
    """A folder or a zip file to write pictures to."""

    def __init__(self, path: Path, form: Form) -> None:
        self.path, self.count = path, 0
        self.zip = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) if form.kind == "jpeg-zip" else None
        if self.zip is None:
            path.mkdir()

    def add(self, name: str, content: bytes) -> None:
        """Write one file."""
        if self.zip is None:
            (self.path / name).write_bytes(content)
            return
        self.count += 1
        if self.count > MAX_ZIP_ENTRIES:
            raise DecodeError(f"more than {MAX_ZIP_ENTRIES - 1} frames do not go into a zip file: take jpeg-folder")
        self.zip.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), content)

    def close(self) -> None:
        if self.zip is not None:
            self.zip.close()


def write(container: Any, stream: Any, working: Path, form: Form, timing: Timing, alive: Alive) -> Shown:
    """Write all frames; return the compared parts of the source. Raises DecodeError where the rate varies."""
    if timing.times is not None:
        raise DecodeError("its rate varies, and pictures have one rate: take --form video")
    target = _Target(working, form)
    size, rate = (0, 0), timing.rate.limit_denominator(1001)

    def written() -> Iterator[tuple[Any, float]]:
        nonlocal size
        graph, converter = None, av.video.reformatter.VideoReformatter()  # its own: see PyAVReader
        for count, (frame, _) in enumerate(frames_of(container, stream, timing)):
            graph = graph or scaling_for(frame, stream, form)
            graph.vpush(frame)
            picture = Image.fromarray(converter.reformat(graph.vpull(), format="rgb24", threads=1).to_ndarray())
            size = picture.size
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=form.quality)
            target.add(f"{count:06d}.jpg", buffer.getvalue())
            yield frame, float(count / rate)

    try:
        found = shown(written(), timing.rate, alive)
        if not found.times:
            raise DecodeError("no frame in it")
        about = {"fps": str(rate), "num_frames": len(found.times), "height": size[1], "width": size[0]}
        target.add(DESCRIPTION, json.dumps({**about, "quality": form.quality}, indent=1).encode() + b"\n")
    finally:
        target.close()
    return found


def read_again(working: Path, alive: Alive) -> tuple[Row, Shown]:
    """Decode every picture; return the size of the copy and its compared parts."""
    converter = av.video.reformatter.VideoReformatter()
    with FrameFolder(str(working)) as video:

        def frames() -> Iterator[tuple[Any, float]]:
            for index in range(video.num_frames):
                frame = av.VideoFrame.from_ndarray(video.read([index])[0].numpy(), format="rgb24")
                # The pixel format of the source: colours of half the resolution scale differently.
                yield converter.reformat(frame, format="yuv420p", threads=1), float(index / video.fps)

        return {"width": video.width, "height": video.height}, shown(frames(), video.fps, alive)
