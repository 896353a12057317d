"""Check the data sets of a config as a training does before it starts, and summarize what they contain.

The sizes of the training objects are compared with the levels and anchors of the config, and better ones are proposed.

    clq check-data --config-file cells.yaml

The exit status is 2 for a fault that would stop a training. Warnings name what is left out or probably not meant.
"""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence

from detectron2.data import DatasetCatalog
from detectron2.utils.logger import setup_logger

import clq
from clq.data.checks import check_datasets
from clq.data.datasets import class_names
from clq.data.left_out import left_out_images
from clq.data.num_classes import resolve_num_classes
from clq.inspection.size_report import report


def _parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="path or name of the config")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Checks the data sets, and prints a summary of each and the sizes of objects."""
    args = _parse_args(argv)
    setup_logger(name="clq")
    cfg = clq.setup_cfg(args.config_file, args.opts)
    left_out = Counter(entry.data_set for entry in check_datasets(cfg))
    resolve_num_classes(cfg)
    training: list[dict] = []
    for split in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[split]:
            gone = left_out_images(name)
            records = [r for r in DatasetCatalog.get(name) if (r["file_name"], r.get("image_id")) not in gone]
            training += records if split == "TRAIN" else []
            print(f"DATASETS.{split} {name}")
            for line in summarize(records, class_names(name), left_out[name]):
                print(f"  {line}")
    print(report(cfg, training))


def summarize(records: Sequence[dict], classes: Sequence[str], left_out: int = 0) -> Iterator[str]:
    """Describes a data set in lines: images, boxes, and boxes of each class. Crowds do not count.

    Args:
        records: records in Detectron2's format.
        classes: names of the classes.
        left_out: number of images and annotations that have been left out because of a fault.
    """
    found = [[a["category_id"] for a in r.get("annotations", ()) if not a.get("iscrowd", 0)] for r in records]
    counts = Counter(c for ids in found for c in ids)
    empty = sum(not ids for ids in found)
    yield f"{len(records):,} images, {empty:,} of them without a box"
    if left_out:
        yield f"{left_out:,} images or annotations left out"
    yield f"{counts.total():,} boxes of {len(classes):,} classes"
    width = max(map(len, classes), default=0)
    for index, name in enumerate(classes):
        yield f"  {name:{width}}  {counts[index]:,}"
