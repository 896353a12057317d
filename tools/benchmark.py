#!/usr/bin/env python3
"""Measure what detectors, their stages, the matching and the alignment cost, side by side in one run.

    tools/benchmark.py matching               match_atss and the textbook R x M form
    tools/benchmark.py step                   a training step with alignment and one without, and the peak memory
    tools/benchmark.py step --config-file configs/CLQ/clq_R_50_FPN_1x.yaml --size 800 1088
    tools/benchmark.py models --size 800 1088 --train --json costs.json --variants \\
        ATSS=configs/ATSS/atss_R_50_FPN_1x.yaml configs/comparison/fcos_R_50_FPN_1x.yaml
    tools/benchmark.py data --config-file configs/CLQ/clq_R_50_FPN_1x.yaml --workers 0 1 2 4

The repetitions of all candidates alternate, so that a drift in the machine's speed favours none of them, and their
medians are compared. "models" measures any box detector of Detectron2 with random weights on generated images: latency
by stage, images per second, a training step by stage, peak memory, parameters and multiply-adds. "data" measures the
images per second of the training loader and the time of each step that prepares an image.
"""

import argparse
import json
import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import clq
import torch
from clq.benchmark.conditions import DTYPES, Conditions, find_device, parse_variants
from clq.benchmark.dataloader import images_per_second, seconds_by_step
from clq.benchmark.models import measure
from clq.benchmark.synthetic import random_boxes, random_image
from clq.benchmark.table import format_table
from clq.data.checks import check_datasets
from clq.engine.config_checks import make_folder
from clq.modeling.assign.atss import match_atss
from clq.utils.cli import count, positive, run_cli
from detectron2.modeling import build_model
from detectron2.structures import Boxes, pairwise_iou

STRIDES = [8, 16, 32, 64, 128]


def alternate(candidates: dict[str, Callable], repeats: int) -> dict[str, float]:
    """Median seconds of one call of each candidate.

    A repetition makes as many calls as fit into 0.1 s, but at least one, so that no candidate is measured only in the
    state in which the other one has left the caches and the allocator.
    """
    calls = {name: max(1, int(0.1 / seconds_of(call, 1))) for name, call in candidates.items()}
    seconds = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, call in candidates.items():
            seconds[name].append(seconds_of(call, calls[name]))
    return {name: statistics.median(s) for name, s in seconds.items()}


