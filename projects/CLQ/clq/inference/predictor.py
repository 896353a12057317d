"""Applies a trained detector to images: finds the files, runs the detector and converts detections to JSON."""

import glob
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.transforms import AugInput, AugmentationList
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import build_model
from detectron2.structures import Instances
from fvcore.transforms.transform import TransformList

from clq.checkpoint.checkpointer import Checkpointer
from clq.data.augmentations import build_test_augmentations
from clq.data.datasets import class_names, read_categories, require_files
from clq.data.mapper import matrix_entry
from clq.data.num_classes import fill_num_classes, resolve_num_classes
from clq.engine.amp import inference_autocast
from clq.engine.config_checks import check_model
from clq.errors import UserError
from clq.modeling.optimize.fold_bn import optimize_for_inference

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# Lowest final score at which a detection is drawn. Joint scores are products and therefore lower than class scores: on
# the sample data, thresholds from 0.35 to 0.4 give the best F1 at IoU 0.5 (three seeds).
DRAWING_THRESHOLD = 0.4
# The name of the quality branch's output in JSON, by MODEL.CLQ.QUALITY.NAME. Other branches have "quality".
QUALITY_FIELDS = {"iou": "predicted_iou", "centerness": "centerness"}


class Predictor:
    """Detects objects in one image at a time, like Detectron2's DefaultPredictor.

    The checkpoint is loaded by this project's checkpointer, and the model is optimized by
    :func:`~clq.modeling.optimize.fold_bn.optimize_for_inference`.

    Args:
        cfg: config of the detector, as training wrote it. ``MODEL.WEIGHTS`` names a checkpoint of exactly this model.

    Raises:
        UserError: the model cannot be built, or the checkpoint is missing or belongs to another model.
    """

    def __init__(self, cfg: CfgNode):
        check_model(cfg)
        cfg = cfg.clone()
        cfg.defrost()
        fill_num_classes(cfg)
        model = build_model(cfg).eval()
        Checkpointer(model, strict=True, max_gib=cfg.MODEL.MAX_WEIGHTS_GIB).load(cfg.MODEL.WEIGHTS)
        self.model = optimize_for_inference(model)
        self.autocast = inference_autocast(cfg)
        self.input_format = cfg.INPUT.FORMAT
        self.augmentations = AugmentationList(build_test_augmentations(cfg))

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> Instances:
        """Detects the objects in an image.

        Args:
            image: (H, W, 3) uint8 in the channel order of ``INPUT.FORMAT``; see :func:`clq.data.images.read_image`.

        Returns:
            Instances on the CPU with the fields of the model's output, by decreasing score. Boxes are in pixels of
            ``image``.

        Raises:
            UserError: the image is so thin that nothing is left of it at the size that ``INPUT`` asks for.
        """
        height, width = image.shape[:2]
        resized, transforms = self._transformed(image)
        tensor = torch.as_tensor(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        with self.autocast:
            record = {"image": tensor, "height": height, "width": width, **matrix_entry(transforms)}
            return self.model([record])[0]["instances"].to("cpu")

    def resize(self, image: np.ndarray) -> np.ndarray:
        """Resizes an image (H, W, 3) to the size that ``INPUT`` asks for.

        Raises:
            UserError: the image is so thin that nothing would be left of it.
        """
        return self._transformed(image)[0]

    def _transformed(self, image: np.ndarray) -> tuple[np.ndarray, TransformList]:
        resized = AugInput(image)
        try:
            transforms = self.augmentations(resized)
        except ValueError as e:  # Pillow raises it for a height or width of 0
            height, width = image.shape[:2]
            raise UserError(f"{width} x {height} pixels: too thin for the size that INPUT asks for.") from e
        return resized.image, transforms


def find_images(inputs: Sequence[str]) -> list[str]:
    """Finds the image files that the inputs name, without repeating any.

    Args:
        inputs: paths of files, paths of folders, and patterns. A folder stands for the files in it, without its
            subfolders, that have the suffix of an image; a pattern stands for the files that match it.

    Returns:
        Paths in the order of the inputs, and sorted within a folder or pattern.

    Raises:
        UserError: an input names no file.
    """
    found: dict[str, str] = {}  # the path as given, by the real path
    for name in inputs:
        paths = _expand(name)
        if not paths:
            raise UserError(f"{name}: {_explain_no_file(name)}")
        for path in paths:
            found.setdefault(os.path.realpath(path), path)
    return list(found.values())


def _expand(name: str) -> list[str]:
    """Returns the paths of the files that an input names."""
    name = os.path.expanduser(name)
    if os.path.isdir(name):
        paths = (os.path.join(name, entry) for entry in sorted(os.listdir(name)))
        return [p for p in paths if p.lower().endswith(IMAGE_SUFFIXES) and os.path.isfile(p)]
    if os.path.exists(name):  # tested before patterns, because a file may be called "tree[1].jpg"
        return [name]
    return [p for p in sorted(glob.glob(name)) if os.path.isfile(p)]


def _explain_no_file(name: str) -> str:
    if os.path.isdir(os.path.expanduser(name)):
        return f"no image ({' '.join(IMAGE_SUFFIXES)}) in this folder; give its subfolders as --input if you need them."
    if glob.has_magic(name):
        return "no file matches; give image files, folders or patterns as --input."
    return "no such file or folder; give image files, folders or patterns as --input."


def picture_names(paths: Sequence[str]) -> list[str]:
    """Returns a unique file name for the picture of each image.

    It is the name of the image, with a number (``tree_2.jpg``) if another image has the same name.
    """
    taken: set[str] = set()
    names = []
    for path in paths:
        stem, suffix = os.path.splitext(os.path.basename(path))
        if suffix.lower() not in IMAGE_SUFFIXES:
            stem, suffix = stem + suffix, ".png"
        name, number = stem + suffix, 1
        while name.lower() in taken:  # in lower case, because some file systems ignore case
            number += 1
            name = f"{stem}_{number}{suffix}"
        taken.add(name.lower())
        names.append(name)
    return names


@dataclass(frozen=True)
class Categories:
    """The categories that correspond to the model's K classes.

    Attributes:
        ids: category ids of the data set; 0 to K - 1 if no data set is known.
        names: names of the categories; the ids as text if no data set is known.
    """

    ids: tuple[int, ...]
    names: tuple[str, ...]


def find_categories(cfg: CfgNode) -> Categories:
    """Finds the categories of a model's classes.

    They come from the first data set of the config, test sets before training sets, that is available and has as many
    classes as the model. If there is none, classes have numbers for names, and a warning is logged.

    Raises:
        UserError: the number of classes is unknown; see :func:`~clq.data.num_classes.resolve_num_classes`.
    """
    num_classes, reasons = resolve_num_classes(cfg), []
    for name in dict.fromkeys((*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)):
        try:
            names = class_names(name)
        except UserError as e:
            reasons.append(str(e))
            continue
        if len(names) == num_classes:
            return Categories(_category_ids(name, num_classes), tuple(names))
        reasons.append(f"data set {name} has {len(names)} classes, but the model has {num_classes}.")
    logger.warning(
        "Classes are numbered, because their names are unknown: %s", " ".join(reasons) or "DATASETS is empty."
    )
    return Categories(tuple(range(num_classes)), tuple(map(str, range(num_classes))))


def _category_ids(dataset_name: str, num_classes: int) -> tuple[int, ...]:
    """Returns the category ids in the order of the model's outputs, from the metadata if it has them."""
    metadata = MetadataCatalog.get(dataset_name)
    to_class = metadata.get("thing_dataset_id_to_contiguous_id")
    if to_class is not None:
        return tuple(sorted(to_class, key=to_class.get))
    if metadata.get("json_file") is not None:
        return tuple(c["id"] for c in read_categories(require_files(dataset_name).json, dataset_name))
    return tuple(range(num_classes))  # a data set that was registered in code and has no other ids


def to_json(
    detections: Instances, categories: Categories, quality_name: str, *, image_id: int, file_name: str
) -> list[dict]:
    """Converts the detections of an image to COCO results, with the factors of the final score.

    Args:
        detections: detections of the image.
        categories: categories of the model's classes.
        quality_name: value of ``MODEL.CLQ.QUALITY.NAME``.
        image_id: id of the image in the results.
        file_name: path of the image in the results.

    Returns:
        For each detection a dictionary with ``image_id``, ``file_name``, ``category_id``, ``category_name``, ``bbox``
        (XYWH in pixels of the upright image) and ``score`` (final). If the model has a quality branch, there are also
        ``cls_score`` and, depending on the branch, ``predicted_iou`` (a probability, before the exponent alpha is
        applied), ``centerness`` or ``quality``.
    """
    results = instances_to_coco_json(detections, image_id)
    for i, result in enumerate(results):
        label = result["category_id"]
        result["file_name"] = file_name
        result["category_id"], result["category_name"] = categories.ids[label], categories.names[label]
        if detections.has("pred_quality"):
            result["cls_score"] = detections.cls_scores[i].item()
            result[QUALITY_FIELDS.get(quality_name, "quality")] = detections.pred_quality[i].item()
    return results
