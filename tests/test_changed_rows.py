"""A continued run names the rows of its list that have changed, and goes on only if told to."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import TINY_RECIPE, compose_pretrain

from sce_video.data.manifest import Video
from sce_video.errors import InputError
from sce_video.programs.pretrain import pretrain
from sce_video.training import rows

VIDEOS = [Video(f"/v/{name}.mp4", label) for name, label in zip("abcd", "1122", strict=True)]


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ([VIDEOS[1], VIDEOS[0], *VIDEOS[2:]], r"2 of 4 rows are in another order .* 1: \('/v/a.mp4', '1'\) then, \('/v/b.mp4'"),
        ([*VIDEOS[:3], Video("/v/e.mp4", "2")], r"1 of 4 rows are exchanged, moved or labelled .* 4: \('/v/d.mp4', '2'\)"),
        ([video._replace(path=f"/w{video.path}") for video in VIDEOS], "4 of 4 rows are exchanged, moved"),
        ([*VIDEOS[:3], VIDEOS[3]._replace(label="1")], "1 of 4 rows are exchanged, moved or labelled anew"),
    ],
    ids=["reordered", "exchanged", "moved", "relabelled"],
)
def test_changed_rows_are_named(now: list[Video], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows.keep(tmp_path, VIDEOS)
    meta = {"rows": rows.digest(VIDEOS)}
    with pytest.raises(InputError, match=f"^{words}.*or add data.changed=accept"):
        rows.check(tmp_path, now, meta, accept=False)
    rows.check(tmp_path, now, meta, accept=True)
    assert "rows are" in capsys.readouterr().err
    rows.check(tmp_path, VIDEOS, meta, accept=False)
    rows.check(tmp_path, now, {}, accept=False)
    (tmp_path / rows.LIST).unlink()
    with pytest.raises(InputError, match="some of 4 rows are exchanged"):
        rows.check(tmp_path, now, meta, accept=False)


def test_continued_run_refuses_a_list_in_another_order(videos: Path, tmp_path: Path) -> None:
    lines = (videos / "train.csv").read_text().splitlines()
    table = tmp_path / "train.csv"
    table.write_text("\n".join(lines) + "\n")
    options = [*TINY_RECIPE, f"data.train={table}", f"data.root={videos}", f"out={tmp_path}/run", "optim.epochs=1"]
    pretrain(compose_pretrain(*options))
    table.write_text("\n".join([lines[0], *lines[:0:-1]]) + "\n")
    with pytest.raises(InputError, match="24 of 24 rows are in another order since the run in .* began"):
        pretrain(compose_pretrain(*options))
    pretrain(compose_pretrain(*options, "data.changed=accept"))
    pretrain(compose_pretrain(*options))  # the accepted rows are those of the run now