def seconds_of(call: Callable, times: int) -> float:
    """Mean seconds of a call, over the given number of calls."""
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def textbook_atss(grid_sizes, strides, gt_boxes, topk: int = 9, scale: float = 8.0):
    """ATSS with the full matrices of distances and IoUs of R anchors and M boxes, as in the paper and its code."""
    anchors, sizes = [], [h * w for h, w in grid_sizes]
    for (h, w), s in zip(grid_sizes, strides, strict=True):
        y, x = torch.meshgrid(torch.arange(h) * float(s), torch.arange(w) * float(s), indexing="ij")
        center = torch.stack((x, y), -1).view(-1, 2)
        anchors.append(torch.cat((center - scale * s / 2, center + scale * s / 2), 1))
    anchors = torch.cat(anchors)
    center, gt_center = (anchors[:, :2] + anchors[:, 2:]) / 2, (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2
    ious = pairwise_iou(Boxes(anchors), Boxes(gt_boxes))
    distances = (center[:, None] - gt_center[None]).pow(2).sum(-1).sqrt()
    candidates, start = [], 0
    for size in sizes:
        nearest = distances[start : start + size].topk(min(topk, size), dim=0, largest=False).indices
        candidates.append(nearest + start)
        start += size
    candidates = torch.cat(candidates)  # (C, M)
    candidate_ious = ious.gather(0, candidates)
    positive = candidate_ious >= candidate_ious.mean(0) + candidate_ious.std(0)
    c = center[candidates]
    positive &= torch.cat((c - gt_boxes[None, :, :2], gt_boxes[None, :, 2:] - c), -1).amin(-1) > 0.01
    claimed = torch.full_like(ious, -1.0)
    claimed.scatter_(0, candidates, torch.where(positive, candidate_ious, -1.0))
    best, index = claimed.max(dim=1)
    return torch.where(best >= 0, index, -1)


def benchmark_matching(args) -> None:
    height, width = args.size
    grids = [(-(-height // s), -(-width // s)) for s in STRIDES]
    print(f"Matching at {height}x{width}, {sum(h * w for h, w in grids)} anchors, {torch.get_num_threads()} threads")
    for num_boxes in (10, 100, 300):
        boxes = random_boxes(num_boxes, height, width)
        ours, reference = match_atss(grids, STRIDES, boxes)[0], textbook_atss(grids, STRIDES, boxes)
        times = alternate(
            {
                "ours": lambda b=boxes: match_atss(grids, STRIDES, b),
                "text": lambda b=boxes: textbook_atss(grids, STRIDES, b),
            },
            args.repeats,
        )
        with torch.profiler.profile(profile_memory=True) as profile:
            match_atss(grids, STRIDES, boxes)
        print(
            f"{num_boxes:4d} boxes: match_atss {times['ours'] * 1e3:7.2f} ms, textbook {times['text'] * 1e3:7.1f} ms, "
            f"{times['text'] / times['ours']:5.1f} times faster; {int((ours != reference).sum())} anchors differ; "
            f"allocates {peak_allocation(profile) / 1e6:.1f} MB at its peak"
        )


def peak_allocation(profile) -> int:
    """Bytes: the highest running sum of the allocations and releases that the profile recorded."""
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


def benchmark_step(args) -> None:
    models = {
        name: build_model(clq.setup_cfg(args.config_file, [*args.opts, *opts])).train()
        for name, opts in {"without": ["MODEL.CLQ.ALIGN.NAME", "none"], "with": []}.items()
    }
    height, width = args.size
    batch = [random_image(height, width)]
    device = next(models["with"].parameters()).device

    def step(name):
        sum(models[name](batch).values()).backward()
        if device.type == "cuda":
            torch.cuda.synchronize()

    times = alternate({name: lambda n=name: step(n) for name in models}, args.repeats)
    print(
        f"Forward and backward at {height}x{width}, batch 1, {device}, {torch.get_num_threads()} threads: "
        f"with alignment {times['with']:.3f} s, without {times['without']:.3f} s, "
        f"ratio {times['with'] / times['without']:.3f}"
    )
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"Peak memory of the process, both models in it: {peak / 2**30:.2f} GiB")


def benchmark_models(args) -> None:
    variants = parse_variants(args.variants, opts=args.opts, as_built=args.as_built)
    if args.json:
        make_folder("--json", os.path.dirname(args.json) or ".")
    conditions = Conditions(
        size=tuple(args.size),
        batch=args.batch,
        device=find_device(args.device),
        dtype=args.dtype,
        train=args.train,
    )
    machine, results = measure(variants, conditions, args.repeats)
    print(format_table(machine, results))
    if args.json:
        Path(args.json).write_text(json.dumps({"machine": machine, "rows": results}, indent=1))
        print(args.json)


def benchmark_data(args) -> None:
    cfg = clq.setup_cfg(args.config_file, args.opts)
    check_datasets(cfg, splits=("TRAIN",))
    steps = seconds_by_step(cfg, args.images)
    datasets = ", ".join(cfg.DATASETS.TRAIN)
    print(f"One image (mean of {args.images} from {datasets}): {sum(steps.values()) * 1e3:.1f} ms")
    for step, seconds in sorted(steps.items(), key=lambda item: -item[1]):
        print(f"  {step:16s} {seconds * 1e3:6.2f} ms")
    for workers in args.workers:
        rate = images_per_second(cfg, workers, args.seconds)
        print(f"{workers} workers: {rate:.1f} images/s in batches of {cfg.SOLVER.IMS_PER_BATCH}")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="what", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--size", nargs=2, type=positive, default=[800, 1216], metavar=("HEIGHT", "WIDTH"))
    shared.add_argument("--repeats", type=positive, default=5, help="counted repetitions of each candidate; default: 5")
    kinds.add_parser("matching", parents=[shared])
    step = kinds.add_parser("step", parents=[shared], epilog="KEY VALUE ...: overrides of the config")
    step.add_argument("--config-file", default="configs/CLQ/clq_R_50_FPN_1x.yaml", metavar="FILE")
    models = kinds.add_parser("models", parents=[shared])
    models.add_argument(
        *("--variants", "--rows"),  # --rows is the older spelling
        nargs="+",
        required=True,
        metavar="VARIANT",
        help="[NAME=]CONFIG.yaml [KEY VALUE ...]",
    )
    models.add_argument("--batch", type=positive, default=4, help="images of the larger batch and a step; default: 4")
    models.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda or mps")
    models.add_argument("--dtype", choices=DTYPES, default="float32", help="dtype of autocast; default: no autocast")
    models.add_argument("--train", action="store_true", help="measure training steps too")
    models.add_argument(
        "--as-built", nargs="+", default=[], metavar="NAME", help="variants to run without inference optimizations"
    )
    models.add_argument("--json", metavar="FILE", help="file for all measurements")
    models.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="overrides for all: KEY VALUE ...")
    data = kinds.add_parser("data")
    data.add_argument("--config-file", required=True, metavar="FILE")
    data.add_argument("--workers", nargs="+", type=count, default=[0, 1, 2], help="loader processes; default: 0 1 2")
    data.add_argument("--images", type=positive, default=100, help="images whose steps are timed; default: 100")
    data.add_argument("--seconds", type=positive, default=5, help="loading time for each number; default: 5")
    data.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="overrides: KEY VALUE ...")
    args, words = parser.parse_known_args(argv)
    if args.what == "step":
        args.opts = words
    elif words:
        parser.error(f"unrecognized arguments: {' '.join(words)}")
    return args


def main(argv=None) -> None:
    args = parse_args(argv)
    torch.manual_seed(0)
    kinds = {"matching": benchmark_matching, "step": benchmark_step, "models": benchmark_models, "data": benchmark_data}
    kinds[args.what](args)


if __name__ == "__main__":
    run_cli(main)
