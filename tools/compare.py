#!/usr/bin/env python3
"""Compare the variants of a study from its store, with intervals, without training or evaluating anything.

    tools/compare.py docs/results/deeppcb --reference CLQ --output output/deeppcb

The store is what tools/study.py fills. Differences of AP are paired: 2,000 resamples of test images and seeds, the same
ones for both variants, give their 95% intervals. Writes differences.md, differences.json and forest.png.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from clq.engine.config_checks import make_folder
from clq.evaluation.matches import average_precision
from clq.experiments.ablation import markdown_table, mean_and_spread
from clq.experiments.bootstrap import RESAMPLES, compare
from clq.experiments.comparison import check_reference, interval_cell, what_is_needed
from clq.experiments.forest_plot import draw_forest
from clq.experiments.store import Store
from clq.utils.cli import positive, run_cli


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, help="folder with the matches of the runs; STORE.json names the variants")
    parser.add_argument("--reference", required=True, metavar="VARIANT", help="the variant to compare all others with")
    parser.add_argument("--output", required=True, type=Path, help="folder")
    parser.add_argument("--resamples", type=positive, default=RESAMPLES, help=f"default: {RESAMPLES}")
    parser.add_argument("--half-width", type=float, default=0.7, help="of an interval that is wanted; default: 0.7 AP")
    return parser.parse_args(argv)


def main(argv=None) -> None:
    args = parse_args(argv)
    variants = Store(args.store).matches()
    check_reference(args.reference, variants)
    make_folder("--output", str(args.output))
    differences = compare(variants, args.reference, args.resamples)
    lines, content = [], {}
    for name, runs in variants.items():
        aps = {seed: float(average_precision(run)[0]) for seed, run in runs.items()}
        each = ", ".join(f"{ap:.1f}" for ap in aps.values())
        difference = differences.get(name)
        lines.append([name, f"{mean_and_spread(list(aps.values()))} ({each})", interval_cell(difference)])
        content[name] = {"AP": aps, "difference": asdict(difference) if difference else None}
    table = markdown_table(["", "AP (each seed)", f"AP minus {args.reference}"], lines)
    (args.output / "differences.md").write_text(table)
    (args.output / "differences.json").write_text(json.dumps(content, indent=1))
    if differences:
        draw_forest(differences, args.reference, args.output / "forest.png")
    images = len(next(iter(variants[args.reference].values())).image_ids)
    print(table, *what_is_needed(differences, args.reference, args.half_width, images), sep="\n")


if __name__ == "__main__":
    run_cli(main)
