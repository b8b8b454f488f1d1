"""Every decoder and program rejects files and names that would make a decoder open other files or the network.

RELIABILITY S1 to S3 and V9. A server on the loopback must receive nothing, and a video beside the hostile files must not be
read: its access time shows that, and strace where it is installed.
"""

from __future__ import annotations

import http.server
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ROOT, TINY_RECIPE, numbered_frames, run_tool
from media import transcode
from media.copy_form import Form
from media.examine import examine
from test_decode import encode
from test_doctor import bomb, doctor
from test_shrink import shrink

from sce_video.data import manifest
from sce_video.data.decode import DECODERS, DecodeError, open_video
from sce_video.data.readers.media import Limits, TooLarge, check_media
from sce_video.errors import InputError

HERE = {"torchcodec": importlib.util.find_spec("torchcodec") is not None}
INSTALLED = [name for name in DECODERS if HERE.get(name, True)]
OLD = 946_684_800  # 2000-01-01: an access time that every read renews


class Trap(NamedTuple):
    folder: Path
    address: str
    requests: list[str]

    @property
    def hostile(self) -> list[Path]:
        return sorted((self.folder / "hostile").iterdir())

    @property
    def secret(self) -> Path:
        return self.folder / "hostile_target/secret.ts"


def playlists(target: str) -> dict[str, bytes]:
    """Return texts of every kind that refer to `target`, by file name prefix."""
    hls = f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n"
    master = f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=100000\n{target.replace('.ts', '.m3u8')}\n"
    dash = (
        '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT2S" profiles="urn:mpeg:dash:'
        f'profile:isoff-on-demand:2011"><Period><AdaptationSet mimeType="video/mp2t"><Representation id="1" bandwidth="1">'
        f"<BaseURL>{target}</BaseURL></Representation></AdaptationSet></Period></MPD>"
    )
    texts = {
        "hls": hls,
        "hls_mark": "\ufeff" + hls,
        "master": master,
        "concat": f"ffconcat version 1.0\nfile '{target}'\n",
        "dash": '<?xml version="1.0"?>\n' + dash,
        "imf": f"<CompositionPlaylist>{target}</CompositionPlaylist>",
        "pls": f"[playlist]\nFile1={target}\n",
        "asx": f'<asx version="3.0"><entry><ref href="{target}"/></entry></asx>',
        "smil": f'<smil><body><video src="{target}"/></body></smil>',
        "vobsub": f"# VobSub index file, v7\nid: en, index: 0\n{target}\n",
        # Disguised: FFmpeg finds these words behind the first bytes of a container.
        "flv_dash": "FLV\x01" + dash,
        "mp4_dash": "1234ftyp" + dash,
        "late_dash": "1234ftyp" + "x" * 5000 + dash,
        "matroska_dash": dash,
        "avi_dash": "RIFF1234AVI " + dash,
        "ogg_dash": "OggS" + dash,
        "ts_dash": "".join("G" + dash[i : i + 187] for i in range(0, len(dash), 187)).ljust(188 * 6, "G"),
    }
    contents = {name: text.encode() for name, text in texts.items()}
    contents["matroska_dash"] = b"\x1aE\xdf\xa3" + contents["matroska_dash"]
    disguised = [name for name in contents if name.endswith("_dash")]
    return contents | {f"{name}_zeros": contents[name] + bytes(5000) for name in disguised}


def sessions(port: int) -> dict[str, bytes]:
    """Descriptions that make FFmpeg open sockets."""
    text = f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n"
    return {"sdp": text.encode(), "flv_sdp": b"FLV\x01\n" + text.encode(), "mp4_sdp": b"1234moov\n" + text.encode() + bytes(5000)}


@pytest.fixture(scope="module")
def trap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trap]:
    folder = tmp_path_factory.mktemp("trap")
    (folder / "hostile").mkdir()
    (folder / "hostile_target").mkdir()
    secret = encode(folder / "hostile_target/secret.ts", numbered_frames(20))
    requests: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder / "hostile_target"))  # type: ignore[arg-type]

        def log_message(self, format: str, *arguments: object) -> None:
            requests.append(format % arguments)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    targets = {"rel": "../hostile_target/secret.ts", "abs": str(secret), "http": f"{address}/secret.ts"}
    for where, target in targets.items():
        for kind, content in playlists(target).items():
            (folder / f"hostile/{kind}_{where}.mp4").write_bytes(content)
    for kind in ("hls", "master"):
        shutil.copy(folder / f"hostile/{kind}_http.mp4", folder / f"hostile/{kind}_http.m3u8")
        shutil.copy(folder / f"hostile/{kind}_abs.mp4", folder / f"hostile/{kind}_abs.m3u8")
    for kind, content in sessions(server.server_port).items():
        (folder / f"hostile/{kind}.mp4").write_bytes(content)
    os.utime(secret, (OLD, secret.stat().st_mtime))
    yield Trap(folder, address, requests)
    server.shutdown()
    server.server_close()


