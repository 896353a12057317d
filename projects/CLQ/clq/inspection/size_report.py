"""Compares the sizes of the objects of a training set with the levels and anchors of a detector."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import yaml
from detectron2.config import CfgNode

from clq.inspection.positives import Pyramid
from clq.inspection.proposals import FEW, Overrides, Search, Setting
from clq.inspection.training_images import read_records, sample

MAX_IMAGES = 400  # a share of 5% has a standard error of 0.4 points where they have 7 objects each, as in COCO
_BAR = 24  # characters of the longest bar
_BINS_BELOW = 3  # bins below that of the smallest anchor
_ALTERNATIVES = 3


def report(cfg: CfgNode, records: Sequence[dict] | None = None) -> str:
    """A text of at most 30 lines on the sizes of the objects in ``DATASETS.TRAIN``, and on the settings that fit them.

    Sizes are square roots of areas in pixels of the network's input, at the middle of the sizes of training and without
    crops. Positives are those of ATSS at the levels and anchors of the config. Of many images, a sample is used.

    Args:
        cfg: config of the training. Its data sets should have been checked.
        records: records of the training sets, if they have been read already.

    Raises:
        UserError: a data set cannot be read, or the backbone cannot be built.
    """
    kind = cfg.MODEL.META_ARCHITECTURE
    if kind != "CLQ":
        return f"MODEL.META_ARCHITECTURE {kind}: sizes are compared with levels and anchors for CLQ only."
    records = read_records(cfg.DATASETS.TRAIN) if records is None else records
    search = Search(cfg, sample(records, MAX_IMAGES))
    best, alternatives = search.run()
    lines = [*_head(cfg, search.now, len(records)), *_histogram(search.now), *_summary(cfg, search.now)]
    return "\n".join([*lines, *_proposals(search.now, best, alternatives)])


def _head(cfg: CfgNode, now: Setting, num_records: int) -> Iterator[str]:
    count, scale = len(now.images), float(np.median([image.scale for image in now.images]))
    what = f"{count:,} of {num_records:,} images" if count < num_records else f"all {count:,} images"
    yield f"Sizes of {len(now.sizes):,} objects in {what} of {', '.join(cfg.DATASETS.TRAIN)}"
    limit = f", at most {cfg.INPUT.MAX_SIZE_TRAIN}" if now.size.startswith("short") else ""
    middle = ", the middle of training" if limit and len(set(cfg.INPUT.MIN_SIZE_TRAIN)) > 1 else ""
    yield f"in pixels of the input ({now.size}{middle}{limit}); images are enlarged by {scale:.2f} (median)"


def bin_edges(pyramid: Pyramid, smallest: float, largest: float) -> np.ndarray:
    """Edges of bins of which each is a factor of 2 wide and, from the finest level on, has an anchor in its middle.

    Args:
        pyramid: levels and anchors.
        smallest: size of the smallest object; the first bin begins at 0 and holds it.
        largest: size of the largest object; the last bin holds it.

    Returns:
        Edges in pixels, ascending.
    """
    first = pyramid.anchors[0] / 2**0.5
    edges = [first * (stride / pyramid.strides[0]) for stride in pyramid.strides]
    for _ in range(_BINS_BELOW - 1):
        if edges[0] > smallest:
            edges.insert(0, edges[0] / 2)
    if edges[0] > smallest:
        edges.insert(0, 0.0)
    edges.append(pyramid.anchors[-1] * 2**0.5)
    if edges[-1] <= largest:
        edges.append(np.inf)
    return np.array(edges)


def _histogram(now: Setting) -> Iterator[str]:
    """A row for each bin: its range and share of the objects, its level and anchor, the positives of its objects."""
    sizes, counts, pyramid = now.sizes, now.counts, now.pyramid
    edges = bin_edges(pyramid, sizes.min(), sizes.max())
    index = np.digitize(sizes, edges) - 1
    shares = np.bincount(index, minlength=len(edges) - 1) / len(sizes)
    yield f"{'size':>13}  {'objects':<{_BAR + 8}}{'anchor':<11}{'positives':>9} {f'< {FEW}':>6} {'none':>6}"
    for i, (low, high) in enumerate(itertools.pairwise(edges)):
        inside = [
            f"{level} {anchor:g}"
            for level, anchor in zip(pyramid.levels, pyramid.anchors, strict=True)
            if low <= anchor < high
        ]
        text = f"< {high:.0f}" if low == 0 else f">= {low:.0f}" if np.isinf(high) else f"{low:.0f} to {high:.0f}"
        bar = "#" * round(_BAR * shares[i] / shares.max())
        row = f"{text:>13}  {shares[i]:6.1%} {bar:<{_BAR}} {', '.join(inside):<11}"
        if (found := counts[index == i]).size:
            row += f"{np.median(found):9.0f} {(found < FEW).mean():6.0%} {(found == 0).mean():6.0%}"
        yield row.rstrip()


def _summary(cfg: CfgNode, now: Setting) -> Iterator[str]:
    boxes = np.concatenate([image.boxes for image in now.images])
    ratio = (boxes[:, 2] - boxes[:, 0]) / (boxes[:, 3] - boxes[:, 1])
    low, middle, high = np.percentile(ratio, [1, 50, 99])
    extreme = (np.maximum(ratio, 1 / ratio) > 4).mean()
    within = f"98% of the objects within {low:.2f} and {high:.2f}"
    yield f"Width / height: median {middle:.2f}, {within}, {extreme:.1%} beyond 4:1"
    name = cfg.MODEL.CLQ.ASSIGN.NAME
    whose = "ATSS" if name in ("atss", "task") else f"ATSS (MODEL.CLQ.ASSIGN.NAME {name} chooses others)"
    yield (
        f"Positives of {whose}: median {np.median(now.counts):.0f}; {now.few:.1%} of the objects have fewer than "
        f"{FEW}, {now.none:.1%} have none"
    )
    yield f"{now.in_range:.0%} of the objects are in range: within a factor of 1.41 of the size of an anchor"


def _proposals(now: Setting, best: Setting, alternatives: Sequence[Setting]) -> Iterator[str]:
    """A table of the setting of the config, alternatives and the proposal, and the proposal as lines of a config."""
    shown = [s for s in alternatives if s.overrides not in (now.overrides, best.overrides)][:_ALTERNATIVES]
    rows = {"now": [now], "or": shown, "==>": [best] if best is not now else []}
    width = max(len(_setting_text(s)) for settings in rows.values() for s in settings)
    yield f"  {'levels, anchors, size':<{width}}  < {FEW} pos.   none  in range  pixels  locations"
    for mark, settings in rows.items():
        for s in settings:
            shares = f"{s.few:8.1%} {s.none:7.1%} {s.in_range:8.0%}"
            factors = f"{s.num_pixels / now.num_pixels:7.2f}x {s.num_locations / now.num_locations:9.2f}x"
            yield f"{mark:>3} {_setting_text(s):<{width}}{shares}{factors}"
    if best is now:
        yield "Nothing that was tried serves the objects better at a reasonable cost; the settings can stay."
    else:
        yield "To use the marked setting, put this into the config:"
        yield from config_lines(best.overrides)


def _setting_text(s: Setting) -> str:
    return f"{s.pyramid.levels[0]} to {s.pyramid.levels[-1]}, scale {s.pyramid.anchor_scale:g}, {s.size}"


def config_lines(overrides: Overrides) -> list[str]:
    """The lines of yaml that set config keys, such as ``INPUT.MIN_SIZE_TEST``, to values."""
    groups: dict[str, dict] = {}
    for key, value in overrides.items():
        group, _, name = key.rpartition(".")
        groups.setdefault(group, {})[name] = list(value) if isinstance(value, tuple) else value
    lines: list[str] = []
    for group in sorted(groups):
        *parents, name = group.split(".")
        lines += [f"{'  ' * i}{parent}:" for i, parent in enumerate(parents) if f"{'  ' * i}{parent}:" not in lines]
        flow = yaml.safe_dump(groups[group], default_flow_style=True, sort_keys=False, width=float("inf")).strip()
        lines.append(f"{'  ' * len(parents)}{name}: {flow}")
    return lines
