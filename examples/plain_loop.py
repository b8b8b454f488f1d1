"""SCE in a plain PyTorch loop, from the package's parts: exact clips, batched augmentation, loss, queue, moving average.

    python examples/plain_loop.py /data/my_videos

Any folder of videos or list. The frames are read in this process; a `DataLoader` with workers takes the same data set, because
a sample depends on (epoch, row) only.
"""

import sys

import torch

from sce_video import augment, losses
from sce_video.augment import batched
from sce_video.data import manifest
from sce_video.data.crops import RandomResized
from sce_video.data.dataset import ClipDataset, collate
from sce_video.models import backbones
from sce_video.models.encoder import MLP, Encoder
from sce_video.models.momentum import KeyQueue, ema_update, momentum_copy
from sce_video.randomness import generator


def train(folder: str, *, epochs: int = 2, batch: int = 8, size: int = 40) -> list[float]:
    """Pretrain on the videos of a folder or list, and return the loss of each step."""
    torch.manual_seed(0)
    box = RandomResized(area=(0.3, 1.0), ratio=(0.75, 4 / 3))
    data = ClipDataset(manifest.read(folder), num_frames=8, clip_seconds=1.0, draw_boxes=[box, box], seed=0)
    view = augment.View(blur_kernel=5)
    backbone, width = backbones.build("tiny3d")
    online = Encoder(backbone, MLP([width, 64, 32], last_norm=True), MLP([32, 64, 32], last_norm=False))
    target, queue = momentum_copy(Encoder(online.backbone, online.projector)), KeyQueue(4 * batch, 32)
    optimizer = torch.optim.AdamW(online.parameters(), lr=0.01)
    history = []
    for epoch in range(epochs):
        rows = torch.randperm(len(data), generator=generator(0, "order", epoch)).tolist()
        for first in range(0, len(rows) - batch + 1, batch):
            clips = collate([data[epoch, row] for row in rows[first : first + batch]])
            views = []
            for number, packed in enumerate(clips.views):
                drawn = augment.draw(view, [generator(0, "augment", epoch, row, number) for row in clips.rows])
                views.append(batched.apply(view, packed.pixels, packed.sources(), drawn, size=size, mean=0.45, std=0.225))
            with torch.no_grad():
                key = target(views[0])
            loss = losses.sce(online(views[1]), key, queue.keys, temp=0.1, temp_target=0.05, coeff=0.5)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            ema_update(target, online, 0.99)
            queue.push(key)
            history.append(loss.item())
    return history


if __name__ == "__main__":
    print("\n".join(f"step {step}: {value:.3f}" for step, value in enumerate(train(sys.argv[1]), 1)))
