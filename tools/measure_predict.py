#!/usr/bin/env python3
"""Measure what `clq predict` adds to the detector's own time, its memory, and how long a start takes.

tools/measure_predict.py speed --config-file output/sample --input folder
tools/measure_predict.py start --config-file output/sample --input photo.jpg

`speed` first predicts all images and reports the memory of the process on the way. It then takes turns of 25 images:
once the detector alone, whose inputs are ready in memory, and once from image files to lines of json. `start` takes
turns of new processes: one imports torch, torchvision and Detectron2, and the other loads a detector with `clq.load`
and detects once; the time of that call of the model alone is part of the output.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time

import clq
import psutil
from clq.data.images import read_image
from clq.inference.files import find_images
from clq.inference.json_output import open_json
from clq.inference.pipeline import Options, Source, predict_all
from clq.utils.cli import positive, run_cli

_TURN = 25
_IMPORTS = """
import time
start = time.perf_counter()
import torch, torchvision, detectron2
print(time.perf_counter() - start)
"""
_LOAD = """
import sys, time
start = time.perf_counter()
import clq
predictor = clq.load(sys.argv[1], opts=sys.argv[3:])
def timed(inputs):
    begin = time.perf_counter()
    found = forward(inputs)
    seconds.append(time.perf_counter() - begin)
    return found
seconds, forward = [], predictor.model.forward
predictor.model.forward = timed
predictor(sys.argv[2])
print(time.perf_counter() - start, *seconds)
"""


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "start"])
    parser.add_argument("--config-file", required=True, help="what clq.load takes")
    parser.add_argument("--input", nargs="+", required=True, help="as of clq predict")
    parser.add_argument("--batch-size", type=positive, default=1)
    parser.add_argument("--repeats", type=positive, default=5, help="pairs of processes of `start`")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="config overrides: KEY VALUE ...")
    return parser.parse_args(argv)


def speed(args) -> None:
    predictor, paths = clq.load(args.config_file, opts=args.opts), find_images(args.input)
    options, detector = Options(batch_size=args.batch_size, keep_images=False), predictor.detector()

    def from_files(paths: list[str], results) -> float:
        start = time.perf_counter()
        for outcome in predict_all(predictor, (Source(i, path) for i, path in enumerate(paths)), options):
            results.add(outcome.source.number, outcome.result.above(0.4))
        return time.perf_counter() - start

    with tempfile.TemporaryDirectory() as folder, open_json(os.path.join(folder, "results.jsonl")) as results:
        process, turns = psutil.Process(), [paths[i : i + _TURN] for i in range(0, len(paths), _TURN)]
        for outcome in predict_all(predictor, (Source(i, path) for i, path in enumerate(paths)), options):
            results.add(outcome.source.number, outcome.result.above(0.4))
            if outcome.source.number + 1 in (100, len(paths)):
                print(f"memory after {outcome.source.number + 1} images: {process.memory_info().rss / 2**20:.0f} MiB")
        alone, files = [], []
        for turn in turns:
            images = (read_image(path, "RGB", **predictor.read_options) for path in turn)
            inputs = [detector.prepare(predictor.of_input(image)) for image in images]
            start = time.perf_counter()
            for i in range(0, len(inputs), args.batch_size):
                detector.detect(inputs[i : i + args.batch_size])
            alone.append(len(turn) / (time.perf_counter() - start))
            files.append(len(turn) / from_files(turn, results))
    print(
        f"detector alone: {statistics.median(alone):.1f} images/s; from files to json: {statistics.median(files):.1f}"
    )
    ratios = [b / a for a, b in zip(alone, files, strict=True)]
    print(f"ratio: median {statistics.median(ratios):.2f} of {len(ratios)} turns:")
    print("  ".join(f"{ratio:.2f}" for ratio in sorted(ratios)))


def start(args) -> None:
    def run(code: str, *words: str) -> list[float]:
        out = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True).stdout
        return [float(word) for word in out.split()]

    image, rows = find_images(args.input)[0], []
    for _ in itertools.repeat(None, args.repeats):
        (imports,) = run(_IMPORTS)
        rows.append((imports, *run(_LOAD, args.config_file, image, *args.opts)))
    for imports, whole, first in rows:
        print(f"imports {imports:.2f} s, clq.load to first detection {whole:.2f} s, of which the model {first:.2f} s")
    print(f"ratio: median {statistics.median(whole / (imports + first) for imports, whole, first in rows):.2f}")


def main(argv=None) -> None:
    args = parse_args(argv)
    (speed if args.what == "speed" else start)(args)


if __name__ == "__main__":
    run_cli(main)
