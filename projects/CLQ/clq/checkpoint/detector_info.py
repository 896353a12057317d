"""What a checkpoint says about its detector: the config and the classes, so that the file alone is enough to use it."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard

import safetensors
from detectron2.config import CfgNode, get_cfg

from clq.checkpoint.storage import SAFETENSORS, DamagedFile, read_weights
from clq.errors import UserError, reason_of

KEY = "detector"  # of a checkpoint, and of the metadata of a safetensors file, where the value is json


class DetectorInfo(NamedTuple):
    """A detector's config and classes.

    Attributes:
        config: yaml with all keys but those of data sets, of the folder of results and of the weights.
        class_names: names of the K classes.
        category_ids: their category ids in the data set.
    """

    config: str
    class_names: tuple[str, ...]
    category_ids: tuple[int | str, ...]

    def to_plain(self) -> dict[str, Any]:
        """Plain values, as a checkpoint holds them."""
        return {"config": self.config, "class_names": [*self.class_names], "category_ids": [*self.category_ids]}


def config_text(cfg: CfgNode) -> str:
    """The config as yaml, without what only holds on the machine that trained the detector.

    Args:
        cfg: config with the number of classes.
    """
    cfg, default = cfg.clone(), get_cfg()
    cfg.defrost()
    cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = default.OUTPUT_DIR, "", default.MODEL.DEVICE
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), ()
    cfg.DATASETS.COCO_JSON, cfg.DATASETS.SETS, cfg.DATASETS.CLASSES = [], [], []
    return cfg.dump()


def read_info(path: str) -> DetectorInfo | None:
    """What a file of weights says about its detector; None if it says nothing.

    Raises:
        UserError: the file cannot be read or is damaged, or it holds something else in this place.
    """
    if path.endswith(".pkl"):  # of Detectron2's model zoo
        return None
    try:
        if path.endswith(SAFETENSORS):
            with safetensors.safe_open(path, framework="pt") as f:
                return info_of(f.metadata() or {}, path)
        content = read_weights(path, path)
    except (DamagedFile, OSError, safetensors.SafetensorError) as e:
        raise UserError(f"{path}: is damaged or not a checkpoint ({reason_of(e)}); give another file.") from e
    return info_of(content, path) if isinstance(content, Mapping) else None


def info_of(checkpoint: Mapping[str, Any], source: str) -> DetectorInfo | None:
    """What a checkpoint says about its detector; None if it says nothing, like those of other projects.

    Args:
        checkpoint: content of the file.
        source: name of the file, for messages.

    Raises:
        UserError: it holds something else in this place.
    """
    plain = checkpoint.get(KEY)
    if plain is None:
        return None
    if isinstance(plain, str):
        try:
            plain = json.loads(plain)
        except (ValueError, RecursionError):
            plain = None
    if isinstance(plain, Mapping):
        config, names, ids = (plain.get(key) for key in DetectorInfo._fields)
        if isinstance(config, str) and _are(names, (str,)) and _are(ids, (int, str)) and len(names) == len(ids):
            return DetectorInfo(config, tuple(names), tuple(ids))
    raise UserError(f"{source}: what it says about its detector is damaged; give the config as well as the weights.")


def _are(values: Any, kinds: tuple[type, ...]) -> TypeGuard[list]:
    return isinstance(values, list) and len(values) > 0 and all(type(value) in kinds for value in values)
