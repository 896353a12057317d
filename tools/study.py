#!/usr/bin/env python3
"""Train the runs of a study that are not in its store yet, and store of each what comparisons need.

    tools/study.py --config-file docs/results/deeppcb_study.yaml --store docs/results/deeppcb --output output/deeppcb \\
        --seeds 1 2 3 4 5 --jobs 2 --variants CLQ=configs/CLQ/clq_R_50_FPN_1x.yaml GFL=configs/GFL/gfl_R_50_FPN_1x.yaml

Variants and config are those of tools/ablate.py. The first seed of all variants is trained first, then the second, so
that a study can be compared before it is complete. The store is small enough for git: STORE/VARIANT_seedN.npz has the
matches of a run, for tools/compare.py, and STORE.json the metrics of all. A run that is stored is not trained again,
whatever its settings were: another study needs another store. The machine's cores are divided among the trainings. The
exit status is 1 if a training failed.
"""

import argparse
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import clq
from clq.data.checks import check_datasets
from clq.data.datasets import require_files
from clq.engine.config_checks import check_model, check_training, make_folder
from clq.errors import UserError
from clq.experiments.ablation import parse_study_variant
from clq.experiments.runs import Run
from clq.experiments.store import Store
from clq.utils.cli import parse_variant, positive, run_cli


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="config of the study: data, backbone, widths, schedule")
    parser.add_argument(
        "--variants", nargs="+", required=True, metavar="VARIANT", help="[NAME=][CONFIG.yaml] [KEY VALUE ...]"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="default: 1 2 3")
    parser.add_argument("--output", required=True, type=Path, help="folder for the trainings")
    parser.add_argument("--store", required=True, type=Path, help="folder for the matches of the runs")
    parser.add_argument("--jobs", type=positive, default=1, help="trainings at a time; default: 1")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="overrides for all: KEY VALUE ...")
    return parser.parse_args(argv)


def main(argv=None) -> int:
    args = parse_args(argv)
    variants, store = [parse_study_variant(text) for text in args.variants], Store(args.store)
    configs = {v.name: clq.setup_cfg(args.config_file, [*v.opts, *args.opts]) for v in variants}
    for cfg in configs.values():
        check_model(cfg)
        check_training(cfg)
        check_datasets(cfg, splits=("TRAIN",))
        check_datasets(cfg, splits=("TEST",))
        require_files(cfg.DATASETS.TEST[0])
    names = [v.name for v in variants]
    if len({store.file(name, 0) for name in names}) < len(names):
        raise UserError(f"--variants: {', '.join(names)} need names that differ in their letters and digits.")
    store.content()  # may end with an error, and should not after a training
    make_folder("--output", str(args.output))
    make_folder("--store", str(args.store))

    def train(seed, variant, text) -> bool:
        opts = (*variant.opts, *args.opts, "SEED", str(seed))
        run = Run(args.config_file, opts, args.output / store.file(variant.name, seed).stem)
        print(f"{run.folder}: started", flush=True)
        run.prepare()
        succeeded = run.done or run.train(max(1, (os.cpu_count() or 1) // args.jobs), None)
        if succeeded:
            given = parse_variant(text)
            settings = " ".join([*filter(None, [given.config_file]), *given.opts, *args.opts])
            store.add(variant.name, settings, seed, run, configs[variant.name])
        print(f"{run.folder}: {'stored' if succeeded else f'failed, see {run.folder}/stdout.txt'}", flush=True)
        return succeeded

    wanted = [(s, variant, text) for s in args.seeds for variant, text in zip(variants, args.variants, strict=True)]
    waiting = [(s, variant, text) for s, variant, text in wanted if not store.file(variant.name, s).is_file()]
    print(f"{len(wanted) - len(waiting)} of {len(wanted)} runs are in {args.store}", flush=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        failed = list(pool.map(lambda job: train(*job), waiting)).count(False)
    return 1 if failed else 0


if __name__ == "__main__":
    run_cli(main)
