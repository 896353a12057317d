"""Draw images as a training sees them, with their boxes and the locations that are trained towards each object.

    clq browse --config-file cells.yaml --output pictures
    clq browse --config-file cells.yaml --output pictures --raw --suspicious

Images with annotations that are probably not meant come first: boxes outside of their image, drawn twice, tiny, huge or
thin. suspicious.csv lists all of them. sheet.jpg shows all pictures, and each is a file of its own.
"""

import argparse
import math
import os
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.utils.logger import setup_logger
from PIL import Image

import clq
from clq.data.checks import check_datasets
from clq.data.datasets import class_names
from clq.engine.config_checks import check_model, make_folder
from clq.errors import UserError
from clq.inspection.pictures import contact_sheet, draw_view, picture_name
from clq.inspection.suspicious import Suspicion, find_suspicious, read_annotated, worst_first, write_suspicious
from clq.inspection.training_images import Resizing, object_boxes
from clq.inspection.training_view import Targeting, View, training_views
from clq.utils.cli import count, positive, run_cli

SIDE, CELL = 1200, 480  # longer side in pixels of a picture, and of one in the contact sheet


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="path or name of the config")
    parser.add_argument("--output", metavar="FOLDER", help="folder for the pictures; default: browse in OUTPUT_DIR")
    parser.add_argument("--count", type=positive, default=12, help="number of images; default: %(default)s")
    parser.add_argument("--columns", type=positive, help="number of pictures in a row of the sheet")
    parser.add_argument("--dataset", metavar="NAME", help="data set; default: the first one of DATASETS.TRAIN")
    parser.add_argument("--seed", type=count, default=0, help="seed of the augmentations and of the choice of images")
    parser.add_argument("--raw", action="store_true", help="resize images only, and mark suspicious boxes in red")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--suspicious", action="store_true", help="draw only images with suspicious annotations")
    which.add_argument("--random", action="store_true", help="draw images at random, not suspicious ones first")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Draws the pictures and prints their paths."""
    args = parse_args(argv)
    setup_logger(name="clq")
    cfg = _setup(args)
    output = args.output or os.path.join(cfg.OUTPUT_DIR, "browse")
    make_folder("--output", output)
    [name] = cfg.DATASETS.TRAIN
    records, names = read_annotated(name), class_names(name)
    suspicions = find_suspicious(records, names)
    table = os.path.join(output, "suspicious.csv")
    write_suspicious(table, suspicions, records, names)
    images = len({s.record for s in suspicions})
    print(f"{table}: {len(suspicions)} suspicious annotations in {images} of {len(records)} images")
    chosen = choose(cfg, args, records, suspicions)
    if not chosen:
        print("no image to draw")
        return 0
    _draw_all(cfg, args, output, records, chosen, suspicions)
    return 0


def _setup(args: argparse.Namespace) -> CfgNode:
    """The config, with the data set to draw as its only one, checked."""
    cfg = clq.setup_cfg(args.config_file, args.opts)
    name = args.dataset or next(iter(cfg.DATASETS.TRAIN), None)
    if name is None:
        raise UserError("DATASETS.TRAIN is empty; name a data set with --dataset.")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.SEED = (name,), (), args.seed
    check_model(cfg)
    check_datasets(cfg, splits=("TRAIN",))
    cfg.freeze()
    return cfg


def choose(
    cfg: CfgNode, args: argparse.Namespace, records: Sequence[dict], suspicions: Sequence[Suspicion]
) -> list[int]:
    """The indices of the records to draw: the worst first, then random ones among those that are trained on."""
    worst = [] if args.random else worst_first(suspicions)
    if args.suspicious:
        return worst[: args.count]
    known, filtered = set(worst), cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    others = [i for i, r in enumerate(records) if i not in known and not (filtered and not len(object_boxes(r)))]
    shuffled = np.random.default_rng(args.seed).permutation(others).tolist()
    return [*worst, *shuffled][: args.count]


def _draw_all(
    cfg: CfgNode,
    args: argparse.Namespace,
    output: str,
    records: Sequence[dict],
    chosen: Sequence[int],
    suspicions: Sequence[Suspicion],
) -> None:
    names = class_names(cfg.DATASETS.TRAIN[0])
    targeting = Targeting(cfg) if cfg.MODEL.META_ARCHITECTURE == "CLQ" else None
    levels = targeting.levels if targeting else ()
    skip = cfg.DATASETS.ON_ERROR == "skip"
    views = training_views(
        cfg,
        records,
        chosen,
        augmented=not args.raw,
        targeting=targeting,
        on_left_out=(lambda path, reason: print(f"left out: {reason}")) if skip else None,
    )
    by_record, resizing = defaultdict(list), Resizing(cfg)
    for s in suspicions:
        by_record[s.record].append(s)
    cells = []
    for number, (index, view) in enumerate(zip(chosen, views, strict=True), 1):
        is_shown = view.file_name == records[index]["file_name"]  # not one in the place of a damaged one
        odd = by_record[index] if is_shown else []
        marked = marked_boxes(resizing, records[index], odd) if args.raw and is_shown else None
        captions = captions_of(view, odd)
        path = os.path.join(output, picture_name(number, view.file_name))
        _save(draw_view(view, names, SIDE, marked=marked, captions=captions, levels=levels), path)
        cells.append(draw_view(view, names, CELL, marked=marked, captions=captions))
    columns = args.columns or math.ceil(math.sqrt(len(cells)))
    _save(contact_sheet(cells, columns, levels), os.path.join(output, "sheet.jpg"))


def marked_boxes(resizing: Resizing, record: dict, suspicions: Sequence[Suspicion]) -> np.ndarray:
    """(X, 4) boxes of suspicious annotations, XYXY in pixels of the resized image."""
    transforms, _ = resizing((record["height"], record["width"]))
    boxes = object_boxes(record)[sorted({s.object for s in suspicions})]
    return transforms.apply_box(boxes) if len(boxes) else boxes


def captions_of(view: View, suspicions: Sequence[Suspicion]) -> list[str]:
    """Lines of text on an image: its name and numbers, and what is suspicious in it."""
    parts = [os.path.basename(view.file_name), f"{len(view.boxes)} object{'s' * (len(view.boxes) != 1)}"]
    if view.positives is not None:
        without = len(view.boxes) - len(np.unique(view.positives.objects))
        parts.append(f"{len(view.positives.objects)} positives{f' ({without} without any)' if without else ''}")
    kinds = [s.kind for s in suspicions]
    odd = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    detail = f": {suspicions[0].reason}" if len(suspicions) == 1 else ""
    return [", ".join(parts), *([f"suspicious: {odd}{detail}"] if odd else [])]


def _save(picture: Image.Image, path: str) -> None:
    try:
        picture.save(path, quality=90)
    except OSError as e:
        raise UserError(f"{path}: cannot be written ({e.strerror or e}); choose another folder.") from e
    print(path, flush=True)


if __name__ == "__main__":
    run_cli(main)
