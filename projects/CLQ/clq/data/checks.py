"""Finds faults in data sets before training starts, rather than hours into it."""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from clq.data.datasets import (
    class_names,
    is_declared,
    names_by_id,
    read_coco_json,
    require_files,
    require_known,
    resolve_num_classes,
)
from clq.errors import UserError

logger = logging.getLogger(__name__)

# The types that the values of a record may have, by key.
_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("id", "image_id", "category_id"), (int, float, str)),
    **dict.fromkeys(("file_name", "name"), (str,)),
    **dict.fromkeys(("width", "height"), (int, float)),
}
IMAGES_TRIED = 8  # number of files looked for, spread over the data set: in a wrong folder, none of them exists
EVALUATION_KEYS = ("area", "iscrowd")  # pycocotools fails on annotations without them, but only after training


@dataclass(frozen=True)
class Summary:
    """What a data set contains. Whether that is enough depends on whether it is used for training or evaluation.

    Attributes:
        classes: names of the classes, in the order of the model's outputs.
        num_images: number of images in the json. None means that the json was not read; the attributes below are then
            empty.
        boxes_per_image: number of boxes that can be found, by image id: those with an area that are not crowds.
        trainable: number of these boxes that Detectron2 trains on.
        unevaluable: the reason why COCOEvaluator would fail; empty if it would not.
    """

    classes: list[str]
    num_images: int | None = None
    boxes_per_image: Counter = field(default_factory=Counter)
    trainable: int = 0
    unevaluable: str = ""


def check_datasets(cfg: CfgNode, splits: Sequence[str] = ("TRAIN", "TEST")) -> None:
    """Checks each data set that a config names, once.

    Each data set must have its files, unique ids, known categories and finite boxes. Its classes must be those of the
    first data set, in the same order; without training sets, their number must be that of the detector. A training set
    needs at least one box. The following are logged as warnings, with their number:

    * boxes without an area: Detectron2 drops them in training, and in evaluation no detection can match them;
    * boxes that extend beyond their image: Detectron2 clips them;
    * images with more objects than ``TEST.DETECTIONS_PER_IMAGE``.

    For Detectron2's own data sets only the existence of the files is checked, and for those that were registered in
    code without a json only the classes.

    Args:
        cfg: config with ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        splits: names of the splits to check, "TRAIN" or "TEST".

    Raises:
        UserError: a fault that would stop or spoil training or evaluation; the first one is reported.
    """
    summaries: dict[str, Summary] = {}
    for split in splits:
        needed = split == "TRAIN" or "TRAIN" not in splits  # training works without a test set
        if needed and not cfg.DATASETS[split]:
            raise UserError(f"DATASETS.{split} is empty; name a data set, for example one from DATASETS.COCO_JSON.")
        for name in cfg.DATASETS[split]:
            if name not in summaries:
                summaries[name] = _check_one(name)
            _check_classes(summaries, next(iter(summaries)), name)
            if summaries[name].num_images is not None:
                _check_use(name, split, summaries[name], cfg.TEST.DETECTIONS_PER_IMAGE)
    if "TRAIN" not in splits:
        _check_number(summaries, resolve_num_classes(cfg))


def _check_one(name: str) -> Summary:
    """Runs the checks that do not depend on how the data set is used."""
    require_known(name)
    metadata = MetadataCatalog.get(name)
    if metadata.get("json_file") is None:
        return Summary(class_names(name))
    if metadata.get("thing_classes") is not None and not is_declared(name):
        require_files(name)  # the contents are not read: the set is published, and COCO's json takes long to parse
        return Summary(class_names(name))
    data = read_coco_json(name)
    _check_records(name, "category", data["categories"], ("id", "name"))
    for key in ("images", "annotations"):
        if not isinstance(data.get(key), list):
            raise UserError(f'data set {name}: {metadata.json_file} has no list under "{key}"; it is not COCO json.')
    _check_images(name, data["images"], metadata.image_root)
    return _check_annotations(name, data)


