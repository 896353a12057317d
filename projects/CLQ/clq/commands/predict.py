"""Detect objects in image files, and write annotated pictures and, with --json, COCO-style results.

    demo.py --config-file output/sample/config.yaml --input photo.jpg folder "more/*.png" --output pictures
            --opts MODEL.WEIGHTS output/sample/model_final.pth

The exit status is 0, or 1 if an image could not be read (it is named and skipped), or 2 for a mistake in the call.
"""

import argparse
import json
import os
import sys
import time

from detectron2.data.detection_utils import convert_image_to_rgb

import clq
from clq.data.images import read_image, read_options
from clq.engine.config_checks import make_folder
from clq.errors import UserError
from clq.inference.predictor import (
    Predictor,
    find_images,
    picture_names,
)
from clq.inference.results import DRAWING_THRESHOLD, Result


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="config of the detector; training saves it in OUTPUT_DIR")
    parser.add_argument("--input", nargs="+", required=True, help="image files, folders (no subfolders) or patterns")
    parser.add_argument("--output", required=True, help="folder for the pictures, which are named after their images")
    parser.add_argument("--json", help="file for the results, with the scores and the predicted IoU of each box")
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        default=DRAWING_THRESHOLD,
        help="lowest final score of a detection that is drawn and written (default: %(default)s); the detector itself "
        "drops detections below MODEL.CLQ.SCORE_THRESH, or the threshold of Detectron2's own models",
    )
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="config overrides: KEY VALUE ...")
    return parser.parse_args(argv)


def setup(args):
    """Checks everything in the call, and returns the frozen config and the paths of the images."""
    if not 0 <= args.confidence_threshold <= 1:
        raise UserError(f"--confidence-threshold {args.confidence_threshold}: must be within 0 and 1.")
    paths = find_images(args.input)
    cfg = clq.setup_cfg(args.config_file, args.opts)
    cfg.freeze()
    if any(os.path.realpath(os.path.dirname(path)) == os.path.realpath(args.output) for path in paths):
        raise UserError(f"--output {args.output}: has images of --input, which would be overwritten; choose another.")
    if os.path.isdir(args.json or ""):
        raise UserError(f"--json {args.json}: is a folder; name a file.")
    make_folder("--output", args.output)
    make_folder("--json, in", os.path.dirname(args.json or "") or ".")
    return cfg, paths


def main(argv=None):
    """Detects in one image after the other, and returns the exit status."""
    args = parse_args(argv)
    cfg, paths = setup(args)
    options = read_options(cfg)
    predictor, results, status = Predictor(cfg), [], 0
    for i, (path, picture) in enumerate(zip(paths, picture_names(paths), strict=True)):
        start = time.perf_counter()
        try:
            image = read_image(path, cfg.INPUT.FORMAT, **options)
            (found,) = predictor.detect([image])
        except UserError as e:
            print(f"{path}: skipped: {str(e).removeprefix(f'image {path}: ')}", file=sys.stderr)
            status = 1
            continue
        quality = cfg.MODEL.CLQ.QUALITY.NAME
        rgb = convert_image_to_rgb(image, cfg.INPUT.FORMAT)
        found = Result(rgb, found, predictor.categories, quality_name=quality, path=path)
        found = found.above(args.confidence_threshold)
        results += found.to_coco(image_id=i)
        target = os.path.join(args.output, picture)
        found.draw(threshold=0).save(target, quality=95)
        seconds = time.perf_counter() - start
        print(f"[{i + 1}/{len(paths)}] {path}: {len(found)} detections, {seconds:.2f} s -> {target}", flush=True)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump(results, f)
    return status
