"""Write the features of a list or folder of videos to a file for other programs.

`x.npz` (NumPy): `features` float32 [N, width], `paths`, `labels` ("" without a label), and `projections` if requested; of a list
with segments also its columns (`start`, `end`, ...: float64, nan for none).
`x.safetensors`: the same arrays, with paths and labels in the rows of `x.csv` beside it. Only readable videos have a row;
the others are printed.
"""

from __future__ import annotations

if __name__ == "__main__":
    raise SystemExit("sce_video/programs/embed.py is no program: it is run by python tools/features.py")

from pathlib import Path

import numpy as np

from .. import distributed
from ..config.evaluate import FeaturesConfig
from ..data import loader, manifest
from ..data.manifest import Video
from ..errors import InputError, log
from ..evaluation import extract, task
from ..runs.files import replace_atomically, write_rows
from ..weights import load


def write_features(cfg: FeaturesConfig) -> extract.Features:
    """Extract the features or read them from the cache, write cfg.out, and return them on every rank."""
    out = Path(cfg.out)
    files = [out, out.with_suffix(".csv")] if out.suffix == ".safetensors" else [out]
    for path in files:
        task.create_folder_for(path)
    with distributed.session(cfg.device.value, precision=cfg.precision.value) as device:
        encoder = load.load_encoder(
            cfg.checkpoint, cfg.backbone or None, trust=cfg.trust, key=cfg.weights.key, branch=cfg.weights.branch.value
        ).to(device)
        if cfg.projector and encoder.projector is None:
            raise InputError(f"projector=true: {cfg.checkpoint} holds no projector, only the backbone")
        videos = loader.read_videos(cfg.data, split="train", root=cfg.root, labels=cfg.labels.value, known_health=cfg.health)
        found = extract.extract(
            encoder,
            videos,
            task.choose_views(cfg, encoder),
            device=device,
            kinds=("backbone", "projector") if cfg.projector else ("backbone",),
            decoder=cfg.decoder.value,
            workers=loader.share_cores(device, cfg.workers),
            cached=cfg.cache,
            title="videos",
        )
        if distributed.rank() == 0:
            write(out, found, [videos[row] for row in found.rows])
            print(
                f"written: {' and '.join(map(str, files))}: {len(found.rows)}/{len(videos)} videos, "
                f"{found.features['backbone'].shape[1]} features each ({found.decoded} decoded now)"
            )
            for failure in found.failures:
                log.info(f"skipped, unreadable: {failure.reason}")
        return found


def write(out: Path, found: extract.Features, videos: list[Video]) -> None:
    """Write the file atomically."""
    arrays = {"features": found.features["backbone"].contiguous()}
    if "projector" in found.features:
        arrays["projections"] = found.features["projector"].contiguous()
    with replace_atomically(out) as work:
        if out.suffix == ".npz":
            text = {name: np.array(column) for name, column in manifest.columns(videos).items()}
            paths, labels = text.pop("path"), text.pop("label")
            times = {name: np.array([float(value or "nan") for value in column]) for name, column in text.items()}
            with open(work, "wb") as file:
                np.savez(file, **{name: tensor.numpy() for name, tensor in arrays.items()}, paths=paths, labels=labels, **times)  # type: ignore[arg-type]
        else:
            try:
                from safetensors.torch import save  # its save_file makes files that only the owner reads
            except ModuleNotFoundError as error:
                raise InputError("writing .safetensors needs safetensors: pip install safetensors, or out=x.npz") from error
            work.write_bytes(save(arrays))
            columns = manifest.columns(videos)
            write_rows(out.with_suffix(".csv"), [*columns], zip(*columns.values(), strict=True))
