"""A data set of one's own: a .csv with the columns `path` and, for evaluation, `label`.

    python examples/data_set.py /data/my_videos lists/mine.csv
    python tools/pretrain.py recipe=sce_r3d18_ucf101 data.train=lists/mine.csv out=runs/mine

Here the label is the part of the file name before the first underscore, as in `archery_0001.mp4`. Relative paths in a list
start at the list's folder; these are absolute.
"""

import csv
import sys
from pathlib import Path

from sce_video.data import manifest


def write_list(videos: Path, out: Path) -> int:
    """Write one row per video below `videos` and return their number."""
    paths = sorted(path for path in videos.resolve().rglob("*") if path.suffix.lower() in manifest.VIDEO_SUFFIXES)
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        rows.writerows([path, path.name.partition("_")[0]] for path in paths)
    return len(paths)


if __name__ == "__main__":
    print(f"{write_list(Path(sys.argv[1]), Path(sys.argv[2]))} videos are listed in {sys.argv[2]}")
