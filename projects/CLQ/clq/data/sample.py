"""Prepares the sample data sets: tree crowns in two aerial photographs, ``python -m clq.data.sample --output FOLDER``.

The photographs and their boxes come inside the PyPI package ``deepforest`` (MIT), which is unpacked for its files only.
Each photograph is divided by a vertical line at 67% of its width:

* Left, for training: tiles of 400 px that overlap by a quarter or more. A tile takes every box of which it shows at
  least a quarter of the area, clipped to the tile. Tiles without a box are kept.
* Right, for validation: one whole strip per photograph, so each box counts exactly once.
* A box that crosses the line belongs to neither side. No pixel is on both sides, so nothing of a validation object is
  ever trained on.

One strip holds more than 250 boxes: evaluate with ``TEST.DETECTIONS_PER_IMAGE`` (and COCOEvaluator's
``max_dets_per_image``) of at least 1000, or the usual limit of 100 detections per image caps the recall.
"""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from clq.data.tiling import MIN_VISIBLE, boxes_in_window, split_at, tile_starts
from clq.errors import UserError
from clq.utils.cli import run_cli

PACKAGE = "deepforest==2.1.0"
PHOTOGRAPHS = {  # name: (width, height, boxes), as the package has them
    "2019_YELL_2_528000_4978000_image_crop2": (2299, 2472, 574),
    "2019_YELL_2_541000_4977000_image_crop": (1249, 1035, 279),
}
TRAIN_PART = 0.67  # of the width, from the left
TILE = 400  # pixels
OVERLAP = 0.25  # of a tile, at least
STAMP = "sample.json"
VERSION = 1  # raise it when the rules above change: prepared folders are then made again
CREDIT = f"""Tree crowns from the air
========================

Photographs and boxes: Ben Weinstein and the DeepForest authors, from the Python package {PACKAGE}, MIT licence (see
LICENSE beside this file). The photographs are of the National Ecological Observatory Network's site YELL (Yellowstone),
2019. Changed here: cut into training tiles and validation strips; boxes rewritten as COCO json.
"""


def prepare(output: str | os.PathLike) -> bool:
    """Makes the sample data sets in a folder, all or nothing.

    Writes ``train.json``, ``val.json``, ``images/``, ``LICENSE``, ``CREDITS.txt`` and a stamp that lists them.

    Args:
        output: the folder; made, or made again where it holds another version or misses files.

    Returns:
        False when it was complete already.

    Raises:
        UserError: the package cannot be fetched or is not as expected; the folder holds something else.
    """
    output = Path(output)
    if _complete(output):
        return False
    if output.exists() and not (output / STAMP).is_file() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"{output}: not a sample data set, so it is left alone; delete it or choose another --output.")
    output.parent.mkdir(parents=True, exist_ok=True)
    # On the same disk as the output, so that the last step is one rename.
    with tempfile.TemporaryDirectory(prefix=".sample-", dir=output.parent) as work:
        package, made = Path(work, "package"), Path(work, "made")
        fetch(package)
        build(package, made)
        if output.exists():
            output.rename(Path(work, "old"))
        made.rename(output)
    return True


def _complete(output: Path) -> bool:
    try:
        stamp = json.loads((output / STAMP).read_text())
    except (OSError, ValueError):
        return False
    return stamp["version"] == VERSION and all((output / name).is_file() for name in stamp["files"])


def fetch(target: Path) -> None:
    """Unpacks the package into ``target``, without what it depends on.

    Raises:
        UserError: no installer, or it failed (usually: no network).
    """
    command = [*_installer(), "--no-deps", "--only-binary", ":all:", "--target", str(target), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no message").strip()
        raise UserError(
            f"the sample data could not be fetched ({reason}). It needs the network once: check the connection, or the "
            f"index your pip or uv is set to, and run again. Tried: {' '.join(command)}"
        )


def _installer() -> list[str]:
    """The beginning of an install command: uv or pip of this environment, else those on PATH."""
    beside = os.path.dirname(sys.executable)
    if uv := shutil.which("uv", path=beside) or shutil.which("uv"):
        return [uv, "pip", "install", "--python", sys.executable]
    if importlib.util.find_spec("uv"):
        return [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable]
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "install"]
    if pip := shutil.which("pip3") or shutil.which("pip"):
        return [pip, "install"]
    raise UserError(f"neither uv nor pip is here to fetch {PACKAGE} with; install either, for example uv.")


