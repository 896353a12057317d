"""Detection in large images tile by tile, and the merging of what was found."""

import itertools
import math
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import AugmentationList
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from clq.data.augmentations import build_test_augmentations
from clq.data.model_input import model_input
from clq.data.tiling import Window, tile_windows
from clq.errors import UserError

# A detection may lie beyond the core of its tile by this share of the overlap. Without it, an object on the border of
# two cores could be found by both tiles and kept by neither, as no two tiles predict quite the same box.
_SLACK = 0.05


def nms_threshold(cfg: CfgNode) -> float:
    """The threshold of the NMS of a config's detector, whose key depends on the meta-architecture."""
    groups = {"CLQ": "CLQ", "GeneralizedRCNN": "ROI_HEADS"}
    group = cfg.MODEL[groups.get(cfg.MODEL.META_ARCHITECTURE, "RETINANET")]  # FCOS reads those of RetinaNet, too
    return group.NMS_THRESH if "NMS_THRESH" in group else group.NMS_THRESH_TEST


class TiledDetector(nn.Module):
    """Runs a detector on the tiles of each image; evaluation and prediction call it like the detector itself.

    Each tile is resized as ``INPUT`` says for a whole image. The cores of the tiles, which meet in the middle of their
    overlaps, divide the image. A tile contributes the detections whose centres are in its core. If one tile shows an
    object whole and its neighbour shows a part of it, the centre of that part is in the core of the first, and the part
    is dropped whatever its score. An object that no tile shows whole may be found in parts. Class-wise NMS over the
    whole image removes what two tiles have both found on the border of their cores, and the best ``max_detections``
    remain.

    Args:
        model: detector, whose training or evaluation mode is kept.
        augmentations: what ``INPUT`` does to an image in testing.
        size: side of a tile in pixels.
        overlap: overlap of neighbouring tiles, at least, as a fraction of ``size``.
        nms_thresh: IoU above which NMS removes the lower of two boxes of the same class.
        max_detections: upper bound on the number of detections of an image.
        batch_size: number of tiles that the detector receives at once.
    """

    def __init__(
        self,
        model: nn.Module,
        augmentations: AugmentationList,
        *,
        size: int,
        overlap: float,
        nms_thresh: float,
        max_detections: int,
        batch_size: int = 1,
    ):
        super().__init__()
        self.model = model.module if isinstance(model, DistributedDataParallel) else model
        self.augmentations = augmentations
        self.size, self.overlap, self.batch_size = size, overlap, batch_size
        self.nms_thresh, self.max_detections = nms_thresh, max_detections
        self.train(model.training)  # Detectron2's evaluation puts back the mode in which it finds a model

    @classmethod
    def from_config(
        cls, cfg: CfgNode, model: nn.Module, *, size: int = 0, overlap: float | None = None, batch_size: int = 1
    ) -> "TiledDetector":
        """Makes the detector of a config.

        Args:
            cfg: config of the model.
            model: the model.
            size: side of a tile; that of ``DATASETS.TILE`` if 0.
            overlap: overlap of tiles; that of ``DATASETS.TILE`` if None.
            batch_size: as of the class.
        """
        tile = cfg.DATASETS.TILE
        return cls(
            model,
            AugmentationList(build_test_augmentations(cfg)),
            size=size or tile.SIZE,
            overlap=tile.OVERLAP if overlap is None else overlap,
            nms_thresh=nms_threshold(cfg),
            max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
            batch_size=batch_size,
        )

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Detections of each image, in its pixels.

        Args:
            batched_inputs: inputs with ``image``, (3, H, W) uint8, which is not resized.

        Raises:
            UserError: an image is so thin that nothing is left of a tile at the size that ``INPUT`` asks for.
        """
        return [{"instances": self._detect(x)} for x in batched_inputs]

    def _detect(self, record: dict) -> Instances:
        image = record["image"].permute(1, 2, 0).numpy()
        windows = tile_windows(image.shape[:2], self.size, self.overlap)
        found: list[Instances] = []
        for start in range(0, len(windows), self.batch_size):
            tiles = [image[y0:y1, x0:x1] for x0, y0, x1, y1 in windows[start : start + self.batch_size]]
            try:
                inputs = [model_input(tile, self.augmentations) for tile in tiles]
            except UserError as e:
                raise UserError(f"image {record['file_name']}: {e}" if "file_name" in record else str(e)) from e
            found += [output["instances"] for output in self.model(inputs)]
        return merge_tiles(found, windows, image.shape[:2], self.nms_thresh)[: self.max_detections]


def merge_tiles(
    found: Sequence[Instances], windows: Sequence[Window], image_size: tuple[int, int], nms_thresh: float
) -> Instances:
    """Merges the detections in the tiles of an image, as :class:`TiledDetector` describes it.

    Args:
        found: detections of each tile, in pixels of the tile.
        windows: the tiles, as :func:`~clq.data.tiling.tile_windows` returns them.
        image_size: (height, width) of the image.
        nms_thresh: IoU above which NMS removes the lower of two boxes of the same class.

    Returns:
        Detections in pixels of the image, best first.
    """
    if len(windows) == 1:
        return found[0]
    columns, rows = (_cores(sorted({(w[axis], w[axis + 2]) for w in windows})) for axis in (0, 1))
    parts = []
    for instances, (x0, y0, _, _) in zip(found, windows, strict=True):
        moved = Instances(image_size, **instances.get_fields())
        moved.pred_boxes = Boxes(instances.pred_boxes.tensor + instances.pred_boxes.tensor.new_tensor([x0, y0, x0, y0]))
        x, y = moved.pred_boxes.get_centers().unbind(dim=1)
        parts.append(moved[_within(x, columns[x0]) & _within(y, rows[y0])])
    merged = Instances.cat(parts)
    if merged.has("pred_masks"):  # which Mask R-CNN has pasted into its tile
        merged.remove("pred_masks")
    keep = batched_nms(merged.pred_boxes.tensor, merged.scores, merged.pred_classes, nms_thresh)
    keep = keep.sort().values  # torchvision's NMS leaves equal scores in any order
    return merged[keep[merged.scores[keep].argsort(descending=True, stable=True)]]


def _cores(spans: Sequence[tuple[int, int]]) -> dict[int, tuple[float, float]]:
    """The first and the last coordinate of the core of each tile in one direction, by the start of the tile.

    Args:
        spans: start and end of each tile, ascending.
    """
    low, cores = -math.inf, {}
    for (start, end), (following, _) in itertools.pairwise(spans):
        middle, slack = (following + end) / 2, _SLACK * (end - following)
        cores[start] = low, middle + slack
        low = middle - slack
    cores[spans[-1][0]] = low, math.inf
    return cores


def _within(values: Tensor, bounds: tuple[float, float]) -> Tensor:
    return torch.logical_and(values >= bounds[0], values <= bounds[1])
