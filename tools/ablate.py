#!/usr/bin/env python3
"""Train variants of a detector with several seeds on one data set, and compare them in one table.

    tools/ablate.py --config-file cells.yaml --output output/ablation --seeds 1 2 3 --jobs 2 \\
        --variants ATSS=configs/ATSS/atss_R_50_FPN_1x.yaml CLQ=configs/CLQ/clq_R_50_FPN_1x.yaml \\
                   "CLQ, 1 GIoU=configs/CLQ/clq_R_50_FPN_1x.yaml MODEL.CLQ.BOX.LOSS_WEIGHT 1.0"

The study's config sets the data, the backbone, the widths and the schedule. The config of a variant sets the parts of
the detector (all keys that choose one, such as MODEL.CLQ.TOWERS, ASSIGN, BOX, CLS, QUALITY, ALIGN and REFINE), so that
variants differ in nothing else. A variant of configs/comparison sets its meta-architecture, its pyramid and the keys
of its heads; it is trained with the study's learning rate unless the variant overrides SOLVER.BASE_LR.

The last column of the table is the AP minus that of --reference, paired by images and seeds, with the 95% interval of
a bootstrap over both; forest.png shows it.

A second call continues incomplete trainings from their last checkpoints. The tool writes table.md, results.json,
losses.png and forest.png for the variants that are complete, beside the trainings. The exit status is 1 if a training
failed.
"""

import argparse
import itertools
import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import clq
import torch
from clq.benchmark.profiling import count_flops, count_parameters
from clq.data.checks import check_datasets
from clq.data.datasets import require_files
from clq.data.reading import read_images
from clq.engine.config_checks import check_model, check_training, make_folder
from clq.errors import UserError
from clq.evaluation.coco import RESULTS_FILE, truth_file
from clq.evaluation.metrics import METRICS, box_metrics
from clq.experiments.ablation import differences, markdown_table, metric_cells, parse_study_variant
from clq.experiments.bootstrap import Difference, compare
from clq.experiments.comparison import (
    cached_matches,
    check_reference,
    check_same_test_set,
    interval_cell,
    wanted_half_width,
    what_is_needed,
)
from clq.experiments.forest_plot import draw_forest
from clq.experiments.runs import Run, loss_curves, train_all
from clq.inference.predictor import Predictor
from clq.utils.cli import Variant, count, positive, run_cli
from matplotlib import colormaps
from matplotlib.figure import Figure


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="config of the study: data, backbone, widths, schedule")
    parser.add_argument(
        *("--variants", "--rows"),  # --rows is the older spelling
        nargs="+",
        required=True,
        metavar="VARIANT",
        help="[NAME=][CONFIG.yaml] [KEY VALUE ...]",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="seeds of each variant; default: 1 2 3")
    parser.add_argument("--output", required=True, type=Path, help="folder for the trainings and results")
    parser.add_argument("--jobs", type=positive, help="trainings at a time; default: the number of GPUs, or 1")
    parser.add_argument(
        "--speed-images", type=count, default=10, help="test images on which speed is measured; 0: none; default: 10"
    )
    parser.add_argument("--reference", metavar="NAME", help="variant to compare the others with; default: the first")
    parser.add_argument(
        "--half-width", type=wanted_half_width, default=0.7, help="half-width of the wanted intervals; default: 0.7"
    )
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="overrides for all: KEY VALUE ...")
    return parser.parse_args(argv)


def make_runs(variants: Sequence[Variant], args) -> dict[str, list[Run]]:
    """The runs of each variant, one per seed, by the variant's name.

    Raises:
        UserError: a name is too long for a folder, or two names give the same folder.
    """
    runs = {}
    for variant in variants:
        name = variant.name
        if len(name.encode()) > 200:  # file systems allow 255 bytes
            raise UserError(f"--variants: the name {name[:60]}... is too long for a folder; give it a shorter NAME=.")
        folder = args.output / "".join(c if c.isalnum() else "_" for c in name)
        if any(folder == others[0].folder.parent for others in runs.values()):
            raise UserError(f"--variants: two variants would use the folder {folder}; give each a different NAME=.")
        runs[name] = [
            Run(args.config_file, (*variant.opts, *args.opts, "SEED", str(seed)), folder / f"seed_{seed}")
            for seed in dict.fromkeys(args.seeds)
        ]
    return runs


