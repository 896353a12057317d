"""The images of a test set, as tools that show or time detections read them."""

import logging
from collections.abc import Iterator

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from clq.data.images import ImageError, read_image, read_options
from clq.data.left_out import left_out_images

logger = logging.getLogger(__name__)


def read_images(cfg: CfgNode, data_set: str) -> Iterator[tuple[dict, np.ndarray]]:
    """Reads the images of a data set in their order; with ``DATASETS.ON_ERROR skip`` without what cannot be read.

    Yields:
        The record in Detectron2's format and its image, (H, W, C) uint8 in the order of ``INPUT.FORMAT``.

    Raises:
        ImageError: an image cannot be read and ``DATASETS.ON_ERROR`` is ``error``.
    """
    gone = left_out_images(data_set)
    for record in DatasetCatalog.get(data_set):
        if (record["file_name"], record.get("image_id")) in gone:
            continue  # the check has said so
        try:
            image = read_image(record["file_name"], cfg.INPUT.FORMAT, **read_options(cfg))
        except ImageError as e:
            if cfg.DATASETS.ON_ERROR != "skip":
                raise
            logger.warning("left out: %s", e)
            continue
        yield record, image
