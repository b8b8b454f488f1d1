"""Smallest and largest values of numeric options, where the options' own rules give none."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from ..errors import InputError

# Smallest and largest value of numeric options, by their last name or two. Beyond them a run would fail far from the option,
# for want of memory above all, or train to nonsense.
_RANGES = {
    name: (low, high)
    for names, low, high in (
        ("seed", 0, 2**63 - 1),
        ("size short_side_min short_side_max num_frames", 0, 8192),
        ("clip_seconds warmup_epochs freeze_epochs", 0, 1e6),
        ("speed_min speed_max ratio_min ratio_max erase_ratio_min erase_ratio_max blur_sigma_min blur_sigma_max", 1e-3, 1e3),
        ("mean", -10, 10),
        ("projector_layers", 1, 32),
        ("predictor_layers", 0, 32),
        ("momentum momentum_end", 0, 1),
        ("prototypes", 2, 2**20),
        ("epsilon", 0.01, 10),
        ("iterations", 1, 100),
        ("directions", 1, 2**16),
        ("lejepa.weight", 1e-6, 0.999999),
        ("std temp temp_target temp_target_start", 1e-4, 100),
        ("brightness contrast saturation rand_augment_operations views weight_decay mixup_alpha cutmix_alpha", 0, 1000),
        ("solarize_threshold collapse_std coeff_start frame_jitter max_bad_fraction temporal_difference_probability", 0, 1),
        ("area_min area_max layer_decay", 1e-6, 1),
        ("dropout label_smoothing optim.momentum", 0, 0.9999),
        ("blur_kernel", 1, 999),
        ("hidden projection", 2, 65536),
        ("queue", 0, 2**24),
        ("trust_coefficient lr_per_256", 1e-12, 1e30),
        ("batch", 2, 2**20),
        ("clips_per_video", 0, 10**4),
        ("repeats shots monitor.clips_per_video", 1, 10**4),
        ("epochs every_epochs k keep log_every save_every accumulate", 1, 10**9),
        ("workers", -1, 1024),
        ("step_timeout read_timeout", 1e-3, 1e9),
        ("keep_every worker_videos agree_every collapse_steps", 0, 2**31),
    )
    for name in names.split()
}


def check_ranges(options: Any, prefix: str = "") -> None:
    """Raise InputError for a number outside its range, without one for those that are not finite or above 2^31."""
    for item in fields(options):
        value, name = getattr(options, item.name), prefix + item.name
        if is_dataclass(value):
            check_ranges(value, f"{name}.")
        for number in value if isinstance(value, list) else [value]:
            low, high = _RANGES.get(".".join(name.split(".")[-2:])) or _RANGES.get(item.name) or (-(2**31), 2**31)
            if isinstance(number, (int, float)) and not low <= number <= high:
                raise InputError(f"{name} ({number}) must be a number from {low:g} to {high:g}")