def _check_records(name: str, kind: str, records: list, keys: Sequence[str]) -> None:
    """Checks that each record has ``keys``, which begin with "id", in the right types, and that ids are unique."""
    for i, record in enumerate(records):
        if not isinstance(record, dict) or not all(key in record for key in keys):
            raise UserError(f"data set {name}: {kind} number {i + 1} in its json lacks one of {', '.join(keys)}.")
        for key, types in _TYPES.items():
            if key in keys and not isinstance(record[key], types):
                what = f"{kind} {record['id']} has {key} {record[key]!r} in its json"
                raise UserError(f"data set {name}: {what}, which is of a wrong type; correct it.")
    if len({isinstance(r["id"], str) for r in records}) > 1:
        raise UserError(f"data set {name}: some {kind} ids in its json are numbers and some are text; use one type.")
    for record_id, count in Counter(r["id"] for r in records).most_common(1):
        if count > 1:
            raise UserError(
                f"data set {name}: {kind} id {record_id} occurs {count} times in its json; make ids unique."
            )


def _check_images(name: str, images: list[dict], folder: str) -> None:
    _check_records(name, "image", images, ("id", "file_name", "width", "height"))
    if not images:
        raise UserError(f"data set {name}: its json lists no images; add some.")
    for i in np.unique(np.linspace(0, len(images) - 1, IMAGES_TRIED).astype(int)):
        path = os.path.join(folder, images[i]["file_name"])
        if not os.path.isfile(path):
            raise UserError(
                f"data set {name}: image {path} does not exist; file_name in the json is relative to the image folder."
            )


def _check_annotations(name: str, data: dict) -> Summary:
    annotations = data["annotations"]
    _check_records(name, "annotation", annotations, ("id", "image_id", "category_id", "bbox"))
    known = {c["id"] for c in data["categories"]}
    for a in annotations:
        if a["category_id"] not in known:
            raise UserError(
                f"data set {name}: annotation {a['id']} has category_id {a['category_id']}, which is not the id of a "
                "category; correct it."
            )
        if a.get("ignore"):
            raise UserError(
                f'data set {name}: annotation {a["id"]} has "ignore"; use "iscrowd": 1 for regions to skip.'
            )
    sizes = {image["id"]: (image["width"], image["height"]) for image in data["images"]}
    listed = [a for a in annotations if a["image_id"] in sizes]
    if len(listed) < len(annotations):
        lost = next(a for a in annotations if a["image_id"] not in sizes)
        _warn(name, len(annotations) - len(listed), "belong to images that are not listed", lost["id"])
    good = _check_boxes(name, listed, np.array([sizes[a["image_id"]] for a in listed], dtype=float).reshape(-1, 2))
    found = [a for a, ok in zip(listed, good, strict=True) if ok and not a.get("iscrowd")]
    return Summary(
        classes=names_by_id(data),
        num_images=len(sizes),
        boxes_per_image=Counter(a["image_id"] for a in found),
        trainable=sum(not _is_flat(a) for a in found),
        unevaluable=_unevaluable(annotations),
    )


