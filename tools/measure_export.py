#!/usr/bin/env python3
"""Measure the speed and the AP of exported files beside those of the detector that they were made of.

    tools/measure_export.py speed --config-file output/sample --files sample.onnx sample_int8.onnx --input folder
    tools/measure_export.py ap --config-file output/sample/config.yaml --weights output/sample/model_final.pth \\
        --files sample.onnx sample_int8.onnx

`speed` takes turns: for each image, the detector and the files detect one after the other, from pixels in memory and
with the same number of threads. The detector is the one of `clq predict`, with folded batch norms. `ap` evaluates on
the test sets of the config. Both need onnxruntime.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import clq
import torch
from clq.data.checks import check_datasets
from clq.data.images import read_image
from clq.engine.trainer import Trainer
from clq.export.exported import ExportedDetector
from clq.export.formats import read_onnx
from clq.inference.files import find_images
from clq.inference.predictor import Predictor
from clq.utils.cli import positive, run_cli
from torch import nn

_WARM_UP = 3  # images before the first that counts


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "ap"])
    parser.add_argument("--config-file", required=True, help="what clq.load takes")
    parser.add_argument("--weights", help="file of weights, if --config-file is a config")
    parser.add_argument("--files", required=True, nargs="+", type=Path, help="ONNX files that clq export wrote of it")
    parser.add_argument("--input", nargs="+", help="images of `speed`, as of clq predict")
    parser.add_argument("--images", type=positive, default=30, help="number of images of `speed` (default: 30)")
    parser.add_argument("--threads", type=positive, default=1, help="threads of each (default: 1)")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="config overrides: KEY VALUE ...")
    args = parser.parse_args(argv)
    if args.what == "speed" and not args.input:
        parser.error("speed needs --input")
    return args


def read_all(predictor: Predictor, files: list[Path]) -> dict[str, nn.Module]:
    """The detector and the files, by name, all of which are called in the same way."""
    return {"detector": predictor.model, **{f.name: ExportedDetector(read_onnx(f.read_bytes())) for f in files}}


@torch.no_grad()
def speed(args, predictor: Predictor) -> None:
    detectors, preparation = read_all(predictor, args.files), predictor.detector(tile=0)
    milliseconds: dict[str, list[float]] = {name: [] for name in detectors}
    paths, found = find_images(args.input)[: args.images + _WARM_UP], 0
    for i, path in enumerate(paths):
        image = read_image(path, predictor.cfg.INPUT.FORMAT, **predictor.read_options)
        inputs = [preparation.prepare(image)]
        for name, detector in detectors.items():
            start = time.perf_counter()
            (output,) = detector(inputs)
            if i >= _WARM_UP:
                milliseconds[name].append(1e3 * (time.perf_counter() - start))
        found += len(output["instances"]) * (i >= _WARM_UP)
    measured = len(paths) - _WARM_UP
    print(f"{measured} images, {found / measured:.0f} detections in each on average, {args.threads} threads")
    for name, times in milliseconds.items():
        ratio = statistics.median(a / b for a, b in zip(times, milliseconds["detector"], strict=True))
        print(f"{name:24s} {statistics.median(times):8.1f} ms   {ratio:.2f} of the detector's time")


def ap(args, predictor: Predictor) -> None:
    cfg = predictor.cfg
    check_datasets(cfg, splits=("TEST",))
    with tempfile.TemporaryDirectory() as folder:
        for name, detector in read_all(predictor, args.files).items():
            cfg.OUTPUT_DIR = f"{folder}/{name}"
            results = Trainer.test(cfg, detector)
            for dataset in cfg.DATASETS.TEST:
                box = (results if len(cfg.DATASETS.TEST) == 1 else results[dataset])["bbox"]
                print(f"{name:24s} {dataset}: AP {box['AP']:.2f}, AP50 {box['AP50']:.2f}")


def main(argv=None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    predictor = clq.load(args.config_file, args.weights, device="cpu", opts=args.opts)
    (speed if args.what == "speed" else ap)(args, predictor)


if __name__ == "__main__":
    run_cli(main)
