"""A trained detector applied to image files: finding and reading them, detections, and their JSON form."""

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
from clq.data.datasets import class_names, fill_num_classes, read_coco_json, resolve_num_classes
from clq.data.mapper import matrix_entry
from clq.engine.amp import inference_autocast
from clq.engine.config_checks import check_model
from clq.errors import UserError
from clq.modeling.optimize.fold_bn import optimize_for_inference

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# Final score from which detections are drawn. Joint scores are products, so lower than class scores: on the sample data
# precision and recall balance (F1 at IoU 0.5, three seeds) at 0.35 to 0.4.
DRAWING_THRESHOLD = 0.4
# MODEL.CLQ.QUALITY.NAME -> what the branch's output is called in JSON, where it has a name of its own.
QUALITY_FIELDS = {"iou": "predicted_iou", "centerness": "centerness"}


class Predictor:
    """Detectron2's DefaultPredictor with this project's checkpointer: reads, resizes and detects, one image at a time.

    The model is made fast, see :func:`~clq.modeling.optimize.fold_bn.optimize_for_inference`.

    Args:
        cfg: as training left it; ``MODEL.WEIGHTS`` names a trained checkpoint of exactly this model.

    Raises:
        UserError: the model cannot be built, or the checkpoint is missing or of another model.
    """

    def __init__(self, cfg: CfgNode):
        check_model(cfg)
        cfg = cfg.clone()
        cfg.defrost()
        fill_num_classes(cfg)
        model = build_model(cfg).eval()
        Checkpointer(model, strict=True).load(cfg.MODEL.WEIGHTS)
        self.model = optimize_for_inference(model)
        self.autocast = inference_autocast(cfg)
        self.input_format = cfg.INPUT.FORMAT
        self.augmentations = AugmentationList(build_test_augmentations(cfg))

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> Instances:
        """Detections of one image.

        Args:
            image: (H, W, 3) uint8 in the order of ``INPUT.FORMAT``, as from :func:`clq.data.images.read_image`.

        Returns:
            Instances on the CPU, best first, in pixels of ``image``; the fields are those of the model's output.

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
        """The image (H, W, 3) at the size that ``INPUT`` asks for.

        Raises:
            UserError: nothing would be left of it.
        """
        return self._transformed(image)[0]

    def _transformed(self, image: np.ndarray) -> tuple[np.ndarray, TransformList]:
        resized = AugInput(image)
        try:
            transforms = self.augmentations(resized)
        except ValueError as e:  # Pillow's, about a height or width of 0
            height, width = image.shape[:2]
            raise UserError(f"{width} x {height} pixels: too thin for the size that INPUT asks for.") from e
        return resized.image, transforms


def find_images(inputs: Sequence[str]) -> list[str]:
    """Paths of the images that files, folders and patterns name, in that order, each once.

    A folder gives its image files (by suffix, not those of its subfolders), a pattern the files it matches, sorted.

    Raises:
        UserError: one of the inputs gives nothing.
    """
    found: dict[str, str] = {}  # real path -> path as given
    for name in inputs:
        paths = _expand(name)
        if not paths:
            raise UserError(f"{name}: {_why_nothing(name)}")
        for path in paths:
            found.setdefault(os.path.realpath(path), path)
    return list(found.values())


def _expand(name: str) -> list[str]:
    name = os.path.expanduser(name)
    if os.path.isdir(name):
        paths = (os.path.join(name, entry) for entry in sorted(os.listdir(name)))
        return [p for p in paths if p.lower().endswith(IMAGE_SUFFIXES) and os.path.isfile(p)]
    if os.path.exists(name):  # before patterns: a file may be called "tree[1].jpg"
        return [name]
    return [p for p in sorted(glob.glob(name)) if os.path.isfile(p)]


def _why_nothing(name: str) -> str:
    if os.path.isdir(os.path.expanduser(name)):
        return f"no image ({' '.join(IMAGE_SUFFIXES)}) in this folder; its subfolders are inputs of their own."
    if glob.has_magic(name):
        return "no file matches; give image files, folders or patterns as --input."
    return "no such file or folder; give image files, folders or patterns as --input."


def picture_names(paths: Sequence[str]) -> list[str]:
    """A file name for each picture: the image's own, numbered (``tree_2.jpg``) where it is taken already."""
    taken: set[str] = set()
    names = []
    for path in paths:
        stem, suffix = os.path.splitext(os.path.basename(path))
        if suffix.lower() not in IMAGE_SUFFIXES:
            stem, suffix = stem + suffix, ".png"
        name, number = stem + suffix, 1
        while name.lower() in taken:  # lower: some file systems do not tell A from a
            number += 1
            name = f"{stem}_{number}{suffix}"
        taken.add(name.lower())
        names.append(name)
    return names


@dataclass(frozen=True)
class Categories:
    """What the model's K classes stand for.

    Attributes:
        ids: the data set's own category ids; 0 to K - 1 where no data set is known.
        names: their names; the ids as text where no data set is known.
    """

    ids: tuple[int, ...]
    names: tuple[str, ...]


def find_categories(cfg: CfgNode) -> Categories:
    """From the first data set of the config (test, then training) that is here and has as many classes as the model.

    Where there is none, the classes go by number, with a warning.

    Raises:
        UserError: the number of classes is unknown; see :func:`~clq.data.datasets.resolve_num_classes`.
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
        reasons.append(f"data set {name} has {len(names)} classes, the model {num_classes}.")
    logger.warning("Classes go by number, their names are unknown: %s", " ".join(reasons) or "DATASETS is empty.")
    return Categories(tuple(range(num_classes)), tuple(map(str, range(num_classes))))


def _category_ids(dataset_name: str, num_classes: int) -> tuple[int, ...]:
    """Category ids in the order of the model's outputs; from the metadata when it has them, as :func:`class_names`."""
    metadata = MetadataCatalog.get(dataset_name)
    to_class = metadata.get("thing_dataset_id_to_contiguous_id")
    if to_class is not None:
        return tuple(sorted(to_class, key=to_class.get))
    if metadata.get("json_file") is not None:
        return tuple(sorted(c["id"] for c in read_coco_json(dataset_name)["categories"]))
    return tuple(range(num_classes))  # registered by code, with classes that have no other ids


def to_json(
    found: Instances, categories: Categories, quality_name: str, *, image_id: int, file_name: str
) -> list[dict]:
    """Detections of one image as COCO results, with what the final score was made of.

    Args:
        found: of one image.
        categories: of the model.
        quality_name: ``MODEL.CLQ.QUALITY.NAME``.
        image_id, file_name: say which image.

    Returns:
        One dict a detection: ``image_id``, ``file_name``, ``category_id`` and ``category_name``, ``bbox`` (XYWH in
        pixels of the upright image), ``score`` (final). With a quality branch also ``cls_score`` and, by its kind,
        ``predicted_iou`` (a probability before the exponent alpha), ``centerness`` or ``quality``.
    """
    results = instances_to_coco_json(found, image_id)
    for i, result in enumerate(results):
        label = result["category_id"]
        result["file_name"] = file_name
        result["category_id"], result["category_name"] = categories.ids[label], categories.names[label]
        if found.has("pred_quality"):
            result["cls_score"] = found.cls_scores[i].item()
            result[QUALITY_FIELDS.get(quality_name, "quality")] = found.pred_quality[i].item()
    return results