def _check_boxes(name: str, annotations: list[dict], sizes: np.ndarray) -> np.ndarray:
    """Checks that boxes are four finite numbers, and logs those that training or evaluation would not use as they are.

    Args:
        name: name of the data set.
        annotations: M annotations.
        sizes: (width, height) of the image of each annotation, (M, 2).

    Returns:
        Whether each box has an area, (M,) bool.
    """
    for a in annotations:
        if not isinstance(a["bbox"], list) or len(a["bbox"]) != 4:
            raise UserError(
                f"data set {name}: annotation {a['id']} has bbox {a['bbox']}; it must be [x, y, width, height]."
            )
    try:
        boxes = np.array([a["bbox"] for a in annotations], dtype=float).reshape(-1, 4)
    except (TypeError, ValueError) as e:
        raise UserError(f"data set {name}: a bbox in its json does not consist of numbers ({e}); correct it.") from e
    infinite = ~np.isfinite(boxes).all(axis=1)
    if infinite.any():
        first = annotations[infinite.argmax()]
        raise UserError(f"data set {name}: annotation {first['id']} has bbox {first['bbox']}; correct or remove it.")
    good = (boxes[:, 2:] > 0).all(axis=1)
    flat = np.array([_is_flat(a) for a in annotations], dtype=bool)
    outside = good & ((boxes[:, :2] < -1) | (boxes[:, :2] + boxes[:, 2:] > sizes + 1)).any(axis=1)
    for odd, what in (
        (~good, "have no area; training ignores them, but evaluation counts them as missed"),
        (flat, "have a segmentation without area, so Detectron2 drops them in training; correct or remove it"),
        (outside, "extend beyond their image by more than 1 px (bbox is [x, y, width, height])"),
    ):
        if odd.any():
            _warn(name, odd.sum(), what, annotations[odd.argmax()]["id"])
    return np.asarray(good)


def _is_flat(annotation: dict) -> bool:
    """Returns whether there are polygons but none has three corners. Detectron2 then drops the annotation."""
    polygons = annotation.get("segmentation")
    polygons = polygons if isinstance(polygons, list) else []
    return bool(polygons) and not any(len(p) >= 6 and len(p) % 2 == 0 for p in polygons if isinstance(p, list))


def _warn(name: str, count: int, what: str, first: object) -> None:
    logger.warning("data set %s: %d box(es) %s; the first is annotation %s", name, count, what, first)


def _unevaluable(annotations: list[dict]) -> str:
    """The reason why COCOEvaluator would fail on these annotations; empty if it would not."""
    for a in annotations:
        for key in EVALUATION_KEYS:
            if not isinstance(a.get(key), (int, float)):
                default = "width * height of the box" if key == "area" else "0"
                return (
                    f'annotation {a["id"]} has no number under "{key}", which COCO evaluation needs; add it ({default})'
                )
        if isinstance(a["id"], str):
            return f"annotation id {a['id']!r} is text, but COCO evaluation needs numbers; number annotations from 1"
        if a["id"] == 0:
            return "COCO evaluation never counts annotation id 0 as found; number annotations from 1"
    return ""


def _check_classes(summaries: dict[str, Summary], first: str, name: str) -> None:
    ours, theirs = summaries[name].classes, summaries[first].classes
    if ours == theirs:
        return
    only = sorted(map(str, set(ours) ^ set(theirs)))
    verb = "is" if len(only) == 1 else "are"
    why = f"{', '.join(only[:5])} {verb} in only one of them" if only else "their order differs"
    raise UserError(
        f"data sets {first} ({len(theirs)} classes) and {name} ({len(ours)}) must have the same categories in the "
        f"same order of id: {why}."
    )


def _check_number(summaries: dict[str, Summary], num_classes: int) -> None:
    for name, summary in summaries.items():
        if len(summary.classes) != num_classes:
            raise UserError(
                f"data set {name} has {len(summary.classes)} classes, but the detector has {num_classes}, according to "
                "its NUM_CLASSES or DATASETS.TRAIN; evaluate it on data with the same classes."
            )


def _check_use(name: str, split: str, summary: Summary, detections_per_image: int) -> None:
    if split == "TRAIN":
        if not summary.trainable:
            raise UserError(
                f"data set {name}: none of its {summary.num_images} images has a box to train on; add some."
            )
        return
    if summary.unevaluable:
        raise UserError(f"data set {name}: {summary.unevaluable}.")
    for image_id, num_boxes in summary.boxes_per_image.most_common(1):
        if num_boxes > detections_per_image:
            logger.warning(
                "data set %s: image %s has %d objects, but TEST.DETECTIONS_PER_IMAGE is %d; raise it to find them all",
                name,
                image_id,
                num_boxes,
                detections_per_image,
            )
