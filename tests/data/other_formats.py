"""Writes a data set in COCO format as Pascal VOC and as YOLO: what the readers of these formats must read back."""

import json
import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path


def _boxes(data):
    """The images with their annotations, in the order of the file."""
    for image in data["images"]:
        yield image, [a for a in data["annotations"] if a["image_id"] == image["id"]]


def _link_images(entry, folder):
    folder.parent.mkdir(parents=True)
    folder.symlink_to(os.path.abspath(entry["images"]))


def write_voc(entry, folder):
    """Writes a data set as Pascal VOC, with ImageSets/Main/train.txt.

    Args:
        entry: its entry for ``DATASETS.COCO_JSON``. Its boxes are of whole pixels.
        folder: new folder.
    """
    data = json.loads(Path(entry["json"]).read_text())
    names = {c["id"]: c["name"] for c in data["categories"]}
    _link_images(entry, folder / "JPEGImages")
    (folder / "Annotations").mkdir()
    (folder / "ImageSets/Main").mkdir(parents=True)
    for image, annotations in _boxes(data):
        root = ElementTree.Element("annotation")
        ElementTree.SubElement(root, "filename").text = image["file_name"]
        size = ElementTree.SubElement(root, "size")
        for key in ("width", "height"):
            ElementTree.SubElement(size, key).text = str(image[key])
        for a in annotations:
            node = ElementTree.SubElement(root, "object")
            ElementTree.SubElement(node, "name").text = names[a["category_id"]]
            ElementTree.SubElement(node, "difficult").text = str(a["iscrowd"])
            box, (x, y, w, h) = ElementTree.SubElement(node, "bndbox"), map(round, a["bbox"])
            for key, value in {"xmin": x + 1, "ymin": y + 1, "xmax": x + w, "ymax": y + h}.items():
                ElementTree.SubElement(box, key).text = str(value)
        stem = Path(image["file_name"]).stem
        ElementTree.ElementTree(root).write(folder / f"Annotations/{stem}.xml")
    stems = [Path(image["file_name"]).stem for image in data["images"]]
    (folder / "ImageSets/Main/train.txt").write_text("\n".join(reversed(stems)))


def write_yolo(entry, folder, digits=6):
    """Writes a data set as YOLO, with a data.yaml whose split ``train`` is a list of the images.

    Args:
        entry: its entry for ``DATASETS.COCO_JSON``.
        folder: new folder.
        digits: digits of the coordinates after the point.
    """
    data = json.loads(Path(entry["json"]).read_text())
    categories = sorted(data["categories"], key=lambda c: c["id"])
    classes = {c["id"]: i for i, c in enumerate(categories)}
    _link_images(entry, folder / "images")
    (folder / "labels").mkdir()
    for image, annotations in _boxes(data):
        lines, (width, height) = [], (image["width"], image["height"])
        for a in annotations:
            x, y, w, h = a["bbox"]
            values = (x + w / 2) / width, (y + h / 2) / height, w / width, h / height
            lines.append(" ".join([str(classes[a["category_id"]]), *(f"{v:.{digits}f}" for v in values)]))
        (folder / "labels" / f"{Path(image['file_name']).stem}.txt").write_text("\n".join(lines))
    names = "".join(f"  {i}: {c['name']}\n" for i, c in enumerate(categories))
    (folder / "data.yaml").write_text(f"path: .\ntrain: train.txt\nnames:\n{names}")
    (folder / "train.txt").write_text("\n".join(f"./images/{image['file_name']}" for image in data["images"]))
