"""Applies a trained detector to images."""

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import AugmentationList
from detectron2.modeling import build_model
from detectron2.structures import Instances
from PIL import Image
from torch import nn

from clq.checkpoint.checkpointer import Checkpointer
from clq.data.augmentations import build_test_augmentations
from clq.data.categories import Categories, find_categories
from clq.data.images import read_options
from clq.data.model_input import model_input
from clq.data.num_classes import fill_num_classes
from clq.engine.amp import inference_autocast
from clq.engine.config_checks import check_model
from clq.errors import UserError
from clq.inference.inputs import ImageLike, to_rgb_array
from clq.inference.results import Result
from clq.modeling.optimize.fold_bn import optimize_for_inference
from clq.modeling.tiled import TiledDetector


class Detector:
    """A model and the preparation of its inputs. The two may run in different threads.

    Args:
        model: detector in eval mode, or a :class:`~clq.modeling.tiled.TiledDetector`.
        augmentations: what happens to an image before the model receives it.
        autocast: precision in which the model runs.

    Attributes:
        tiled: whether images are cut into tiles.
    """

    def __init__(self, model: nn.Module, augmentations: AugmentationList, autocast: torch.autocast):
        self._model, self._augmentations, self._autocast = model, augmentations, autocast
        self.tiled = isinstance(model, TiledDetector)

    def prepare(self, image: np.ndarray) -> dict[str, Any]:
        """The model's input for an image; see :func:`~clq.data.model_input.model_input`."""
        return model_input(image, self._augmentations)

    @torch.no_grad()
    def detect(self, inputs: Sequence[dict[str, Any]]) -> list[Instances]:
        """The detections in the N images of a batch, on the CPU, best first and in pixels of the original images."""
        with self._autocast:
            return [output["instances"].to("cpu") for output in self._model(inputs)]


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
        read_options: keyword arguments of :func:`~clq.data.images.read_image`.

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
        self._autocast = inference_autocast(cfg)
        self.read_options = read_options(cfg)

    @property
    def categories(self) -> Categories:
        """Ids and names of the model's classes."""
        if self._categories is None:
            self._categories = find_categories(self.cfg)
        return self._categories

    def detector(self, *, tile: int | None = None, overlap: float | None = None, batch_size: int = 1) -> Detector:
        """The model for whole images or for tiles, without what turns its detections into results.

        Args:
            tile: side of a tile in pixels; 0 for whole images, None for ``DATASETS.TILE.SIZE``.
            overlap: overlap of neighbouring tiles, as a fraction of their side; None for ``DATASETS.TILE.OVERLAP``.
            batch_size: number of tiles that the model receives at once.

        Raises:
            UserError: a value is out of range.
        """
        size = self.cfg.DATASETS.TILE.SIZE if tile is None else tile
        if size < 0 or not 0 <= (overlap or 0) <= 0.9:
            raise UserError(f"tile {tile}, overlap {overlap}: must be at least 0, and between 0 and 0.9.")
        if not size:
            return Detector(self.model, AugmentationList(build_test_augmentations(self.cfg)), self._autocast)
        tiled = TiledDetector.from_config(self.cfg, self.model, size=size, overlap=overlap, batch_size=batch_size)
        return Detector(tiled, AugmentationList([]), self._autocast)

    @overload
    def __call__(self, images: ImageLike, *, tile: int | None = None, overlap: float | None = None) -> Result: ...
    @overload
    def __call__(
        self,
        images: list[ImageLike] | tuple[ImageLike, ...],
        batch_size: int = 1,
        *,
        tile: int | None = None,
        overlap: float | None = None,
    ) -> list[Result]: ...

    def __call__(self, images, batch_size=1, *, tile=None, overlap=None):
        """Detects the objects in an image, or in each of several.

        Args:
            images: path, PIL image, RGB array (H, W, 3) uint8, RGB tensor (3, H, W) uint8, or a list of these.
            batch_size: number of images or tiles that the model receives at once. Images of a batch are padded to a
                common size.
            tile: side in pixels of the tiles into which images are cut, see :class:`~clq.modeling.tiled.TiledDetector`;
                0 for whole images, None for ``DATASETS.TILE.SIZE``.
            overlap: overlap of neighbouring tiles, as a fraction of their side; None for ``DATASETS.TILE.OVERLAP``.

        Returns:
            A :class:`~clq.inference.results.Result`, or a list of them.

        Raises:
            UserError: an image cannot be used, or nothing is left of it at the size that ``INPUT`` asks for.
        """
        if not isinstance(images, (list, tuple)):
            return self([images], batch_size, tile=tile, overlap=overlap)[0]
        if batch_size < 1:
            raise UserError(f"batch_size {batch_size}: must be at least 1.")
        detector, results = self.detector(tile=tile, overlap=overlap, batch_size=batch_size), []
        for start in range(0, len(images), batch_size):
            pairs = [to_rgb_array(image, self.read_options) for image in images[start : start + batch_size]]
            found = detector.detect([detector.prepare(self.of_input(image)) for image, _ in pairs])
            results += [self.result(*pair, instances) for pair, instances in zip(pairs, found, strict=True)]
        return results

    def result(self, image: np.ndarray, path: str | None, instances: Instances) -> Result:
        """The detections in an RGB image, (H, W, 3), as a result."""
        return Result(image, instances, self.categories, quality_name=self.cfg.MODEL.CLQ.QUALITY.NAME, path=path)

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
        detector = self.detector(batch_size=len(images))
        return detector.detect([detector.prepare(image) for image in images])

    def of_input(self, image: np.ndarray) -> np.ndarray:
        """An RGB image in the order of ``INPUT.FORMAT``."""
        if self.cfg.INPUT.FORMAT == "L":
            return np.asarray(Image.fromarray(image).convert("L"))[:, :, None]
        return image[:, :, ::-1] if self.cfg.INPUT.FORMAT == "BGR" else image
