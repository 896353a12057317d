"""Prepares the sample data sets of tree crowns in two aerial photographs: ``python -m clq.data.sample``.

The photographs and their boxes are part of the PyPI package ``deepforest`` (MIT licence), which is unpacked only for
these files. Each photograph is divided by a vertical line at 67% of its width:

* The left part is for training. It is cut into tiles of 400 pixels that overlap by at least a quarter. A tile contains
  every box of which it shows at least a quarter of the area, clipped to the tile. Tiles without a box are kept.
* The right part is for validation. It stays one strip per photograph, so that each box counts exactly once.
* A box that crosses the line belongs to neither part. The two parts share no pixel, so training never sees any part of
  a validation object.

One strip contains more than 250 boxes. Evaluate with ``TEST.DETECTIONS_PER_IMAGE`` (and the ``max_dets_per_image`` of
COCOEvaluator) of at least 1000, because the usual limit of 100 detections per image would limit the recall.
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
from typing import NamedTuple

import numpy as np
from PIL import Image

from clq.data.tiling import MIN_VISIBLE, boxes_in_window, split_at, tile_starts
from clq.errors import UserError
from clq.utils.cli import run_cli

PACKAGE = "deepforest==2.1.0"


class Photograph(NamedTuple):
    """The size of a photograph in pixels, and the number of its boxes."""

    width: int
    height: int
    num_boxes: int

    def __str__(self) -> str:
        return f"{self.width} x {self.height} pixels and {self.num_boxes} boxes"


PHOTOGRAPHS = {  # the contents of the package, by name of the file
    "2019_YELL_2_528000_4978000_image_crop2": Photograph(2299, 2472, 574),
    "2019_YELL_2_541000_4977000_image_crop": Photograph(1249, 1035, 279),
}
TRAIN_PART = 0.67  # fraction of the width, from the left
TILE = 400  # side of a tile in pixels
OVERLAP = 0.25  # minimum overlap of neighbouring tiles, as a fraction of TILE
STAMP = "sample.json"
VERSION = 1  # to be increased when the rules above change, so that existing folders are prepared again
CREDIT = f"""Tree crowns from the air
========================

