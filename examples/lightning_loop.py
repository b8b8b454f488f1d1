"""MoCo as a LightningModule, from the package's parts: the data set, batched augmentation, InfoNCE, queue, moving average.

    python examples/lightning_loop.py /data/my_videos

Lightning is not a dependency. Where it is not installed, a stand-in for the few names used here runs the same module in a plain
loop: enough to try the file, not to train with it.
"""

import sys
from types import SimpleNamespace

import torch
from torch.utils.data import DataLoader

from sce_video import augment, losses
from sce_video.augment import batched
from sce_video.data import manifest
from sce_video.data.crops import RandomResized
from sce_video.data.dataset import ClipDataset, collate
from sce_video.models import backbones
from sce_video.models.encoder import MLP, Encoder
from sce_video.models.momentum import KeyQueue, ema_update, momentum_copy
from sce_video.randomness import generator

try:
    import lightning
except ModuleNotFoundError:
    lightning = None


def fit_plainly(module, batches):
    """Train a module as `lightning.Trainer(max_epochs=1).fit` does, on the CPU and without anything else of it."""
    optimizer = module.configure_optimizers()
    for number, batch in enumerate(batches):
        loss = module.training_step(batch, number)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        module.on_train_batch_end(None, batch, number)


class StandIn(torch.nn.Module):
    """The two names of a LightningModule that are used below."""

    device = torch.device("cpu")

    def log(self, name, value):
        """Print what Lightning would log."""
        print(f"{name} {value.item():.3f}")


class MoCo(lightning.LightningModule if lightning else StandIn):
    """Online encoder with predictor, its moving average, and a queue of keys."""

    def __init__(self, queue=64):
        super().__init__()
        backbone, width = backbones.build("tiny3d")
        self.online = Encoder(backbone, MLP([width, 64, 32], last_norm=True), MLP([32, 64, 32], last_norm=False))
        self.target = momentum_copy(Encoder(self.online.backbone, self.online.projector))
        self.queue = KeyQueue(queue, 32)
        self.view = augment.View(blur_kernel=5)

    def augmented(self, batch, number):
        """Return view `number` on the device; the draws are keyed by epoch, row and view."""
        keys = zip(batch.epochs, batch.rows, strict=True)
        drawn = augment.draw(self.view, [generator(0, "augment", *key, number) for key in keys])
        packed = batch.views[number].to(self.device)
        return batched.apply(self.view, packed.pixels, packed.sources(), drawn, size=40, mean=0.45, std=0.225)

    def training_step(self, batch, batch_idx):
        """Return the loss of a batch; its keys enter the queue after the optimiser step."""
        with torch.no_grad():
            self.keys = self.target(self.augmented(batch, 0))
        loss = losses.info_nce(self.online(self.augmented(batch, 1)), self.keys, self.queue.keys, temp=0.1)
        self.log("loss", loss.detach())
        return loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        """Move the target towards the online encoder, and enqueue the keys."""
        ema_update(self.target, self.online, 0.99)
        self.queue.push(self.keys)

    def configure_optimizers(self):
        """Return the optimiser of the online encoder."""
        return torch.optim.AdamW(self.online.parameters(), lr=1e-3)


def main(folder, batch=8):
    """Train for one epoch on the videos of a folder or list, and return the module."""
    torch.manual_seed(0)
    box = RandomResized(area=(0.3, 1.0), ratio=(0.75, 4 / 3))
    data = ClipDataset(manifest.read(folder), num_frames=8, clip_seconds=1.0, draw_boxes=[box, box], seed=0)
    rows = [(0, row) for row in torch.randperm(len(data)).tolist()]  # samples are keyed by (epoch, row)
    module = MoCo()
    batches = DataLoader(data, batch, sampler=rows, drop_last=True, collate_fn=collate)
    trainer = lightning.Trainer(max_epochs=1, logger=False) if lightning else SimpleNamespace(fit=fit_plainly)
    trainer.fit(module, batches)
    return module


if __name__ == "__main__":
    main(sys.argv[1])
