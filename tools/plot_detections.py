#!/usr/bin/env python3
"""Draw ground truth and detections side by side for the images of the test sets, and print the paths of the pictures.

tools/plot_detections.py --config-file output/sample/config.yaml MODEL.WEIGHTS output/sample/model_final.pth
tools/plot_detections.py --config-file ... --crop 640      only the window with the most objects of each image
"""

import argparse
import itertools
import os

import clq
from clq.data.checks import check_datasets
from clq.data.datasets import class_names
from clq.data.reading import read_images
from clq.engine.config_checks import make_folder
from clq.errors import UserError
from clq.inference.predictor import Predictor
from clq.inference.results import DRAWING_THRESHOLD
from clq.inference.visualization import Scene, compare, crop, populated_window
from clq.utils.cli import positive, run_cli
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import annotations_to_instances, convert_image_to_rgb
from detectron2.structures import Instances


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="config of the detector; training saves it in OUTPUT_DIR")
    parser.add_argument("--output", help="folder for the pictures; default: pictures in OUTPUT_DIR")
    parser.add_argument("--limit", type=positive, help="number of images to draw from each data set; default: all")
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        default=DRAWING_THRESHOLD,
        help="lowest final score that is drawn; default: %(default)s",
    )
    parser.add_argument(
        "--crop", type=positive, metavar="PIXELS", help="draw only the square window of this side with the most objects"
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides: KEY VALUE ...")
    return parser.parse_args(argv)


def ground_truth(record: dict) -> Instances:
    """The boxes of a record in Detectron2's format, without crowds."""
    size = record["height"], record["width"]
    keys = "bbox", "bbox_mode", "category_id"  # masks come in several forms and are not drawn
    boxes = [{key: a[key] for key in keys} for a in record["annotations"] if not a.get("iscrowd")]
    return annotations_to_instances(boxes, size)


def picture(cfg, predictor, record: dict, image, names: list[str], args):
    """The picture of one record: its image with the ground truth, and again with the detections."""
    (found,) = predictor.detect([image])
    found = found[found.scores >= args.confidence_threshold]
    scene = Scene(convert_image_to_rgb(image, cfg.INPUT.FORMAT), ground_truth(record), found)
    if args.crop:
        window = populated_window(scene.truth.gt_boxes.tensor.numpy(), image.shape[:2], args.crop)
        scene = crop(scene, window)
    return compare(scene, names, args.confidence_threshold)


def unique(name: str, taken: set[str]) -> str:
    """The name of a picture, with a number (``tree_2.png``) if it is taken; it is then taken, too."""
    found = next(n for n in (name, *(f"{name}_{i}" for i in range(2, len(taken) + 3))) if n.lower() not in taken)
    taken.add(found.lower())  # in lower case, because some file systems ignore case
    return f"{found}.png"


def main(argv=None):
    args = parse_args(argv)
    if not 0 <= args.confidence_threshold <= 1:
        raise UserError(f"--confidence-threshold {args.confidence_threshold}: must be within 0 and 1.")
    cfg = clq.setup_cfg(args.config_file, args.opts)
    cfg.freeze()
    check_datasets(cfg, splits=("TEST",))
    output = args.output or os.path.join(cfg.OUTPUT_DIR, "pictures")
    make_folder("--output", output)
    predictor, taken = Predictor(cfg), set[str]()
    for dataset in cfg.DATASETS.TEST:
        names, root = class_names(dataset), MetadataCatalog.get(dataset).get("image_root", "/")
        for record, image in itertools.islice(read_images(cfg, dataset), args.limit):
            # The path within the data set, since images in two folders may have the same name.
            name = os.path.splitext(os.path.relpath(record["file_name"], root))[0].replace(os.sep, "_")
            path = os.path.join(output, unique(f"{name}_crop" if args.crop else name, taken))
            picture(cfg, predictor, record, image, names, args).save(path)
            print(path, flush=True)


if __name__ == "__main__":
    run_cli(main)
