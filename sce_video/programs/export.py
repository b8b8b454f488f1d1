"""Export an encoder to another program, load the file into that program's network, and compare the features.

| to=          | file                                         | supported backbones           | verified with                    |
|--------------|----------------------------------------------|-------------------------------|----------------------------------|
| pytorchvideo | torch.save of {"model_state": ...}           | r3d50                         | create_resnet, strict            |
| slowfast     | the same, with SlowFast's key names          | r3d50                         | our r3d50, names converted back  |
| torchvision  | torch.save of a state dict without `fc`      | r2plus1d18, r3d18_torchvision | its own model                    |
| safetensors  | plain keys, description, projector if any    | all                           | load_encoder, without backbone=  |
| onnx         | clips in 0..1 -> features, normalising       | all                           | onnxruntime, two batch sizes     |

r3d18 fits neither pytorchvideo (create_resnet builds only bottleneck networks) nor SlowFast (whose first stage is always
four times as wide as its stem; layouts can still read such names).
The file is renamed to its final name after verification; an existing file is never overwritten.
"""

from __future__ import annotations

if __name__ == "__main__":
    raise SystemExit("sce_video/programs/export.py is no program: it is run by python tools/export.py")

import importlib.util
import json
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..config.evaluate import ExportConfig
from ..errors import InputError
from ..models import backbones, published
from ..models.encoder import FrozenEncoder
from ..runs.files import replace_atomically
from ..weights import layouts, load, read

FITS = {"pytorchvideo": ["r3d50"], "slowfast": ["r3d50"], "torchvision": ["r2plus1d18", "r3d18_torchvision"]}
NEEDS = {"safetensors": ["safetensors"], "onnx": ["onnx", "onnxscript"]}
TOLERANCE = 1e-5  # largest allowed difference of a feature
TOLERANCE_ONNX = 1e-4  # its kernels sum in another order


def export(cfg: ExportConfig) -> float | None:
    """Write cfg.out, verify it and return the maximum absolute difference; None without onnxruntime.

    Raises InputError if the format does not support the network, the file exists, a package is missing, or the features
    differ (then writes no file).
    """
    to, out = cfg.to.value, Path(cfg.out)
    refuse_existing(out)
    require_packages(to)
    encoder = load.load_encoder(
        cfg.checkpoint, cfg.backbone or None, trust=cfg.trust, key=cfg.weights.key, branch=cfg.weights.branch.value
    )
    print(encoder.report)
    require_fit(to, encoder.name)
    frames, size = cfg.num_frames or int(encoder.clip["num_frames"]), cfg.size or int(encoder.clip["size"])
    clips = torch.rand(2, 3, frames, size, size, generator=torch.Generator().manual_seed(0))
    out.parent.mkdir(parents=True, exist_ok=True)
    with replace_atomically(out) as work:
        WRITERS[to](encoder, work, clips)
        difference = prove(encoder, to, work, clips)
        tolerance = TOLERANCE_ONNX if to == "onnx" else TOLERANCE
        if difference is not None and not difference <= tolerance:  # also NaN
            raise InputError(
                f"to={to}: the features differ by {difference:.3g}, allowed are {tolerance:g}; nothing was written. Check "
                "for weights that are not finite"
            )
        refuse_existing(out)
    proof = "not verified: pip install onnxruntime" if difference is None else f"{difference:.3g}"
    print(f"written: {out} ({out.stat().st_size / 1e6:.1f} MB)\nmaximum absolute difference of the features: {proof}")
    print(how_to_load(to, encoder, out))
    return difference


def refuse_existing(out: Path) -> None:
    """Raise InputError if the file exists."""
    if os.path.lexists(out):
        raise InputError(f"out={out} exists: choose another file, or remove it")


def require_packages(to: str) -> None:
    """Raise InputError if a package that the format needs (extra `export`) is missing."""
    for package in NEEDS.get(to, []):
        if importlib.util.find_spec(package) is None:
            raise InputError(f"to={to} needs the package {package}: pip install 'sce_video[export]'")


def require_fit(to: str, name: str) -> None:
    """Raise InputError if the format does not support the network, listing the formats that do."""
    if to in FITS and name not in FITS[to]:
        offered = [other for other in WRITERS if other not in FITS or name in FITS[other]]
        raise InputError(f"to={to} fits {', '.join(FITS[to])}, not {name}: for {name} there are {', '.join(offered)}")


def write_wrapped(layout: str) -> Callable[[FrozenEncoder, Path, Tensor], None]:
    """Return a function that writes {"model_state": backbone in `layout`}."""

    def write(encoder: FrozenEncoder, path: Path, clips: Tensor) -> None:
        torch.save({"model_state": layouts.from_backbone(encoder.backbone.state_dict(), layout)}, path)

    return write


def write_torchvision(encoder: FrozenEncoder, path: Path, clips: Tensor) -> None:
    """Write a state dict in the format of torchvision's weight files, without `fc`."""
    torch.save(layouts.from_backbone(encoder.backbone.state_dict(), "torchvision"), path)


