"""SCE's relatives: each loss equals its paper's formula written as loops, and each method keeps the loop's promises."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gloo
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY_RECIPE, compose_pretrain
from torch import Tensor

from sce_video import losses
from sce_video.config.pretrain import PretrainConfig
from sce_video.errors import InputError
from sce_video.methods import METHODS, build_method, check_gradients, check_method
from sce_video.programs.pretrain import pretrain
from sce_video.runs import checkpoint
from sce_video.weights.load import load_encoder

OWN = {"moco": ["moco.queue=40"], "ressl": ["ressl.queue=40"], "swav": ["swav.prototypes=20", "swav.freeze_epochs=0"]}


def words(method: str, *more: str) -> list[str]:
    shared = [word for word in TINY_RECIPE if method == "sce" or not word.startswith("sce.")]
    return [*shared, f"method={method}", *OWN.get(method, []), *more]


def units(*shape: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def dot(a: Tensor, b: Tensor) -> float:
    return sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))


def test_in_batch_equals_loops() -> None:
    query, keys = units(3, 5, seed=0), units(7, 5, seed=1)
    expected = 0.0
    for b in range(3):
        near = [math.exp(dot(query[b], key) / 0.3) for key in keys]
        expected -= math.log(near[b + 2] / sum(near)) / 3
    assert losses.in_batch(query, keys, temp=0.3, offset=2).item() == pytest.approx(2 * 0.3 * expected, abs=1e-12)


def test_nt_xent_equals_loops() -> None:
    """Over all rows of both views; this rank has rows 2 to 4 of 6."""
    first, second = units(6, 5, seed=0), units(6, 5, seed=1)
    rows = [*first, *second]
    total = 0.0
    for anchor in (2, 3, 4, 8, 9, 10):
        positive = (anchor + 6) % 12
        others = sum(math.exp(dot(rows[anchor], rows[n]) / 0.2) for n in range(12) if n != anchor)
        total -= math.log(math.exp(dot(rows[anchor], rows[positive]) / 0.2) / others) / 6
    loss = losses.nt_xent(first[2:5], second[2:5], first, second, temp=0.2, offset=2)
    assert loss.item() == pytest.approx(total, abs=1e-12)


def test_byol_equals_loops() -> None:
    query, key = units(4, 5, seed=0), units(4, 5, seed=1)
    expected = sum((x - y) ** 2 for q, k in zip(query.tolist(), key.tolist(), strict=True) for x, y in zip(q, k, strict=True)) / 4
    assert losses.byol(query, key).item() == pytest.approx(expected, abs=1e-12)


def test_ressl_equals_loops_and_is_sce_without_the_positive() -> None:
    query, key, queue = units(3, 5, seed=0), units(3, 5, seed=1), units(9, 5, seed=2)
    total, ceiling = 0.0, 0.0
    for b in range(3):
        target = [math.exp(dot(key[b], other) / 0.04) for other in queue]
        near = [math.exp(dot(query[b], other) / 0.1) for other in queue]
        total -= sum(t / sum(target) * math.log(n / sum(near)) for t, n in zip(target, near, strict=True)) / 3
        positive = math.exp(dot(query[b], key[b]) / 0.1)
        ceiling -= math.log(1 - positive / (positive + sum(near))) / 3
    found = losses.ressl(query, key, queue, temp=0.1, temp_target=0.04).item()
    assert found == pytest.approx(total, abs=1e-12)
    sce = losses.sce(query, key, queue, temp=0.1, temp_target=0.04, coeff=0.0).item()
    assert sce == pytest.approx(found + ceiling, abs=1e-9)


def test_codes_and_swapped_prediction_equal_loops() -> None:
    scores, other = units(6, 4, seed=0), units(6, 4, seed=1)
    codes = [[math.exp(value / 0.5) for value in row] for row in scores.tolist()]
    for _ in range(3):
        for k in range(4):
            column = sum(row[k] for row in codes)
            codes = [[value / column / 4 if i == k else value for i, value in enumerate(row)] for row in codes]
        codes = [[value / sum(row) / 6 for value in row] for row in codes]
    codes = [[6 * value for value in row] for row in codes]
    found = losses.sinkhorn(scores, epsilon=0.5, iterations=3)
    assert torch.allclose(found, torch.tensor(codes, dtype=torch.float64), atol=1e-12)
    total = 0.0
    for row, code in zip(other.tolist(), codes, strict=True):
        near = [math.exp(value / 0.1) for value in row]
        total -= sum(c * math.log(n / sum(near)) for c, n in zip(code, near, strict=True)) / 6
    assert losses.swapped(other, found, temp=0.1).item() == pytest.approx(total, abs=1e-12)


def test_sinkhorn_uses_all_prototypes_equally() -> None:
    codes = losses.sinkhorn(units(60, 5, seed=3), epsilon=0.5, iterations=100)
    assert torch.allclose(codes.sum(dim=0), torch.full((5,), 12.0, dtype=torch.float64), atol=1e-6)


def test_sigreg_equals_loops() -> None:
    rows, directions = units(4, 3, seed=0) * 2, units(2, 3, seed=1).T
    knots = [-5 + 10 * index / 16 for index in range(17)]
    total = 0.0
    for direction in directions.T:
        values = [dot(row, direction) for row in rows]
        heights = []
        for t in knots:
            real = sum(math.cos(t * value) for value in values) / 4 - math.exp(-t * t / 2)
            imaginary = sum(math.sin(t * value) for value in values) / 4
            heights.append((real**2 + imaginary**2) * math.exp(-t * t / 2))
        total += 4 * sum((a + b) / 2 * 10 / 16 for a, b in zip(heights, heights[1:], strict=False)) / 2
    assert losses.sigreg(rows, directions).item() == pytest.approx(total, abs=1e-12)


def test_sigreg_prefers_a_normal_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    directions = F.normalize(torch.randn(8, 64, generator=generator), dim=0)
    normal = torch.randn(500, 8, generator=generator)
    least = losses.sigreg(normal, directions)
    assert least < losses.sigreg(2 * normal, directions)
    assert least < losses.sigreg(normal * 0, directions)
    assert least < losses.sigreg(normal.sign(), directions) or least < losses.sigreg(normal[:, :1].expand(-1, 8), directions)


def built(method: str, *more: str, dtype: torch.dtype = torch.float64) -> Any:
    cfg = compose_pretrain(*words(method, "data.train=x.csv", *more))
    torch.manual_seed(0)
    return build_method(cfg).to(dtype)


def clips(count: int = 2, size: int = 32) -> list[Tensor]:
    return [
        torch.randn(4, 3, 4, size, size, generator=torch.Generator().manual_seed(v), dtype=torch.float64) for v in range(count)
    ]


def test_sce_with_coeff_one_is_moco() -> None:
    same = ["temp=0.2", "queue=40", "projector_layers=2", "predictor_layers=0"]
    sce = built("sce", "sce.coeff=1", *(f"sce.{word}" for word in same), "sce.momentum=0.9", "sce.momentum_end=0.9")
    moco = built("moco", *(f"moco.{word}" for word in same), "moco.momentum=0.9")
    for _ in range(2):
        steps = [method(clips(3), None, 0.5) for method in (sce, moco)]
        assert steps[0].loss.item() == pytest.approx(steps[1].loss.item(), abs=1e-7)
        for method, step in zip((sce, moco), steps, strict=True):
            method.after_step(step.keys, 0.5)
    assert torch.equal(sce.queue.keys, moco.queue.keys)
    assert all(torch.equal(a, b) for a, b in zip(sce.target.parameters(), moco.target.parameters(), strict=True))


def test_sce_with_keys_of_the_step_and_no_queue() -> None:
    method = built("sce", "sce.use_keys=true", "sce.queue=0")
    step = method(clips(), None, 0.0)
    queries, keys = [method.online(view) for view in clips()], step.keys
    options = {"temp": 0.1, "temp_target": 0.05, "coeff": 0.5}
    expected = [losses.sce(queries[j], keys[i], None, **options, batch_keys=keys[i]).item() for j, i in ((1, 0), (0, 1))]
    assert step.loss.item() == pytest.approx(sum(expected) / 2, abs=1e-10)
    method.after_step(step.keys, 0.0)
    with pytest.raises(InputError, match=r"sce.queue \(0\) must be positive, or 0 with sce.use_keys=true"):
        built("sce", "sce.queue=0")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("views", [2, 3, 4])
def test_every_method_takes_several_clips_of_a_video(method: str, views: int) -> None:
    more = [f"augment.global_views={views}", *([f"{method}.queue=40"] if method in ("sce", "moco", "ressl") else [])]
    made = built(method, *more)
    check_method(made, num_global=views)
    step = made(clips(views), None, 0.5)
    step.loss.backward()
    check_gradients(made)
    if hasattr(made, "count_parts"):
        parts = [made(clips(views), None, 0.5, part=part, keys=step.keys).loss.item() for part in range(made.count_parts(views))]
        assert sum(parts) == pytest.approx(step.loss.item(), abs=1e-9)
    made.after_step(step.keys, 0.5)


def test_prototypes_of_swav_are_trained_and_keep_unit_length() -> None:
    made = built("swav")
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    before = made.prototypes.detach().clone()
    made(clips(), None, 0.5).loss.backward()
    optimizer.step()
    assert (made.prototypes - before).abs().max() > 1e-4
    made.after_step([], 0.5)
    assert torch.allclose(made.prototypes.norm(dim=1), torch.ones(20, dtype=torch.float64))
    frozen = built("swav", "swav.freeze_epochs=2")
    frozen(clips(), None, 0.1).loss.backward()
    assert not frozen.prototypes.grad.any()
    check_gradients(frozen)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["method=simsiam"], "method=simsiam is not one of sce, moco, mocov3, ressl, simclr, byol, swav, lejepa, nor package"),
        (["method=byol", "sce.coeff=0.5"], "option 'sce.coeff' belongs to method=sce, which is not the chosen one"),
        (["byol.momentum=0.9"], "option 'byol.momentum' belongs to method=byol"),
        (["method=byol", "byol.momentun=0.9"], "unknown option 'byol.momentun': did you mean byol.momentum"),
        (["method=byol", "byol.momentum=2"], r"byol.momentum \(2.0\) must be a number from 0 to 1"),
        (["method=moco", "moco.queue=64"], r"moco.queue \(64\) must hold at least one step's keys, 2 \* optim.batch = 128"),
        (["augment.global_views=4"], r"sce.queue \(200\) must hold .*every step enqueues all 4 global views"),
        (["method=json:JSONDecoder"], "method=json:JSONDecoder is not a method: `build.cfg.` is missing"),
    ],
)
def test_wrong_methods_and_options_are_refused(given: list[str], sentence: str) -> None:
    from sce_video.command_line import compose_options

    with pytest.raises(InputError, match=sentence):
        compose_options("pretrain", PretrainConfig, ["sce.queue=200", *given] if "augment.global_views=4" in given else given)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["method=simclr", *["augment.local.views=2", "augment.local.size=16"]], "SimCLR uses no local views"),
        (["method=byol", "augment.global_views=1"], "BYOL needs 2 global views of a video: add augment.global_views=2"),
    ],
)
def test_views_that_do_not_fit_a_method_are_refused(given: list[str], sentence: str, videos: Path, tmp_path: Path) -> None:
    method = given[0].removeprefix("method=")
    with pytest.raises(InputError, match=sentence):
        pretrain(compose_pretrain(*words(method, f"data.train={videos / 'train.csv'}", f"out={tmp_path / 'run'}", *given[1:])))
    assert not (tmp_path / "run").exists()


def test_both_encoders_of_a_run_load(videos: Path, tmp_path: Path) -> None:
    more = [f"data.train={videos / 'train.csv'}", "optim.epochs=1", "optim.warmup_epochs=0"]
    run = pretrain(compose_pretrain(*words("byol", *more, f"out={tmp_path / 'byol'}")))
    state = checkpoint.load(checkpoint.find(run))[0]["method"]
    for branch, other in (("online", "target"), ("target", "online")):
        weights = load_encoder(run, branch=branch).backbone.state_dict()
        assert all(torch.equal(value, state[f"{branch}.backbone.{name}"]) for name, value in weights.items())
        assert any(not torch.equal(value, state[f"{other}.backbone.{name}"]) for name, value in weights.items())
    alone = pretrain(compose_pretrain(*words("simclr", *more, f"out={tmp_path / 'simclr'}")))
    with pytest.raises(InputError, match="weights.branch=target: .* holds no target encoder"):
        load_encoder(alone, branch="target")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_on_two_ranks_as_on_one(method: str, videos: Path, tmp_path: Path) -> None:
    states = []
    for world in (1, 2):
        folder = tmp_path / str(world)
        more = ["optim.lr_per_256=0.3", "optim.epochs=1", "optim.warmup_epochs=0", f"data.train={videos / 'train.csv'}"]
        results = gloo.run(world, folder, words(method, *more, f"out={folder / 'run'}"), dtype="float64")
        assert all("error" not in result for result in results), results
        states.append(results[0]["state"])
    assert max((a.double() - b.double()).abs().max().item() for a, b in zip(*map(dict.values, states), strict=True)) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_resumes_to_the_bit(method: str, videos: Path, tmp_path: Path) -> None:
    digests = []
    for name in ("whole", "parts"):
        out = tmp_path / name
        more = [f"data.train={videos / 'train.csv'}", f"out={out}", "optim.epochs=2", "system.save_every=2", "system.keep=9"]
        pretrain(compose_pretrain(*words(method, *more)))
        if name == "parts":
            for step in ("step_00000006", "step_00000004"):
                for path in (out / "checkpoints" / step).iterdir():
                    path.unlink()
                (out / "checkpoints" / step).rmdir()
            pretrain(compose_pretrain(*words(method, *more)))
        digests.append(checkpoint.state_digest(checkpoint.load(checkpoint.find(out))[0]))
    assert digests[0] == digests[1]


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["tiny3d", "r3d18"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_two_steps_with(method: str, backbone: str) -> None:
    made = built(method, f"model.backbone={backbone}", dtype=torch.float32)
    optimizer = torch.optim.SGD(made.parameters(), lr=0.01)
    for where in (0.0, 0.5):
        step = made([view.float() for view in clips(2, 32)], None, where)
        optimizer.zero_grad()
        step.loss.backward()
        check_gradients(made)
        optimizer.step()
        made.after_step(step.keys, where)
        assert math.isfinite(step.loss.item())
