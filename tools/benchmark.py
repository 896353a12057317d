#!/usr/bin/env python3
"""What matching, alignment and a training step cost, as ratios measured in one run.

    tools/benchmark.py matching               match_atss beside the textbook R x M form
    tools/benchmark.py step                   a training step with alignment beside one without, and its peak memory
    tools/benchmark.py step --config-file configs/CLQ/clq_R_50_FPN_1x.yaml --size 800 1088

Repetitions of the two sides alternate, so that a machine whose speed drifts favours neither. Medians are compared.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import clq
import torch
from clq.engine.launch import run_cli
from clq.modeling.matcher import match_atss
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, pairwise_iou

STRIDES = [8, 16, 32, 64, 128]


def alternate(sides: dict[str, Callable], repeats: int) -> dict[str, float]:
    """Median seconds of one call of each side; a repetition is as many as fit into 0.1 s, or one.

    So neither side is measured on what the other has left of caches and allocator alone.
    """
    calls = {name: max(1, int(0.1 / seconds_of(call, 1))) for name, call in sides.items()}
    seconds = {name: [] for name in sides}
    for _ in range(repeats):
        for name, call in sides.items():
            seconds[name].append(seconds_of(call, calls[name]))
    return {name: statistics.median(s) for name, s in seconds.items()}


def seconds_of(call: Callable, times: int) -> float:
    """Mean seconds of a call, over so many."""
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def textbook_atss(grid_sizes, strides, gt_boxes, topk: int = 9, scale: float = 8.0):
    """ATSS with the full matrices of distances and IoUs between R anchors and M boxes, as papers and code have it."""
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


def random_boxes(count: int, height: int, width: int) -> torch.Tensor:
    """(count, 4) boxes of 8 to about 400 pixels, all sizes equally likely on a log scale, inside the image."""
    size = 8 * 50 ** torch.rand(count, 2)
    center = torch.rand(count, 2) * torch.tensor([width, height])
    limit = torch.tensor([width, height]).float()
    return torch.cat(((center - size / 2).clamp(min=0), (center + size / 2).minimum(limit)), 1)


def benchmark_matching(args) -> None:
    height, width = args.size
    grids = [(-(-height // s), -(-width // s)) for s in STRIDES]
    print(f"Matching at {height}x{width}, {sum(h * w for h, w in grids)} anchors, {torch.get_num_threads()} threads")
    for count in (10, 100, 300):
        boxes = random_boxes(count, height, width)
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
            f"{count:4d} boxes: match_atss {times['ours'] * 1e3:7.2f} ms, textbook {times['text'] * 1e3:7.1f} ms, "
            f"{times['text'] / times['ours']:5.1f} times faster; {int((ours != reference).sum())} anchors differ; "
            f"allocates {peak_allocation(profile) / 1e6:.1f} MB at its peak"
        )


def peak_allocation(profile) -> int:
    """Bytes: the highest running sum of what the profile saw allocated and freed."""
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
    batch = [training_image(height, width)]
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


def training_image(height: int, width: int) -> dict:
    """A noise image with 20 boxes."""
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(random_boxes(20, height, width))
    instances.gt_classes = torch.zeros(20, dtype=torch.int64)
    return {"image": torch.randint(0, 255, (3, height, width)).float(), "instances": instances}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["matching", "step"])
    parser.add_argument("--config-file", default="configs/CLQ/clq_R_50_FPN_1x.yaml", metavar="FILE")
    parser.add_argument("--size", nargs=2, type=int, default=[800, 1216], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--repeats", type=int, default=5, help="counted repetitions of each side")
    parser.add_argument("opts", nargs="*", help="KEY VALUE overrides of the config")
    args = parser.parse_intermixed_args()
    torch.manual_seed(0)
    (benchmark_matching if args.what == "matching" else benchmark_step)(args)


if __name__ == "__main__":
    run_cli(main)