def build(package: Path, output: Path) -> None:
    """Cuts the photographs of an unpacked package into a new folder.

    Raises:
        UserError: the package does not hold what this module was written for.
    """
    images = output / "images"
    images.mkdir(parents=True)
    train, val = CocoWriter(images), CocoWriter(images)
    for name, expected in PHOTOGRAPHS.items():
        try:
            image, boxes = read_photograph(package / "deepforest" / "data" / name)
        except (OSError, ElementTree.ParseError) as e:
            raise UserError(f"{PACKAGE} is not as expected ({e}); run again, and report it if that stays so.") from e
        if (*image.size, len(boxes)) != expected:
            raise UserError(f"{PACKAGE}: {name} is {(*image.size, len(boxes))}, not {expected}; report it, please.")
        cut(name, image, boxes, train, val)
    train.write(output / "train.json")
    val.write(output / "val.json")
    licences = sorted(package.glob("deepforest-*.dist-info/**/LICENSE*"))
    if not licences:
        raise UserError(f"{PACKAGE} comes without its licence; report it, please.")
    shutil.copyfile(licences[0], output / "LICENSE")
    (output / "CREDITS.txt").write_text(CREDIT)
    files = sorted(str(path.relative_to(output)) for path in output.rglob("*") if path.is_file())
    (output / STAMP).write_text(json.dumps({"version": VERSION, "files": files}, indent=1))


def read_photograph(stem: Path) -> tuple[Image.Image, np.ndarray]:
    """A photograph (RGB) and its boxes, (M, 4) XYXY pixels, from ``stem.png`` and ``stem.xml`` (Pascal VOC)."""
    with Image.open(f"{stem}.png") as f:
        image = f.convert("RGB")
    boxes = [
        [float(box.findtext(side)) for side in ("xmin", "ymin", "xmax", "ymax")]
        for box in ElementTree.parse(f"{stem}.xml").iter("bndbox")
    ]
    # VOC counts pixels from 1 and includes the last: as in detectron2.data.datasets.pascal_voc.
    return image, np.array(boxes).reshape(-1, 4) - [1.0, 1.0, 0.0, 0.0]


class CocoWriter:
    """Collects images, saved to ``folder``, and boxes of one class, ``tree``, and writes them as COCO json."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.images: list[dict] = []
        self.annotations: list[dict] = []

    def add(self, name: str, image: Image.Image, boxes: np.ndarray) -> None:
        """Saves an image as ``name.png`` and takes its boxes, (M, 4) XYXY pixels of that image."""
        image.save(self.folder / f"{name}.png")
        image_id = len(self.images) + 1
        self.images.append({"id": image_id, "file_name": f"{name}.png", "width": image.width, "height": image.height})
        for x0, y0, x1, y1 in boxes.tolist():
            self.annotations.append(
                {
                    "id": len(self.annotations) + 1,  # from 1: pycocotools reads a match with id 0 as no match
                    "image_id": image_id,
                    "category_id": 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                }
            )

    def write(self, path: Path) -> None:
        """Writes the json."""
        content = {
            "info": {"description": f"Tree crowns, from {PACKAGE}", "version": str(VERSION)},
            "licenses": [{"id": 1, "name": "MIT"}],
            "categories": [{"id": 1, "name": "tree"}],
            "images": self.images,
            "annotations": self.annotations,
        }
        path.write_text(json.dumps(content))


def cut(name: str, image: Image.Image, boxes: np.ndarray, train: CocoWriter, val: CocoWriter) -> None:
    """Adds the tiles of a photograph's left part to ``train`` and its right strip to ``val``."""
    line = round(TRAIN_PART * image.width)
    left, right = split_at(boxes, line)
    for y in tile_starts(image.height, TILE, OVERLAP):
        for x in tile_starts(line, TILE, OVERLAP):
            window = (x, y, min(x + TILE, line), min(y + TILE, image.height))
            train.add(f"{name}_{x}_{y}", image.crop(window), boxes_in_window(left, window, MIN_VISIBLE))
    strip = (line, 0, image.width, image.height)
    val.add(f"{name}_val", image.crop(strip), boxes_in_window(right, strip, MIN_VISIBLE))


def main(args: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="datasets/sample", help="folder to make (default: %(default)s)")
    output = parser.parse_args(args).output
    made = prepare(output)
    print(f"{output}: {'made' if made else 'complete already'}")
    for part in ("train", "val"):
        content = json.loads(Path(output, f"{part}.json").read_text())
        print(f"  sample_trees_{part}: {len(content['images'])} images, {len(content['annotations'])} boxes")


if __name__ == "__main__":
    run_cli(main)
