#!/usr/bin/env python3
"""Train the runs of a study that are not in its store yet, and store of each what comparisons need.

    python tools/study.py --config-file cells.yaml --store studies/cells --output output/cells --seeds 1 2 3 4 5 \\
        --jobs 2 --variants CLQ=configs/CLQ/clq_R_50_FPN_1x.yaml GFL=configs/GFL/gfl_R_50_FPN_1x.yaml

Variants and config are those of tools/ablate.py. The first seed of all variants is trained first, then the second, so
that a study can be compared before it is complete. The store is small enough for git: STORE/VARIANT_seedN.npz has the
matches of a run, for tools/compare.py, and STORE.json the metrics and the settings of all. A run that is stored is not
trained again; a variant with other settings than those in the store is refused, before anything is trained. Settings
are the words of the command, with the names of configs but not what is in them: edited configs need another store. The
machine's cores are divided among the trainings, which share its GPUs. The exit status is 1 if a training failed.
"""

import argparse
import os
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import clq
from clq.data.checks import check_datasets
from clq.data.datasets import require_files
from clq.engine.config_checks import check_model, check_training, make_folder
from clq.errors import UserError
from clq.experiments.ablation import parse_study_variant
from clq.experiments.comparison import check_same_test_set
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
    variants, store = {}, Store(args.store)
    for text in args.variants:
        variant = parse_study_variant(text)
        if variant.name in variants or len(variant.name.encode()) > 200:  # file systems allow names of 255 bytes
            raise UserError(
                f"--variants: {variant.name[:60]}: give each variant a NAME= of its own, of at most 200 bytes."
            )
        variants[variant.name] = variant
    configs = {name: clq.setup_cfg(args.config_file, [*v.opts, *args.opts]) for name, v in variants.items()}
    for cfg in configs.values():
        check_model(cfg)
        check_training(cfg)
        check_datasets(cfg, splits=("TRAIN",))
        check_datasets(cfg, splits=("TEST",))
        require_files(cfg.DATASETS.TEST[0])
    check_same_test_set({name: cfg.DATASETS.TEST[0] for name, cfg in configs.items()})
    settings = {}
    for name, text in zip(variants, args.variants, strict=True):
        given = parse_variant(text)  # with the name of its config, whose keys parse_study_variant has
        files = [os.path.normpath(file) for file in (args.config_file, given.config_file) if file]
        settings[name] = shlex.join([*files, *given.opts, *args.opts])
    missing = store.missing(settings, args.seeds)
    for option, folder in (("--output", args.output), ("--store", args.store), ("--store", args.store.parent)):
        make_folder(option, str(folder))
    runs = {}
    for name, seed in missing:
        opts = (*variants[name].opts, *args.opts, "SEED", str(seed))
        runs[name, seed] = Run(args.config_file, opts, args.output / store.file(name, seed).stem)
        runs[name, seed].prepare()
    wanted = len(variants) * len(set(args.seeds))
    print(f"{wanted - len(missing)} of {wanted} runs are in {args.store}", flush=True)

    output = sys.stdout  # an evaluation in another thread replaces it for a while, to silence pycocotools

    def train(name: str, seed: int) -> bool:
        run = runs[name, seed]
        print(f"{run.folder}: started", file=output, flush=True)
        succeeded = run.done or run.train(max(1, (os.cpu_count() or 1) // args.jobs), None)
        if succeeded:
            store.add(name, settings[name], seed, run, configs[name])
        end = "stored" if succeeded else f"failed, see {run.folder}/stdout.txt"
        print(f"{run.folder}: {end}", file=output, flush=True)
        return succeeded

    with ThreadPoolExecutor(args.jobs) as pool:
        failed = list(pool.map(lambda job: train(*job), missing)).count(False)
    return 1 if failed else 0


if __name__ == "__main__":
    run_cli(main)
