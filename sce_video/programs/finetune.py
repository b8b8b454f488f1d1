"""Finetune a pretrained encoder for action recognition, or train a linear probe on it.

    python tools/finetune.py recipe=ucf101 checkpoint=runs/k400 train=train.csv test=test.csv out=runs/k400_ucf
    python tools/finetune.py recipe=linear_k400 checkpoint=runs/k400 train=train.csv test=val.csv

The loop is that of pretraining (`training/loop.py`) with `methods/supervised.py`: one random clip per video and epoch,
cross-entropy. Then comes the full test protocol: probabilities averaged over clips x crops (`evaluation/classify.py`).
`testing.select` chooses the weights that are tested: the last, or the best on a validation list; best on the test list
only when asked for, and the report says it. The same command on the same folder continues a run.
"""

from __future__ import annotations

if __name__ == "__main__":
    raise SystemExit("sce_video/programs/finetune.py is no program: it is run by python tools/finetune.py")

import json
import math
import shlex
from pathlib import Path
from typing import Any

from .. import distributed
from ..config.finetune import FinetuneConfig, Select
from ..data import loader, manifest
from ..errors import InputError, log
from ..evaluation import classify
from ..evaluation.task import choose_output_file
from ..evaluation.views import Views, choose_counts, test_size
from ..runs.background_save import Saver
from ..runs.files import to_json, write_atomically
from ..runs.folder import RunFolder
from ..runs.status import Status
from ..runs.stop import StopRequest
from ..training.finetune_setup import Finetuning, load_best, set_up_finetuning, split_configs
from ..training.log import RunLog
from ..training.loop import train
from ..training.setup import open_log, open_session
from ..weights.load import load_classifier

SELECTED = {
    Select.last: "the last weights",
    Select.val: "the weights that were best on the validation list",
    Select.test: "the weights that were best on the test list itself (the usual practice; it flatters)",
}


def finetune(cfg: FinetuneConfig) -> list[dict[str, Any]]:
    """Train and test as cfg says, or continue; with splits, one after another. Return result.json's content per split.

    With cfg.predict only videos are classified, and nothing is returned.
    """
    if cfg.predict:
        classify_videos(cfg)
        return []
    out = cfg.run_folder
    with open_session(cfg.system, cfg.optim.precision) as device, StopRequest(out) as stop, Status(out) as whole:
        results = []
        for number, one in enumerate(configs := split_configs(cfg, out)):
            with RunFolder(Path(one.out), one, stop) as folder:
                task = set_up_finetuning(one, device, folder)
                if cfg.splits:
                    whole.begin(number, len(configs))
                results.append(train_and_test(task, stop))
        if cfg.splits and distributed.rank() == 0:
            print_splits(out, cfg.splits, results)
        return results


def train_and_test(task: Finetuning, stop: StopRequest) -> dict[str, Any]:
    """Train one run to its end, test it, write its files, and return its result."""
    run, cfg = task.run, task.cfg
    written = run.folder.path / "result.json"
    if run.step == run.total_steps and written.exists():
        result: dict[str, Any] = json.loads(written.read_text())
        if distributed.rank() == 0:
            print(f"{run.folder.path} is done: top-1 {100 * result['test']['top1']:.2f} %")
        return result
    with open_log(run, clips_per_step=cfg.optim.batch, every=cfg.system.log_every) as log:
        log.message(f"{'continuing' if run.step else 'training'} {describe(task)}")
        if task.selecting:
            run.evaluate = lambda run, log, saver: select(task, log, saver)
        train(run, log, stop)
        return test(task, log)


def select(task: Finetuning, log: RunLog, saver: Saver) -> None:
    """Score the selecting list by one view per video, and keep the weights if they are the best so far."""
    run, name = task.run, task.selecting
    assert name is not None
    figures, _ = predict(task, name, quick=True)
    log.evaluation(run.step, {f"{name}_{figure}": figures[figure] for figure in ("top1", "top5")})
    epoch = run.step // run.steps_per_epoch
    log.message(f"epoch {epoch}: {name} top-1 {100 * figures['top1']:.2f} % (1 view)")
    if figures["top1"] > run.notes["best_top1"]:
        run.notes |= {"best_top1": figures["top1"], "best_step": run.step}
        if distributed.rank() == 0:
            run.save(run, saver, "best", 1)


def predict(task: Finetuning, split: str, *, quick: bool) -> tuple[dict[str, float], classify.Predictions]:
    """Return the scores on a list and the predictions; the classifier goes on training as before."""
    classifier, videos = task.classifier, task.lists.videos[split]
    classifier.eval()
    predictions = classify.predict(
        lambda clips: classifier(task.encoder.normalize(clips)),
        videos,
        task.views(quick=quick),
        device=task.run.augment.device,
        decoder=task.cfg.data.decoder.value,
        workers=task.workers,
        title=f"{split} list",
    )
    classifier.train()
    return classify.scores(predictions, task.lists.ids[split], len(videos)), predictions


