"""Applies a trained detector to images, and finds the files of images and the names of classes."""

import glob
import os
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import AugInput, AugmentationList
from detectron2.modeling import build_model
from detectron2.structures import Instances
from fvcore.transforms.transform import TransformList
from PIL import Image

from clq.checkpoint.checkpointer import Checkpointer
from clq.data.augmentations import build_test_augmentations
from clq.data.categories import Categories, find_categories
from clq.data.images import read_options
from clq.data.mapper import matrix_entry
from clq.data.num_classes import fill_num_classes
from clq.engine.amp import inference_autocast
from clq.engine.config_checks import check_model
from clq.errors import UserError
from clq.inference.inputs import ImageLike, to_rgb_array
from clq.inference.results import Result
from clq.modeling.optimize.fold_bn import optimize_for_inference

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class Predictor:
    """Detects objects in images, in the config's precision.

    The checkpoint is loaded by this project's checkpointer, and the model is optimized by
    :func:`~clq.modeling.optimize.fold_bn.optimize_for_inference`. :func:`clq.load` makes one from a folder or a file::

        predictor = clq.load("output/sample")
        result = predictor("street.jpg")
        print(result.boxes, result.scores, result.names)

    Args:
        cfg: config of the detector, as training wrote it. ``MODEL.WEIGHTS`` names a checkpoint of exactly this model.
        categories: ids and names of the classes; None to look for them in the data sets of the config when they are
            needed.

    Attributes:
        cfg: the config, with the number of classes.
        model: the detector.
        autocast: context in which the model has the precision of the config.

    Raises:
        UserError: the model cannot be built, or the checkpoint is missing or belongs to another model.
    """

    def __init__(self, cfg: CfgNode, categories: Categories | None = None):
        check_model(cfg)
        cfg = cfg.clone()
        cfg.defrost()
        fill_num_classes(cfg)
        model = build_model(cfg).eval()
        Checkpointer(model, strict=True, max_gib=cfg.MODEL.MAX_WEIGHTS_GIB).load(cfg.MODEL.WEIGHTS)
        self.cfg = cfg
        self.model = optimize_for_inference(model)
        self._categories = categories
        self.autocast = inference_autocast(cfg)
        self._augmentations = AugmentationList(build_test_augmentations(cfg))
        self._read_options = read_options(cfg)

    @property
    def categories(self) -> Categories:
        """Ids and names of the model's classes."""
        if self._categories is None:
            self._categories = find_categories(self.cfg)
        return self._categories

    @overload
    def __call__(self, images: ImageLike) -> Result: ...
    @overload
    def __call__(self, images: list[ImageLike] | tuple[ImageLike, ...], batch_size: int = 1) -> list[Result]: ...

    def __call__(self, images, batch_size=1):
        """Detects the objects in an image, or in each of several.

        Args:
            images: path, PIL image, RGB array (H, W, 3) uint8, RGB tensor (3, H, W) uint8, or a list of these.
            batch_size: number of images that the model receives at once. Images of a batch are padded to a common size.

        Returns:
            A :class:`~clq.inference.results.Result`, or a list of them.

        Raises:
            UserError: an image cannot be used, or nothing is left of it at the size that ``INPUT`` asks for.
        """
        if not isinstance(images, (list, tuple)):
            return self([images])[0]
        if batch_size < 1:
            raise UserError(f"batch_size {batch_size}: must be at least 1.")
        results = []
        for start in range(0, len(images), batch_size):
            pairs = [to_rgb_array(image, self._read_options) for image in images[start : start + batch_size]]
            found = self.detect([self._of_input(image) for image, _ in pairs])
            for (image, path), instances in zip(pairs, found, strict=True):
                quality = self.cfg.MODEL.CLQ.QUALITY.NAME
                results.append(Result(image, instances, self.categories, quality_name=quality, path=path))
        return results

    @torch.no_grad()
    def detect(self, images: Sequence[np.ndarray]) -> list[Instances]:
        """Detects the objects in the N images of a batch.

        Args:
            images: (H, W, 3) uint8 in the channel order of ``INPUT.FORMAT``; see :func:`clq.data.images.read_image`.

        Returns:
            For each image instances on the CPU with the fields of the model's output, by decreasing score. Boxes are in
            pixels of the image.

        Raises:
            UserError: an image is so thin that nothing is left of it at the size that ``INPUT`` asks for.
        """
        records = [self._record(image) for image in images]
        with self.autocast:
            return [output["instances"].to("cpu") for output in self.model(records)]

    def prepare(self, image: ImageLike) -> tuple[np.ndarray, dict[str, Any]]:
        """Prepares an image for the model.

        Args:
            image: see :meth:`__call__`.

        Returns:
            The image, (H, W, 3) uint8 RGB, and the dictionary that the model takes for it.

        Raises:
            UserError: as in :meth:`__call__`.
        """
        rgb, _ = to_rgb_array(image, self._read_options)
        return rgb, self._record(self._of_input(rgb))

    def _record(self, image: np.ndarray) -> dict[str, Any]:
        height, width = image.shape[:2]
        resized, transforms = self._transformed(image)
        tensor = torch.as_tensor(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        return {"image": tensor, "height": height, "width": width, **matrix_entry(transforms)}

    def resize(self, image: np.ndarray) -> np.ndarray:
        """Resizes an image (H, W, 3) to the size that ``INPUT`` asks for.

        Raises:
            UserError: the image is so thin that nothing would be left of it.
        """
        return self._transformed(image)[0]

    def _of_input(self, image: np.ndarray) -> np.ndarray:
        """An RGB image in the order of ``INPUT.FORMAT``."""
        if self.cfg.INPUT.FORMAT == "L":
            return np.asarray(Image.fromarray(image).convert("L"))[:, :, None]
        return image[:, :, ::-1] if self.cfg.INPUT.FORMAT == "BGR" else image

    def _transformed(self, image: np.ndarray) -> tuple[np.ndarray, TransformList]:
        resized = AugInput(image)
        try:
            transforms = self._augmentations(resized)
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
