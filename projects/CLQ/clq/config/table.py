"""The table of all keys that this project adds to Detectron2's config."""

import copy

from detectron2.config import CfgNode

from clq.config.input_keys import AUGMENTATION_KEYS, IMAGE_KEYS, LETTERBOX_KEYS, MIXING_KEYS
from clq.config.key import Key, OneOf
from clq.config.loss_keys import ASSIGN_KEYS, BOX_KEYS, CLS_KEYS, QUALITY_KEYS
from clq.config.model_keys import BACKBONE_KEYS, BOX_FEATURE_KEYS, DETECTOR_KEYS, HEAD_KEYS, SELECTION_KEYS
from clq.config.training_keys import DATA_KEYS, LOGGING_KEYS, SOLVER_KEYS, TEST_KEYS, TILE_KEYS
from clq.utils.config_tree import get_key

# The keys under headings, in the order of docs/CONFIG.md and of the config itself.
SECTIONS: dict[str, tuple[Key, ...]] = {
    "Detector": DETECTOR_KEYS,
    "Head": HEAD_KEYS,
    "Assignment": ASSIGN_KEYS,
    "Boxes": BOX_KEYS,
    "Classification": CLS_KEYS,
    "Quality": QUALITY_KEYS,
    "Feature alignment and refinement": BOX_FEATURE_KEYS,
    "Selection of detections": SELECTION_KEYS,
    "Backbone": BACKBONE_KEYS,
    "Data sets": DATA_KEYS,
    "Tiles": TILE_KEYS,
    "Training": SOLVER_KEYS,
    "Testing": TEST_KEYS,
    "Logging": LOGGING_KEYS,
    "Image files": IMAGE_KEYS,
    "Letterbox": LETTERBOX_KEYS,
    "Augmentation": AUGMENTATION_KEYS,
    "Mosaic and mixup": MIXING_KEYS,
}
KEYS: dict[str, Key] = {key.path: key for keys in SECTIONS.values() for key in keys}


def add_clq_config(cfg: CfgNode) -> None:
    """Adds the project's keys with their defaults to a Detectron2 config, in place.

    A key that the installed version of Detectron2 has too stays as it is.
    """
    for key in KEYS.values():
        if key.exists():
            *groups, name = key.path.split(".")
            node = cfg
            for group in groups:
                node = node.setdefault(group, CfgNode())
            node.setdefault(name, copy.copy(key.default))


def check_keys(cfg: CfgNode, *prefixes: str) -> None:
    """Checks the values of the project's keys.

    Args:
        cfg: config with the project's keys.
        prefixes: the keys to check, or groups of keys, such as ``"MODEL.CLQ"``.

    Raises:
        UserError: the first key whose value it does not accept.
    """
    for path, key in KEYS.items():
        if key.exists() and any(f"{path}.".startswith(f"{prefix}.") for prefix in prefixes):
            key.check(get_key(cfg, path))


def replace_renamed(cfg: CfgNode) -> list[str]:
    """Replaces values that have another name today, in place.

    Returns:
        One sentence for each value that was replaced.
    """
    replaced = []
    for path, key in KEYS.items():
        if isinstance(key.values, OneOf) and (old := str(get_key(cfg, path))) in key.values.renamed:
            new = key.values.renamed[old]
            cfg.merge_from_list([path, new])
            replaced.append(f"{path} {old}: this value is now called {new}; write {path} {new}.")
    return replaced
