"""A data set of one's own, without video files: any object with `len`, `paths` and `read(row)`, and `labels` for evaluation.

    python tools/pretrain.py data.train=examples/own_data_set.py:Squares out=runs/squares
    python tools/evaluate.py checkpoint=runs/squares train=examples/own_data_set.py:Squares test=examples/own_data_set.py:Held

The name stands wherever a list is expected. Frames could come from HDF5, a database or a simulator as well: `read` returns all
frames of a row, uint8 [N, H, W, 3], and their rate per second. The object is made once in each process that reads.
"""

import numpy as np
from numpy.typing import NDArray

WAYS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
SIDE, FRAMES, RATE = 48, 24, 12.0


class Squares:
    """Bright squares that move over noise in one of four ways, which is their class."""

    first, rows = 0, 32

    def __init__(self) -> None:
        numbers = range(self.first, self.first + self.rows)
        self.paths = [f"square_{number:04d}" for number in numbers]  # for logs, and to tell rows apart
        self.labels = [list(WAYS)[number % len(WAYS)] for number in numbers]

    def __len__(self) -> int:
        return self.rows

    def read(self, row: int) -> tuple[NDArray[np.uint8], float]:
        """Return the frames of a row and their rate; the same row always gives the same frames."""
        draw = np.random.default_rng(self.first + row)
        frames = draw.integers(0, 90, (FRAMES, SIDE, SIDE, 3), dtype=np.uint8)
        top, left, (down, right) = *draw.integers(0, SIDE, 2), WAYS[self.labels[row]]
        for number, frame in enumerate(frames):
            rows, columns = ((start + number * step + np.arange(8)) % SIDE for start, step in ((top, down), (left, right)))
            frame[np.ix_(rows, columns)] = 220
        return frames, RATE


class Held(Squares):
    """Other squares, to evaluate on."""

    first, rows = 1000, 16
