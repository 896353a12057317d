"""The ids and names of a detector's classes, as its data sets give them."""

import logging
from dataclasses import dataclass

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from clq.data.datasets import class_names, is_declared, read_categories
from clq.data.num_classes import resolve_num_classes
from clq.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Categories:
    """The categories that correspond to the model's K classes.

    Attributes:
        ids: category ids of the data set; 0 to K - 1 if no data set is known.
        names: names of the categories; the ids as text if no data set is known.
    """

    ids: tuple[int | str, ...]
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
    if is_declared(dataset_name) or metadata.get("json_file") is not None:
        return tuple(c["id"] for c in read_categories(dataset_name))
    return tuple(range(num_classes))  # a data set that was registered in code and has no other ids