def measure(run: Run, cfg) -> dict[str, float]:
    """Metrics of a finished run on the first test set."""
    results = results_of(run, cfg)
    return box_metrics(truth_file(results, cfg.DATASETS.TEST[0]), str(results), cfg.TEST.DETECTIONS_PER_IMAGE)


def results_of(run: Run, cfg) -> Path:
    """The file with the detections of a finished run on the first test set."""
    return run.folder / "inference" / cfg.DATASETS.TEST[0] / RESULTS_FILE


def differences_from(reference: str, runs: dict[str, list[Run]], configs, args) -> dict[str, Difference]:
    """The AP of each other variant minus that of the reference.

    Draws them, and prints what narrower intervals need.
    """
    matches = {}
    for name, seeds in runs.items():
        cfg = configs[name]
        matches[name] = {}
        for seed, run in zip(dict.fromkeys(args.seeds), seeds, strict=True):
            results = results_of(run, cfg)
            truth = truth_file(results, cfg.DATASETS.TEST[0])
            matches[name][seed] = cached_matches(run.folder, truth, results, cfg.TEST.DETECTIONS_PER_IMAGE)
    found = compare(matches, reference)
    if found:
        draw_forest(found, reference, args.output / "forest.png")
        images = len(next(iter(matches[reference].values())).image_ids)
        print("", *what_is_needed(found, reference, args.half_width, images), sep="\n")
    return found


def speeds(runs: dict[str, list[Run]], configs, count: int) -> dict[str, dict[str, float]]:
    """Parameters, multiply-adds and images per second of each variant.

    Speed is measured at batch 1, from the decoded image to the boxes, with the variants taking turns on each image.
    Multiply-adds are counted at the size that the first test image has at the network's input.
    """
    predictors = {}
    for name, (first, *_) in runs.items():
        configs[name].merge_from_list(["MODEL.WEIGHTS", str(first.folder / "model_final.pth")])
        predictors[name] = Predictor(configs[name])
    cfg = next(iter(configs.values()))
    images = [image for _, image in itertools.islice(read_images(cfg, cfg.DATASETS.TEST[0]), count)]
    first = next(iter(predictors.values())).detector(tile=0)
    height, width = first.prepare(images[0])["image"].shape[-2:]
    seconds = {name: [] for name in runs}
    for image in images[:1] + images:  # the first pass is a warm-up and is not counted
        for name, predictor in predictors.items():
            start = time.perf_counter()
            predictor.detect([image])  # returns its result on the CPU, so no GPU work is pending afterwards
            seconds[name].append(time.perf_counter() - start)
    return {
        name: {
            "params (M)": count_parameters(predictor.model) / 1e6,
            f"GFLOPs (multiply-adds, {height}x{width})": count_flops(predictor.model, (height, width)) / 1e9,
            "images/s": 1 / statistics.median(seconds[name][1:]),
        }
        for name, predictor in predictors.items()
    }


def draw_losses(runs: dict[str, list[Run]], path: Path) -> None:
    """Draws one panel per loss and one line per variant, the mean over its seeds, in the same colour in all panels."""
    curves = {name: [loss_curves(run.folder) for run in seeds] for name, seeds in runs.items()}
    panels = sorted({loss for seeds in curves.values() for run in seeds for loss in run})
    columns = min(3, len(panels))
    figure = Figure(figsize=(5 * columns, 3.5 * math.ceil(len(panels) / columns) + 1), layout="constrained")
    lines, colors = {}, colormaps["tab10" if len(curves) <= 10 else "tab20"]
    for i, loss in enumerate(panels, start=1):
        axes = figure.add_subplot(math.ceil(len(panels) / columns), columns, i)
        for color, (name, seeds) in enumerate(curves.items()):
            values: dict[int, list[float]] = {}
            for iteration, value in itertools.chain.from_iterable(run.get(loss, []) for run in seeds):
                values.setdefault(iteration, []).append(value)
            if values:
                means = [statistics.fmean(values[i]) for i in sorted(values)]
                (lines[name],) = axes.plot(sorted(values), means, color=colors(color % colors.N))
        axes.set(title=loss, xlabel="iteration")
        axes.grid(alpha=0.3)
    names = [name for name in curves if name in lines]
    figure.legend([lines[name] for name in names], names, loc="outside lower center", ncols=min(5, len(names)))
    figure.savefig(path, dpi=120)


