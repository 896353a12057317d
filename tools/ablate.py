#!/usr/bin/env python3
"""Train rows with several seeds on one data set, and compare them in one table.

    tools/ablate.py --config-file cells.yaml --output output/ablation --seeds 1 2 3 --jobs 2 \\
        --rows ATSS=configs/ATSS/atss_R_50_FPN_1x.yaml CLQ=configs/CLQ/clq_R_50_FPN_1x.yaml \\
               "CLQ, 2 GIoU=configs/CLQ/clq_R_50_FPN_1x.yaml MODEL.CLQ.BOX.LOSS_WEIGHT 2.0"

The config gives the data, the backbone, the widths and the schedule; a row gives its cells (MODEL.CLQ.TOWERS, ASSIGN,
BOX, CLS, QUALITY, ALIGN and REFINE), all of them, so that rows differ in nothing else. A row of configs/comparison
gives its meta-architecture, its pyramid and the groups of its heads; its learning rate is the study's unless the row
says SOLVER.BASE_LR.

The table's last column is the AP less that of --reference, paired by images and seeds, with the 95% interval of a
bootstrap over both; forest.png shows it. What each run found out about each test image stays in its matches.npz, from
which tools/compare.py makes such comparisons anew.

Called again it trains what is missing, from the last checkpoints. Writes table.md, results.json, losses.png and
forest.png beside the trainings, of the rows that are complete. Exit status 1 if a training failed.
"""

import argparse
import itertools
import json
import math
import statistics
import time
from dataclasses import asdict
from pathlib import Path

import clq
import torch
from clq.benchmark.profiling import count_flops, count_parameters
from clq.data.checks import check_datasets
from clq.data.datasets import require_files
from clq.data.images import read_image
from clq.engine.config_checks import check_model, check_training, make_folder
from clq.errors import UserError
from clq.evaluation.metrics import METRICS, box_metrics
from clq.experiments.ablation import (
    Run,
    differences,
    loss_curves,
    markdown_table,
    metric_cells,
    parse_row,
    train_all,
)
from clq.experiments.bootstrap import Difference, compare
from clq.experiments.comparison import cached_matches, check_reference, interval_cell, what_is_needed
from clq.experiments.forest_plot import draw_forest
from clq.inference.predictor import Predictor
from clq.utils.cli import count, positive, run_cli
from detectron2.data import DatasetCatalog, MetadataCatalog
from matplotlib import colormaps
from matplotlib.figure import Figure


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="of the study: data, backbone, widths, schedule")
    parser.add_argument("--rows", nargs="+", required=True, metavar="ROW", help="[NAME=][CONFIG.yaml] [KEY VALUE ...]")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="default: 1 2 3")
    parser.add_argument("--output", required=True, type=Path, help="folder")
    parser.add_argument("--jobs", type=positive, help="trainings at a time (default: one a GPU; without a GPU 1)")
    parser.add_argument(
        "--speed-images", type=count, default=10, help="test images to time rows on, 0: none; default: 10"
    )
    parser.add_argument("--reference", metavar="NAME", help="the row that others are compared with; default: the first")
    parser.add_argument("--half-width", type=float, default=0.7, help="of an interval that is wanted; default: 0.7 AP")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="overrides for all rows: KEY VALUE ...")
    return parser.parse_args(argv)


def make_runs(rows, args) -> dict[str, list[Run]]:
    """Name of a row -> its runs, one a seed."""
    runs = {}
    for row in rows:
        if len(row.name.encode()) > 200:  # a folder's may have 255 bytes
            raise UserError(f"--rows: {row.name[:60]}... is too long a name for a folder; give it a NAME= of its own.")
        folder = args.output / "".join(c if c.isalnum() else "_" for c in row.name)
        if any(folder == others[0].folder.parent for others in runs.values()):
            raise UserError(f"--rows: two are called {row.name}, or nearly so; give each a NAME= of its own.")
        runs[row.name] = [
            Run(args.config_file, (*row.opts, *args.opts, "SEED", str(seed)), folder / f"seed_{seed}")
            for seed in dict.fromkeys(args.seeds)
        ]
    return runs


def measure(run: Run, cfg) -> dict[str, float]:
    """What a finished run reached on the first test set."""
    annotations = MetadataCatalog.get(cfg.DATASETS.TEST[0]).json_file
    return box_metrics(annotations, str(results_of(run, cfg)), cfg.TEST.DETECTIONS_PER_IMAGE)


def results_of(run: Run, cfg) -> Path:
    """The detections of a finished run on the first test set."""
    return run.folder / "inference" / cfg.DATASETS.TEST[0] / "coco_instances_results.json"


def differences_from(reference: str, runs: dict[str, list[Run]], configs, args) -> dict[str, Difference]:
    """Of each row but the reference its AP less that one's; also says what a narrower interval takes, and draws."""
    matches = {}
    for name, row in runs.items():
        cfg, dataset = configs[name], configs[name].DATASETS.TEST[0]
        matches[name] = {
            seed: cached_matches(
                run.folder,
                MetadataCatalog.get(dataset).json_file,
                results_of(run, cfg),
                cfg.TEST.DETECTIONS_PER_IMAGE,
            )
            for seed, run in zip(dict.fromkeys(args.seeds), row, strict=True)
        }
    found = compare(matches, reference)
    if found:
        draw_forest(found, reference, args.output / "forest.png")
        images = len(next(iter(matches[reference].values())).image_ids)
        print("", *what_is_needed(found, reference, args.half_width, images), sep="\n")
    return found