Photographs and boxes: Ben Weinstein and the DeepForest authors, from the Python package {PACKAGE}, MIT licence (see
LICENSE beside this file). The photographs are of the National Ecological Observatory Network's site YELL (Yellowstone),
2019. Changed here: cut into training tiles and validation strips; boxes rewritten as COCO json.
"""


def prepare(output: str | os.PathLike) -> bool:
    """Prepares the sample data sets in a folder. If anything fails, the folder is left as it was.

    The folder then contains ``train.json``, ``val.json``, ``images/``, ``LICENSE``, ``CREDITS.txt`` and a stamp file
    that lists all files.

    Args:
        output: path of the folder. It is created, or prepared again if it has another version or lacks files.

    Returns:
        False if the folder was already complete.

    Raises:
        UserError: the package cannot be fetched or is not as expected, or the folder contains something else.
    """
    output = Path(output)
    if _complete(output):
        return False
    if output.exists() and not (output / STAMP).is_file() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(
            f"{output}: not a sample data set, so nothing was changed; delete it or choose another --output."
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    # The temporary folder is on the same disk as the output, so that the last step is a rename.
    with tempfile.TemporaryDirectory(prefix=".sample-", dir=output.parent) as work:
        package, new = Path(work, "package"), Path(work, "new")
        fetch(package)
        build(package, new)
        if output.exists():
            output.rename(Path(work, "old"))
        new.rename(output)
    return True


def _complete(output: Path) -> bool:
    """Returns whether a folder has this version and all of the files that its stamp lists."""
    try:
        stamp = json.loads((output / STAMP).read_text())
    except (OSError, ValueError):
        return False
    return stamp["version"] == VERSION and all((output / name).is_file() for name in stamp["files"])


def fetch(target: Path) -> None:
    """Unpacks the package into ``target``, without its dependencies.

    Raises:
        UserError: no installer is available, or it failed, usually because there is no network.
    """
    command = [*_installer(), "--no-deps", "--only-binary", ":all:", "--target", str(target), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no message").strip()
        raise UserError(
            f"the sample data could not be fetched ({reason}). This needs the network once: check the connection, or "
            f"the index that your pip or uv uses, and run it again. The command was: {' '.join(command)}"
        )


def _installer() -> list[str]:
    """Returns the first words of an install command, with uv or pip from this environment or else from PATH."""
    beside = os.path.dirname(sys.executable)
    if uv := shutil.which("uv", path=beside) or shutil.which("uv"):
        return [uv, "pip", "install", "--python", sys.executable]
    if importlib.util.find_spec("uv"):
        return [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable]
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "install"]
    if pip := shutil.which("pip3") or shutil.which("pip"):
        return [pip, "install"]
    raise UserError(f"neither uv nor pip is available to fetch {PACKAGE}; install one of them, for example uv.")


def build(package: Path, output: Path) -> None:
    """Cuts the photographs of an unpacked package into images and annotations in a new folder.

    Args:
        package: folder that the package was unpacked into.
        output: folder to create.

    Raises:
        UserError: the package does not contain what this module was written for.
    """
    images = output / "images"
    images.mkdir(parents=True)
    train, val = CocoWriter(images), CocoWriter(images)
    for name, expected in PHOTOGRAPHS.items():
        try:
            image, boxes = read_photograph(package / "deepforest" / "data" / name)
        except (OSError, ValueError, ElementTree.ParseError) as e:
            raise UserError(f"{PACKAGE} is not as expected ({e}); run this again, and report it if it persists.") from e
        found = Photograph(image.width, image.height, len(boxes))
        if found != expected:
            raise UserError(f"{PACKAGE}: {name} has {found} instead of {expected}; please report this.")
        cut(name, image, boxes, train=train, val=val)
    train.write(output / "train.json")
    val.write(output / "val.json")
    licences = sorted(package.glob("deepforest-*.dist-info/**/LICENSE*"))
    if not licences:
        raise UserError(f"{PACKAGE} contains no licence; please report this.")
    shutil.copyfile(licences[0], output / "LICENSE")
    (output / "CREDITS.txt").write_text(CREDIT)
    files = sorted(str(path.relative_to(output)) for path in output.rglob("*") if path.is_file())
    (output / STAMP).write_text(json.dumps({"version": VERSION, "files": files}, indent=1))


def read_photograph(stem: Path) -> tuple[Image.Image, np.ndarray]:
    """Reads a photograph.

    Args:
        stem: path of the photograph without the suffixes of its two files, ``.png`` and ``.xml`` (Pascal VOC).

    Returns:
        The RGB image and its boxes, (M, 4) XYXY in pixels.

    Raises:
        OSError: a file cannot be read.
        ValueError: a box lacks a coordinate, or one is not a number.
        ElementTree.ParseError: the annotations are not valid XML.
    """
    with Image.open(f"{stem}.png") as f:
        image = f.convert("RGB")
    boxes = [
        [float(box.findtext(side, default="")) for side in ("xmin", "ymin", "xmax", "ymax")]
        for box in ElementTree.parse(f"{stem}.xml").iter("bndbox")
    ]
    # VOC counts pixels from 1 and includes the last one; converted as in detectron2.data.datasets.pascal_voc.
    return image, np.array(boxes).reshape(-1, 4) - [1.0, 1.0, 0.0, 0.0]


class CocoWriter:
    """Collects images and boxes of the single class ``tree`` and writes them as a COCO data set.

    Args:
        folder: folder that the images are saved to.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.images: list[dict] = []
        self.annotations: list[dict] = []

    def add(self, name: str, image: Image.Image, boxes: np.ndarray) -> None:
        """Saves an image as ``name.png`` and adds its boxes.

        Args:
            name: file name without suffix.
            image: image to save.
            boxes: (M, 4) XYXY in pixels of the image.
        """
        image.save(self.folder / f"{name}.png")
        image_id = len(self.images) + 1
        self.images.append({"id": image_id, "file_name": f"{name}.png", "width": image.width, "height": image.height})
        for x0, y0, x1, y1 in boxes.tolist():
            self.annotations.append(
                {
                    "id": len(self.annotations) + 1,  # from 1, because pycocotools takes a match with id 0 for no match
                    "image_id": image_id,
                    "category_id": 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                }
            )

    def write(self, path: Path) -> None:
        """Writes the annotations to a json file."""
        content = {
            "info": {"description": f"Tree crowns, from {PACKAGE}", "version": str(VERSION)},
            "licenses": [{"id": 1, "name": "MIT"}],
            "categories": [{"id": 1, "name": "tree"}],
            "images": self.images,
            "annotations": self.annotations,
        }
        path.write_text(json.dumps(content))


def cut(name: str, image: Image.Image, boxes: np.ndarray, *, train: CocoWriter, val: CocoWriter) -> None:
    """Adds the tiles of a photograph's left part to ``train``, and its right part to ``val``."""
    line = round(TRAIN_PART * image.width)
    left, right = split_at(boxes, line)
    for y in tile_starts(image.height, TILE, OVERLAP):
        for x in tile_starts(line, TILE, OVERLAP):
            window = (x, y, min(x + TILE, line), min(y + TILE, image.height))
            train.add(f"{name}_{x}_{y}", image.crop(window), boxes_in_window(left, window, MIN_VISIBLE))
    strip = (line, 0, image.width, image.height)
    val.add(f"{name}_val", image.crop(strip), boxes_in_window(right, strip, MIN_VISIBLE))


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="datasets/sample", help="folder to create (default: %(default)s)")
    output = parser.parse_args(args).output
    created = prepare(output)
    print(f"{output}: {'created' if created else 'already complete'}")
    for part in ("train", "val"):
        content = json.loads(Path(output, f"{part}.json").read_text())
        print(f"  sample_trees_{part}: {len(content['images'])} images, {len(content['annotations'])} boxes")


if __name__ == "__main__":
    run_cli(main)