def untouched(trap: Trap) -> bool:
    """Check that no file or address named by a hostile file is read; first prove that a read would be detected."""
    control = trap.secret.with_name("control.ts")
    control.write_bytes(b"anything")
    os.utime(control, (OLD, control.stat().st_mtime))
    control.read_bytes()
    tells = control.stat().st_atime > OLD  # not where the disk is mounted with noatime
    return trap.requests == [] and (not tells or trap.secret.stat().st_atime == OLD)


def test_the_gate_alone_refuses_every_playlist(trap: Trap) -> None:
    assert len(trap.hostile) > 70
    for path in trap.hostile:
        with pytest.raises(DecodeError, match="not those of a video container|goes on like a playlist"):
            check_media(str(path))
    assert untouched(trap)


@pytest.mark.parametrize("decoder", INSTALLED)
def test_no_decoder_follows_a_playlist(trap: Trap, decoder: str) -> None:
    for path in trap.hostile:
        with pytest.raises(DecodeError, match=re.escape(str(path))):
            open_video(str(path), decoder)
    assert untouched(trap)


@pytest.mark.parametrize("decoder", INSTALLED)
def test_no_decoder_takes_an_address_for_a_file(trap: Trap, decoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trap.folder)
    secret = str(trap.secret)
    for name in (
        f"{trap.address}/secret.ts",
        f"file:{secret}",
        f"file://{secret}",
        f"concat:{secret}|{secret}",
        f"subfile,,start,0,end,9999,,:{secret}",
        f"crypto:{secret}",
        f"cache:{trap.address}/secret.ts",
        f"async:file:{secret}",
        "data:video/mp4;base64,AAAA",
        "pipe:0",
        f"{secret}\0.mp4",
    ):
        with pytest.raises(DecodeError):
            open_video(name, decoder)
    assert untouched(trap)


def test_no_program_follows_a_playlist(trap: Trap, tmp_path: Path) -> None:
    """The doctor's and shrink's work on each file; their command lines are run on all of them below (slow)."""
    for path in trap.hostile:
        row = examine(str(path), lambda: None, quick=False, min_frames=8)
        assert row["status"] in ("refused", "not a video"), (path.name, row)
        for form in (Form(32), Form(32, "jpeg-zip"), Form(32, engine="ffmpeg")):
            row = transcode.shrink(str(path), tmp_path / "copy", tmp_path / "working", form, lambda: None)
            assert row["status"] == "failed", path.name
    assert list(tmp_path.iterdir()) == []
    assert untouched(trap)


def test_rows_with_addresses_are_refused_by_line(trap: Trap, tmp_path: Path) -> None:
    secret = trap.secret
    for name in (
        f"{trap.address}/secret.mp4",
        f"concat:{secret}|{secret}.mp4",
        f"file:{secret}",
        f"subfile,,start,0,end,9,,:{secret}.mp4",
        "rtsp://127.0.0.1/x.mp4",
        "a\0b.mp4",
    ):
        (tmp_path / "list.csv").write_text(f'path,label\ngood.mp4,0\n"{name}",1\n')
        with pytest.raises(InputError, match=r"list\.csv:3: .*is not a file path|is no list but a binary file"):
            manifest.read(tmp_path / "list.csv")
        (tmp_path / "list.txt").write_text(f"good.mp4 0\n{name} 1\n")
        with pytest.raises(InputError, match=r"list\.txt:2: |is no list but a binary file"):
            manifest.read(tmp_path / "list.txt")


