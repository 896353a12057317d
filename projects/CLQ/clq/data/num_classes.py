"""The number of classes of a model, which follows from its first training set."""

from detectron2.config import CfgNode

from clq.data.datasets import class_names
from clq.errors import UserError

# The group under MODEL in which a meta-architecture has its NUM_CLASSES. Those that are not listed use MODEL.CLQ.
_GROUPS = {"FCOS": "RETINANET", "RetinaNet": "RETINANET", "GeneralizedRCNN": "ROI_HEADS"}


def fill_num_classes(cfg: CfgNode) -> None:
    """Sets the ``NUM_CLASSES`` that the model reads to :func:`resolve_num_classes`. The config must not be frozen."""
    cfg.MODEL[num_classes_group(cfg)].NUM_CLASSES = resolve_num_classes(cfg)


def num_classes_group(cfg: CfgNode) -> str:
    """The group under MODEL in which the model of a config has its NUM_CLASSES."""
    return _GROUPS.get(cfg.MODEL.META_ARCHITECTURE, "CLQ")


def resolve_num_classes(cfg: CfgNode) -> int:
    """Returns K, the number of classes of the model.

    This is the model's ``NUM_CLASSES`` or, if that is -1, the number of classes of the first training set. The key is
    under ``MODEL.CLQ``; for Detectron2's own models it is under ``MODEL.RETINANET`` (also for FCOS) or
    ``MODEL.ROI_HEADS``.

    Raises:
        UserError: the key is -1 and no training set can be read, or it disagrees with the training set.
    """
    group, train = num_classes_group(cfg), cfg.DATASETS.TRAIN
    key, wanted = f"MODEL.{group}.NUM_CLASSES", cfg.MODEL[group].NUM_CLASSES
    if wanted != -1 and wanted < 1:
        raise UserError(f"{key} {wanted}: must be at least 1, or -1 to take it from the training set.")
    if not train:
        if wanted == -1:
            raise UserError(f"{key} is -1 and DATASETS.TRAIN is empty; set either of them.")
        return wanted
    try:
        found = len(class_names(train[0]))
    except UserError as e:
        if wanted == -1:
            raise UserError(f"{key} is -1, so it comes from DATASETS.TRAIN; {e} Or set the number.") from e
        return wanted  # a trained model can be used where its training set is not available
    if wanted not in (-1, found):
        raise UserError(f"{key} is {wanted} but data set {train[0]} has {found} classes; set it to -1 or {found}.")
    return found