def speeds(runs: dict[str, list[Run]], configs, count: int) -> dict[str, dict[str, float]]:
    """Of each row: parameters, multiply-adds, and images a second at batch 1 from decoded image to boxes, in turn.

    Multiply-adds are at the size that the first test image has at the network's input.
    """
    predictors = {}
    for name, (first, *_) in runs.items():
        configs[name].merge_from_list(["MODEL.WEIGHTS", str(first.folder / "model_final.pth")])
        predictors[name] = Predictor(configs[name])
    cfg = next(iter(configs.values()))
    records = itertools.islice(DatasetCatalog.get(cfg.DATASETS.TEST[0]), count)
    images = [read_image(record["file_name"], cfg.INPUT.FORMAT) for record in records]
    height, width = next(iter(predictors.values())).resize(images[0]).shape[:2]
    seconds = {name: [] for name in runs}
    for image in images[:1] + images:  # the first time warms up
        for name, predictor in predictors.items():
            start = time.perf_counter()
            predictor(image)  # its result comes back to the CPU: nothing is left to wait for
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
    """One panel a loss, one line a row, of one colour in all panels: the mean over its seeds."""
    curves = {name: [loss_curves(run.folder) for run in row] for name, row in runs.items()}
    panels = sorted({loss for row in curves.values() for run in row for loss in run})
    columns = min(3, len(panels))
    figure = Figure(figsize=(5 * columns, 3.5 * math.ceil(len(panels) / columns) + 1), layout="constrained")
    lines, colors = {}, colormaps["tab10" if len(curves) <= 10 else "tab20"]
    for i, loss in enumerate(panels, start=1):
        axes = figure.add_subplot(math.ceil(len(panels) / columns), columns, i)
        for color, (name, row) in enumerate(curves.items()):
            values: dict[int, list[float]] = {}
            for iteration, value in itertools.chain.from_iterable(run.get(loss, []) for run in row):
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
    results = {name: [measure(run, configs[name]) for run in row] for name, row in runs.items()}
    speed = speeds(runs, configs, args.speed_images) if args.speed_images else {}
    reference = args.reference if args.reference in runs else next(iter(runs))  # it may not be complete
    found = differences_from(reference, runs, configs, args)
    lines = []
    for name, measured in results.items():
        measures = [*metric_cells(measured), *(f"{value:.1f}" for value in speed.get(name, {}).values())]
        lines.append([name, *measures, interval_cell(found.get(name))])
    table = markdown_table(["", *METRICS, *next(iter(speed.values()), {}), f"AP less {reference}'s"], lines)
    (args.output / "table.md").write_text(table)
    content = {}
    for name, measured in results.items():
        known = [{k: None if math.isnan(v) else v for k, v in m.items()} for m in measured]  # json has no nan
        content[name] = {"seeds": dict(zip(dict.fromkeys(args.seeds), known, strict=True)), **speed.get(name, {})}
        if name in found:
            content[name][f"AP less {reference}'s"] = asdict(found[name])
    (args.output / "results.json").write_text(json.dumps(content, indent=1))
    draw_losses(runs, args.output / "losses.png")
    print(f"\n{table}\nMean ± standard deviation over seeds {', '.join(map(str, args.seeds))}.")
    for name in ("table.md", "results.json", "losses.png", *(["forest.png"] if found else [])):
        print(args.output / name)


def main(argv=None) -> int:
    args = parse_args(argv)
    rows = [parse_row(text) for text in args.rows]
    check_reference(args.reference or rows[0].name, [row.name for row in rows])
    runs = make_runs(rows, args)
    study = clq.setup_cfg(args.config_file, args.opts).MODEL.META_ARCHITECTURE
    if study != "CLQ":  # whose pyramid would be every row's
        raise UserError(f"{args.config_file}: is of a {study}; the study's config is of a CLQ, others can be rows.")
    configs = {row.name: clq.setup_cfg(args.config_file, [*row.opts, *args.opts]) for row in rows}
    for cfg in configs.values():
        check_model(cfg)
        check_training(cfg)
        check_datasets(cfg, splits=("TRAIN",))
        check_datasets(cfg, splits=("TEST",))
    require_files(configs[rows[0].name].DATASETS.TEST[0])
    for name, changed in differences(configs).items():
        print(f"{name}, against {rows[0].name}: {'; '.join(changed) or 'nothing'}", flush=True)
    make_folder("--output", str(args.output))
    jobs = args.jobs or max(1, torch.cuda.device_count())
    failed = train_all([run for row in runs.values() for run in row], jobs)
    complete = {name: row for name, row in runs.items() if all(run.done for run in row)}
    if complete:
        report(complete, configs, args)
    if failed:
        print(f"{len(failed)} of {sum(map(len, runs.values()))} trainings failed; run again to go on.", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    run_cli(main)