def test(task: Finetuning, log: RunLog) -> dict[str, Any]:
    """Run the full protocol with the selected weights, write the report's files, and return result.json's content."""
    run, cfg, lists, how = task.run, task.cfg, task.lists, task.cfg.testing.select
    if how is not Select.last:
        load_best(run)
    figures, predictions = predict(task, "test", quick=False)
    views = task.views()
    result: dict[str, Any] = {
        "checkpoint": cfg.checkpoint or None,
        "weights": "random" if cfg.model.random_weights or not cfg.checkpoint else "checkpoint",
        "backbone": task.encoder.name,
        "frozen": cfg.model.frozen,
        "train": {"list": cfg.train, "videos": len(lists.videos["train"])},
        "test": {"list": cfg.test, **figures},
        "views": vars(views),
        "selected": SELECTED[how],
        "step": run.total_steps if how is Select.last else run.notes["best_step"],
        "unreadable": [failure.path for failure in predictions.failures],
    }
    folder = run.folder.path
    if distributed.rank() == 0:
        result["per_class"] = classify.write_report(folder, predictions, lists.videos["test"], lists.ids["test"], lists.classes)
        write_atomically(folder / "result.json", to_json(result) + "\n")
    missing = figures["listed"] - figures["scored"]
    log.message(
        f"test: top-1 {100 * figures['top1']:.2f} %, top-5 {100 * figures['top5']:.2f} % of "
        f"{figures['scored']:.0f}/{figures['listed']:.0f} videos, {views.clips_per_video} clips x {views.num_crops} "
        f"crops, {SELECTED[how]}"
        + (f"; with the {missing:.0f} unreadable ones {100 * figures['top1_of_listed']:.2f} %" if missing else "")
    )
    for failure in predictions.failures:
        log.message(f"not scored, unreadable: {failure.reason}")
    log.message(
        f"done: {folder}/result.json, predictions.csv, per_class.csv, confusion.png; videos without labels: "
        f"python tools/finetune.py predict=FOLDER {shlex.quote(f'checkpoint={folder}')}"
    )
    return result


def classify_videos(cfg: FinetuneConfig) -> None:
    """Write the best classes of videos, or of their windows, by the classifier of a finished run."""
    name = Path(cfg.predict.rstrip("/")).stem
    out = choose_output_file(cfg.out, cfg.checkpoint, f"predictions_{name}", ".csv")
    with distributed.session(cfg.system.device.value) as device:
        if cfg.window_seconds and distributed.world_size() > 1:
            raise InputError("window_seconds= is done by one process: start it without torchrun")
        classifier, classes = load_classifier(cfg.checkpoint)
        videos = loader.read_videos(cfg.predict, split="val", root=cfg.root, known_health=cfg.data.health)
        clip, testing = classifier.clip, cfg.testing
        size = testing.size or test_size(int(clip["size"]))
        counts = choose_counts(testing.clips_per_video, testing.num_crops, clip["clip_seconds"])
        views = Views(*counts, int(clip["num_frames"]), clip["clip_seconds"], size, short_side=testing.short_side)
        options: dict[str, Any] = {"device": device, "decoder": cfg.data.decoder.value, "title": name}
        header, about = ["path"], list[tuple[str, ...]]()
        if cfg.window_seconds:
            found, times = classify.predict_windows(
                classifier.to(device), videos, views, every_seconds=cfg.window_seconds, **options
            )
            header += ["start", "end"]
            about = [(videos[row].path, f"{a:.2f}", f"{b:.2f}") for row, (a, b) in zip(found.rows, times, strict=True)]
        else:
            workers = loader.share_cores(device, cfg.system.workers)
            found = classify.predict(classifier.to(device), videos, views, workers=workers, **options)
            columns = manifest.columns([videos[row] for row in found.rows])
            del columns["label"]
            header, about = [*columns], [*zip(*columns.values(), strict=True)]
        if distributed.rank() == 0:
            classify.write_predictions(out, header, about, found, classes)
            print(f"written: {out}: {len(set(found.rows))}/{len(videos)} videos, {len(found.rows)} rows, {len(classes)} classes")
            for failure in found.failures:
                log.info(f"not classified, unreadable: {failure.reason}")


def describe(task: Finetuning) -> str:
    """Return one line on this run, with the derived numbers."""
    cfg, run, lists = task.cfg, task.run, task.lists
    what = "a linear layer on a frozen" if cfg.model.frozen else "all of a"
    start = f"from {cfg.checkpoint}" if cfg.checkpoint and not cfg.model.random_weights else "with random weights"
    return (
        f"{what} {task.encoder.name} {start}: {len(lists.videos['train'])} videos, {len(lists.classes)} classes, "
        f"{cfg.optim.epochs} epochs x {run.steps_per_epoch} steps of {cfg.optim.batch}, lr {cfg.optim.lr:g}, "
        f"{distributed.world_size()} process(es) on {run.augment.device.type}, from step {run.step} of "
        f"{run.total_steps}, into {run.folder.path}"
    )


def print_splits(out: Path, splits: list[int], results: list[dict[str, Any]]) -> None:
    """Print the splits and their mean, and write them to splits.json."""
    top = {name: [100 * result["test"][name] for result in results] for name in ("top1", "top5")}
    print(f"{'split':<8}{'top-1':>8}{'top-5':>8}   scored")
    for split, result, top1, top5 in zip(splits, results, *top.values(), strict=True):
        print(f"{split:<8}{top1:8.2f}{top5:8.2f}   {result['test']['scored']:.0f}/{result['test']['listed']:.0f}")
    means = {name: math.fsum(values) / len(values) for name, values in top.items()}
    print(f"{'mean':<8}{means['top1']:8.2f}{means['top5']:8.2f}")
    summary = {"splits": dict(zip(map(str, splits), results, strict=True)), "mean": means}
    write_atomically(out / "splits.json", to_json(summary) + "\n")
    print(f"written: {out / 'splits.json'}")
