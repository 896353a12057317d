#!/usr/bin/env python3
"""Train the runs of a study that are not in its store yet, and keep of each what comparisons need.

    tools/study.py --config-file docs/results/deeppcb_study.yaml --store docs/results/deeppcb --output output/deeppcb \\
        --seeds 1 2 3 4 5 --jobs 2 --rows CLQ=configs/CLQ/clq_R_50_FPN_1x.yaml GFL=configs/GFL/gfl_R_50_FPN_1x.yaml

Rows and config are those of tools/ablate.py. The first seed of all rows comes first, then the second, so that a study
that is stopped can be compared already. The store is small enough for git: STORE/VARIANT_seedN.npz has the matches of a
run, for tools/compare.py, and STORE.json the metrics. A run that is there is not trained again, whatever its settings
were: another study needs another store. Each training has the machine's cores divided by --jobs. Exit status 1 if a
training failed.
"""

import argparse
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import clq
from clq.data.checks import check_datasets
from clq.data.datasets import require_files
from clq.engine.config_checks import check_model, check_training, make_folder
from clq.experiments.ablation import Run, parse_row, split_row
from clq.experiments.store import Store
from clq.utils.cli import positive, run_cli


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="of the study: data, backbone, widths, schedule")
    parser.add_argument("--rows", nargs="+", required=True, metavar="ROW", help="[NAME=][CONFIG.yaml] [KEY VALUE ...]")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="default: 1 2 3")
    parser.add_argument("--output", required=True, type=Path, help="folder of the trainings")
    parser.add_argument("--store", required=True, type=Path, help="folder of what is kept")
    parser.add_argument("--jobs", type=positive, default=1, help="trainings at a time; default: 1")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="overrides for all rows: KEY VALUE ...")
    return parser.parse_args(argv)


def main(argv=None) -> int:
    args = parse_args(argv)
    rows, store = [parse_row(text) for text in args.rows], Store(args.store)
    configs = {row.name: clq.setup_cfg(args.config_file, [*row.opts, *args.opts]) for row in rows}
    for cfg in configs.values():
        check_model(cfg)
        check_training(cfg)
        check_datasets(cfg, splits=("TRAIN",))
        check_datasets(cfg, splits=("TEST",))
        require_files(cfg.DATASETS.TEST[0])
    make_folder("--output", str(args.output))
    make_folder("--store", str(args.store))

    def train(seed, row, text) -> bool:
        _, config, words = split_row(text)
        run = Run(
            args.config_file, (*row.opts, *args.opts, "SEED", str(seed)), args.output / store.file(row.name, seed).stem
        )
        print(f"{run.folder}: started", flush=True)
        run.prepare()
        good = run.done or run.train(max(1, (os.cpu_count() or 1) // args.jobs), None)
        if good:
            store.add(
                row.name, " ".join([*([config] if config else []), *words, *args.opts]), seed, run, configs[row.name]
            )
        print(f"{run.folder}: {'kept' if good else f'failed, see {run.folder}/stdout.txt'}", flush=True)
        return good

    wanted = [(s, row, text) for s in args.seeds for row, text in zip(rows, args.rows, strict=True)]
    waiting = [(s, row, text) for s, row, text in wanted if not store.file(row.name, s).is_file()]
    print(f"{len(wanted) - len(waiting)} of {len(wanted)} runs are in {args.store}", flush=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        failed = list(pool.map(lambda job: train(*job), waiting)).count(False)
    return 1 if failed else 0


if __name__ == "__main__":
    run_cli(main)
