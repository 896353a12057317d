#!/usr/bin/env python3
"""Compare the variants of a study from its store, with intervals, without training or evaluating anything.

    python tools/compare.py docs/results/deeppcb --reference CLQ --output output/deeppcb

The store is what tools/study.py fills. Differences of AP are paired: of the seeds that both variants have, 2,000
resamples of test images and seeds, the same ones for both, give 95% intervals. Writes differences.md, differences.json
and forest.png.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from clq.engine.config_checks import make_folder
from clq.evaluation.matches import average_precision
from clq.experiments.ablation import markdown_table, mean_and_spread
from clq.experiments.bootstrap import RESAMPLES, compare
from clq.experiments.comparison import check_reference, interval_cell, wanted_half_width, what_is_needed
from clq.experiments.forest_plot import draw_forest
from clq.experiments.store import Store
from clq.utils.cli import run_cli
from clq.utils.files import write_atomically


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, help="folder with the matches of the runs; STORE.json names the variants")
    parser.add_argument("--reference", required=True, metavar="VARIANT", help="the variant to compare all others with")
    parser.add_argument("--output", required=True, type=Path, help="folder")
    parser.add_argument("--resamples", type=resamples, default=RESAMPLES, help=f"100 to 100000; default: {RESAMPLES}")
    parser.add_argument(
        "--half-width", type=wanted_half_width, default=0.7, help="of an interval that is wanted; default: 0.7 AP"
    )
    return parser.parse_args(argv)


def resamples(text: str) -> int:
    if not 100 <= (value := int(text)) <= 100_000:
        raise argparse.ArgumentTypeError(f"{text}: must be from 100 to 100000")
    return value


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
        common = str(difference.seeds) if difference else "–"
        lines.append([name, f"{mean_and_spread(list(aps.values()))} ({each})", interval_cell(difference), common])
        content[name] = {"AP": aps, "difference": asdict(difference) if difference else None}
    table = markdown_table(["", "AP (each seed)", f"AP minus {args.reference}", "common seeds"], lines)
    for file, text in (("differences.md", table), ("differences.json", json.dumps(content, indent=1))):
        with write_atomically(args.output / file, "w") as f:
            f.write(text)
    if differences:
        with write_atomically(args.output / "forest.png") as f:
            draw_forest(differences, args.reference, f)
    images = len(next(iter(variants[args.reference].values())).image_ids)
    print(table, *what_is_needed(differences, args.reference, args.half_width, images), sep="\n")


if __name__ == "__main__":
    run_cli(main)
