#!/usr/bin/env python3
"""Measure how long the check of a large data set takes, the first and the second time.

    measure_check.py --images 118000

The data set is simulated in a temporary folder: small JPEG files, each with a content of its own, and a json with as
many boxes for an image as COCO's has, each with a polygon of 20 points. It takes about 0.5 GB for 118,000 images.
"""

import argparse
import contextlib
import io
import json
import os
import tempfile
import time
from pathlib import Path

import clq
import numpy as np
from clq.data.checks import check_datasets
from clq.utils.cli import positive, run_cli
from PIL import Image

BOXES = 7.3  # of an image of COCO's training set, on average
WIDTH, HEIGHT, POINTS = 64, 48, 20


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=positive, default=118_000, help="number of images (default: %(default)s)")
    return parser.parse_args(argv)


def write_images(folder: Path, num_images: int) -> None:
    """Writes JPEG files that differ in their pixels."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(num_images):
        f = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8), np.uint8)).resize((WIDTH, HEIGHT)).save(
            f, "JPEG"
        )
        (folder / f"{i:012d}.jpg").write_bytes(f.getvalue())


def write_json(path: Path, num_images: int) -> None:
    """Writes the annotations of these images, in COCO's format."""
    rng = np.random.default_rng(1)
    owners = np.sort(rng.integers(0, num_images, max(round(BOXES * num_images), 1)))
    corners, sizes = rng.integers(0, 20, (len(owners), 2)), rng.integers(4, 28, (len(owners), 2))
    polygons = rng.integers(0, 4800, (len(owners), 2 * POINTS)) / 100
    classes = rng.integers(1, 81, len(owners))
    annotations = [
        {
            "id": i + 1,
            "image_id": int(owner) + 1,
            "category_id": int(classes[i]),
            "iscrowd": 0,
            "bbox": [*corners[i].tolist(), *sizes[i].tolist()],
            "area": int(sizes[i].prod()),
            "segmentation": [polygons[i].tolist()],
        }
        for i, owner in enumerate(owners)
    ]
    images = [{"id": i + 1, "file_name": f"{i:012d}.jpg", "width": WIDTH, "height": HEIGHT} for i in range(num_images)]
    categories = [{"id": i, "name": f"class {i}"} for i in range(1, 81)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def main(argv=None):
    args = parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="measure_check_") as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")  # headers are remembered for this measurement only
        write_images(folder / "images", args.images)
        write_json(folder / "train.json", args.images)
        size = (folder / "train.json").stat().st_size / 2**20
        print(f"{args.images} images, a json of {size:.0f} MiB", flush=True)
        entry = {"name": "simulated", "json": str(folder / "train.json"), "images": str(folder / "images")}
        opts = ["MODEL.DEVICE", "cpu", "DATASETS.COCO_JSON", [entry], "DATASETS.TRAIN", ("simulated",)]
        cfg = clq.setup_cfg(None, [*opts, "DATASETS.TEST", ()])
        for time_of in ("first", "second"):
            wall, cpu = time.perf_counter(), time.process_time()
            with contextlib.redirect_stderr(io.StringIO()):  # the progress bar
                check_datasets(cfg)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            print(f"the {time_of} check: {wall:.1f} s, {cpu:.1f} s of processor time", flush=True)


if __name__ == "__main__":
    run_cli(main)