def report(runs, configs, args) -> None:
    """Writes and prints the table, and writes the results and the picture of the losses."""
    results = {name: [measure(run, configs[name]) for run in seeds] for name, seeds in runs.items()}
    speed = speeds(runs, configs, args.speed_images) if args.speed_images else {}
    reference = args.reference if args.reference in runs else next(iter(runs))  # its runs may be incomplete
    found = differences_from(reference, runs, configs, args)
    lines = []
    for name, measured in results.items():
        measures = [*metric_cells(measured), *(f"{value:.1f}" for value in speed.get(name, {}).values())]
        lines.append([name, *measures, interval_cell(found.get(name))])
    table = markdown_table(["", *METRICS, *next(iter(speed.values()), {}), f"AP minus {reference}"], lines)
    (args.output / "table.md").write_text(table)
    content = {}
    for name, measured in results.items():
        known = [{k: None if math.isnan(v) else v for k, v in m.items()} for m in measured]  # JSON has no NaN
        content[name] = {"seeds": dict(zip(dict.fromkeys(args.seeds), known, strict=True)), **speed.get(name, {})}
        if name in found:
            content[name][f"AP minus {reference}"] = asdict(found[name])
    (args.output / "results.json").write_text(json.dumps(content, indent=1))
    draw_losses(runs, args.output / "losses.png")
    print(f"\n{table}\nMean ± standard deviation over seeds {', '.join(map(str, args.seeds))}.")
    for name in ("table.md", "results.json", "losses.png", *(["forest.png"] if found else [])):
        print(args.output / name)


def main(argv=None) -> int:
    args = parse_args(argv)
    variants = [parse_study_variant(text) for text in args.variants]
    check_reference(args.reference or variants[0].name, [variant.name for variant in variants])
    runs = make_runs(variants, args)
    study = clq.setup_cfg(args.config_file, args.opts).MODEL.META_ARCHITECTURE
    if study != "CLQ":  # its pyramid would be used for every variant
        raise UserError(
            f"{args.config_file}: MODEL.META_ARCHITECTURE is {study}; a study's config must have CLQ. "
            f"Compare a {study} by naming its config under --variants."
        )
    configs = {variant.name: clq.setup_cfg(args.config_file, [*variant.opts, *args.opts]) for variant in variants}
    for cfg in configs.values():
        check_model(cfg)
        check_training(cfg)
        check_datasets(cfg, splits=("TRAIN",))
        check_datasets(cfg, splits=("TEST",))
    require_files(configs[variants[0].name].DATASETS.TEST[0])
    check_same_test_set({name: cfg.DATASETS.TEST[0] for name, cfg in configs.items()})
    for name, changed in differences(configs).items():
        print(f"{name}, compared with {variants[0].name}: {'; '.join(changed) or 'no difference'}", flush=True)
    make_folder("--output", str(args.output))
    jobs = args.jobs or max(1, torch.cuda.device_count())
    failed = train_all([run for seeds in runs.values() for run in seeds], jobs)
    complete = {name: seeds for name, seeds in runs.items() if all(run.done for run in seeds)}
    if complete:
        report(complete, configs, args)
    if failed:
        number = sum(map(len, runs.values()))
        print(f"{len(failed)} of {number} trainings failed; run the same command again to continue them.", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    run_cli(main)