def write_safetensors(encoder: FrozenEncoder, path: Path, clips: Tensor) -> None:
    """Write backbone and projector, and the encoder's description as metadata."""
    from safetensors.torch import save  # its save_file makes files that only the owner reads

    backbone = encoder.backbone.state_dict()
    found = layouts.to_backbone(backbone)
    if found is None or len(found.backbone) < len(backbone):  # a user's network with other key names
        backbone = layouts.from_backbone(backbone, layouts.OURS)
    projector = {} if encoder.projector is None else encoder.projector.state_dict()
    tensors = {**backbone, **{f"projector.{key}": value for key, value in projector.items()}}
    about = {"backbone": encoder.name, "mean": encoder.mean, "std": encoder.std, **encoder.clip}
    metadata = {"format": "pt", read.DESCRIPTION: json.dumps(about)}
    path.write_bytes(save({key: value.clone().contiguous() for key, value in tensors.items()}, metadata=metadata))


def write_onnx(encoder: FrozenEncoder, path: Path, clips: Tensor) -> None:
    """Write one file: float clips in 0..1 [batch, 3, T, S, S] -> features [batch, width], with dynamic `batch`."""
    with warnings.catch_warnings():
        # torch 2.11's exporter calls deprecated functions of torch.
        warnings.simplefilter("ignore", FutureWarning)
        torch.onnx.export(
            encoder,
            (clips,),
            path,
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=["clips"],
            output_names=["features"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )


WRITERS: dict[str, Callable[[FrozenEncoder, Path, Tensor], None]] = {
    "pytorchvideo": write_wrapped("pytorchvideo"),
    "slowfast": write_wrapped("slowfast"),
    "torchvision": write_torchvision,
    "safetensors": write_safetensors,
    "onnx": write_onnx,
}


@torch.no_grad()
def prove(encoder: FrozenEncoder, to: str, path: Path, clips: Tensor) -> float | None:
    """Return the maximum absolute difference of the features between the encoder and the network loaded from `path`.

    clips float in 0..1 [2, 3, T, S, S]. Returns None for ONNX without onnxruntime.
    """
    if to == "onnx":
        return _verify_onnx(encoder, path, clips)
    expected = encoder(clips)
    if to == "safetensors":
        ours = encoder.name not in backbones.BACKBONES
        found = load.load_encoder(path, encoder.name if ours else None)(clips)
    elif to == "slowfast":
        found = load.load_encoder(path, encoder.name).backbone(encoder.normalize(clips))
    else:
        found = _load_published(encoder.name, path)(encoder.normalize(clips))
    return _max_difference(found, expected)


def _max_difference(found: Tensor, expected: Tensor) -> float:
    if found.ndim == 5:  # pytorchvideo's network without a head returns feature maps [B, C, T, H, W]
        found = found.mean(dim=(2, 3, 4))
    assert found.shape == expected.shape
    return float((found - expected).abs().max())


def _load_published(name: str, path: Path) -> nn.Module:
    """Load the file into the library's network, as the library's users do."""
    network = published.published(name)
    if hasattr(network, "fc"):
        network.fc = nn.Identity()
    state = torch.load(path, map_location="cpu", weights_only=True)
    network.load_state_dict(state.get("model_state", state))
    return network.eval()


def _verify_onnx(encoder: FrozenEncoder, path: Path, clips: Tensor) -> float | None:
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    differences = []
    for batch in (clips, clips[:1]):
        (features,) = session.run(["features"], {"clips": batch.numpy()})
        differences.append(_max_difference(torch.from_numpy(features), encoder(batch)))
    return max(differences)


def _of_channels(value: float | Sequence[float]) -> list[float]:
    return [*value] if isinstance(value, Sequence) else [value] * 3


def how_to_load(to: str, encoder: FrozenEncoder, out: Path) -> str:
    """Return lines of instructions: how the other program loads the file, and its input clips."""
    clip = f"clips [B, 3, T, H, W] in 0..1, normalised by (clips - {encoder.mean}) / {encoder.std}"
    if to == "slowfast":
        return "\n".join(
            (
                "SlowFast's options (its `slow` network has the same stem, (1, 7, 7)):",
                f"  TRAIN.CHECKPOINT_FILE_PATH {out.resolve()} TRAIN.CHECKPOINT_TYPE pytorch",
                "  MODEL.MODEL_NAME ResNet MODEL.ARCH slow RESNET.DEPTH 50 RESNET.TRANS_FUNC bottleneck_transform",
                '  RESNET.STRIDE_1X1 False RESNET.NUM_BLOCK_TEMP_KERNEL "[[3], [4], [6], [3]]"',
                f'  DATA.INPUT_CHANNEL_NUM "[3]" DATA.NUM_FRAMES {encoder.clip["num_frames"]:g}',
                f'  DATA.MEAN "{_of_channels(encoder.mean)}" DATA.STD "{_of_channels(encoder.std)}"',
                "the file holds no head: SlowFast reports head.projection as not loaded",
            )
        )
    return {
        "pytorchvideo": "create_resnet(model_depth=50, stem_conv_kernel_size=(1, 7, 7), head=None).load_state_dict("
        f'torch.load("{out}", weights_only=True)["model_state"]); {clip}',
        "torchvision": f'network.load_state_dict(torch.load("{out}", weights_only=True), strict=False), all but `fc`; {clip}',
        "safetensors": f'sce_video.load_encoder("{out}"); clips uint8, or float in 0..1',
        "onnx": f'onnxruntime.InferenceSession("{out}").run(["features"], {{"clips": ...}}); clips float32 in 0..1, of the '
        "exported number of frames and size, any batch",
    }[to]