@pytest.mark.parametrize("decoder", INSTALLED)
def test_a_file_replaced_by_a_playlist_is_refused_when_it_is_opened(trap: Trap, decoder: str, tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", numbered_frames(5))
    open_video(str(path), decoder).close()
    size = path.stat()
    shutil.copy(trap.folder / "hostile/hls_abs.mp4", path)
    os.utime(path, ns=(size.st_atime_ns, size.st_mtime_ns))
    with pytest.raises(DecodeError, match="not those of a video container"):
        open_video(str(path), decoder)
    assert untouched(trap)


def test_limits_are_those_asked_for(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", numbered_frames(10))
    transport = encode(tmp_path / "a.ts", numbered_frames(10))
    for decoder in INSTALLED:
        open_video(str(path), decoder, limits=Limits(48 * 64, 10)).close()
        for limits, reason in ((Limits(48 * 64 - 1, 10), "64x48 pixels are more"), (Limits(48 * 64, 9), "the 9 frames")):
            with pytest.raises(TooLarge, match=reason):
                open_video(str(path), decoder, limits=limits)
    with pytest.raises(TooLarge, match="the 9 frames"):  # counted by decoding
        open_video(str(transport), "pyav", limits=Limits(48 * 64, 9))


def peak_megabytes() -> int:
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) >> 10  # type: ignore[index]


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="only Linux tells a new peak of memory")
@pytest.mark.parametrize("decoder", INSTALLED)
def test_a_picture_bomb_is_refused_in_little_memory(decoder: str, tmp_path: Path) -> None:
    """8192 x 8192 in a small file: decord would take 1.7 GB for it."""
    path = bomb(tmp_path / "bomb.mp4")
    open_video(str(encode(tmp_path / "good.mp4", numbered_frames(5))), decoder).close()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak_megabytes()
    with pytest.raises(TooLarge, match="8192x8192 pixels are more than"):
        open_video(str(path), decoder)
    assert peak_megabytes() - before < 60


@pytest.mark.slow
def test_programs_survive_a_folder_of_traps(trap: Trap, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    shutil.copytree(trap.folder / "hostile", folder)
    good = encode(folder / "good.mp4", numbered_frames(20))
    result = doctor(folder, "--out", tmp_path / "health", "--jobs", "1")
    assert result.returncode == 0, result.stderr
    assert [os.path.basename(video.path) for video in manifest.read(tmp_path / "health/clean.csv")] == ["good.mp4"]
    (tmp_path / "few.txt").write_text("".join(f"{path}\n" for path in (good, *sorted(folder.glob("*_abs.mp4"))[:20])))
    result = shrink(tmp_path / "few.txt", "--out", tmp_path / "small", "--jobs", "1")
    assert result.stdout.startswith("1 of 21 files shrunk"), result.stderr
    good.unlink()
    (tmp_path / "list.csv").write_text("path\n" + "".join(f"{path}\n" for path in sorted(folder.glob("*.mp4"))))
    run = run_tool("pretrain", *TINY_RECIPE, f"data.train={tmp_path}/list.csv", f"out={tmp_path}/run", cwd=tmp_path)
    assert (run.returncode, run.stdout) == (70, "")
    assert "none of 32 videos tried" in run.stderr
    assert untouched(trap)


FOLLOW = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from media import examine
from sce_video.data.decode import DecodeError, open_video
for decoder in sys.argv[3].split(","):
    for path in sorted(Path(sys.argv[2]).iterdir()):
        try:
            open_video(str(path), decoder)
        except DecodeError:
            continue
        sys.exit(f"{decoder} opened {path}")
    for path in sorted(Path(sys.argv[2]).iterdir()):
        examine.examine(str(path), lambda: None, quick=False, min_frames=1)
print("done")
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_no_system_call_opens_what_a_playlist_names(trap: Trap, tmp_path: Path) -> None:
    traced = ["strace", "-f", "-qq", "-e", "trace=open,openat,openat2,connect,sendto", "-o", str(tmp_path / "calls")]
    arguments = [str(ROOT / "data_prep"), str(trap.folder / "hostile"), ",".join(INSTALLED)]
    result = subprocess.run([*traced, sys.executable, "-c", FOLLOW, *arguments], capture_output=True, text=True, check=False)
    if "ptrace" in result.stderr:
        pytest.skip("strace may not trace here")
    assert result.stdout == "done\n", result.stderr
    calls = (tmp_path / "calls").read_text()
    assert calls.count("/hostile/") >= len(trap.hostile) * len(INSTALLED)
    assert "secret" not in calls
    assert "AF_INET" not in calls
    assert untouched(trap)
