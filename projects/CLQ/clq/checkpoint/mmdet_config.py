"""The config that MMDetection keeps in a checkpoint, held against this project's.

What no weight shows (anchors, strides, activations, groups of normalisation, how training
chose positives) must be as in the config of this project's variant; MMDetection's defaults count where its config is
silent.
"""

import math

from detectron2.config import CfgNode

from clq.checkpoint.foreign import brief
from clq.checkpoint.mmdet_config_text import Unread, dicts_in
from clq.checkpoint.mmdet_settings import COMMON, NO_DEFAULT, OF_HEAD
from clq.errors import UserError


def head_of(config: dict) -> tuple[str, int]:
    """The head's class, without its package, and its number of classes; "" and 0 where the config has none."""
    model = config.get("model")
    head = model.get("bbox_head") if isinstance(model, dict) else None
    head = head if isinstance(head, dict) else {}
    kind, classes = head.get("type", ""), head.get("num_classes", 0)
    return str(kind).rsplit(".", 1)[-1], classes if isinstance(classes, int) else 0


def check_settings(path: str, config: dict, cfg: CfgNode, name: str) -> None:
    """Compares what no weight shows.

    Args:
        path: of the checkpoint, for errors.
        config: MMDetection's, as :func:`~clq.checkpoint.mmdet_config_text.read_config` returns it; if it is empty,
            there is nothing to compare.
        cfg: of this project's variant, with the sizes that the weights tell.
        name: of its file, for errors.

    Raises:
        UserError: a setting that differs; the message has its value and ours.
    """
    if not config:
        return
    try:
        model = _normalized(config)
        pairs = [
            (f"model.{s.path}", _find(model, s.path, s.default), s.ours(cfg), s.told)
            for s in (*COMMON, *OF_HEAD[head_of(config)[0]])
        ]
        pairs += [(*pair, False) for pair in (*_normalization(config, cfg), *_loading(config))]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as e:
        raise UserError(f"{path}: the config in its meta is not built as MMDetection's are ({e}).") from e
    for setting, theirs, ours, told in pairs:
        if theirs is NO_DEFAULT or _same(theirs, ours):
            continue
        differs = f"{setting} = {brief(theirs)}, where {'its weights have' if told else f'{name} has'} {ours!r}"
        if told:
            raise UserError(f"{path}: its config has {differs}; correct the config in its meta.")
        raise UserError(
            f"{path}: was trained with {differs}; no setting of this project makes up for that, so it cannot be "
            "converted."
        )


def _find(node: object, setting: str, default: object) -> object:
    """The value of a setting, classes without their package; the default where it or a group above it is absent."""
    for part in setting.split("."):
        if node is None:
            return default
        if isinstance(node, Unread):
            return node
        if not isinstance(node, dict):
            return Unread(f"({part} of a {type(node).__name__})")
        if part not in node:
            return default
        node = node[part]
    return node.rsplit(".", 1)[-1] if setting.endswith("type") and isinstance(node, str) else node


def _normalized(config: dict) -> dict:
    """The part under ``model``, where several ways to write the same have become one."""
    model = dict(config["model"])
    model.setdefault("train_cfg", config.get("train_cfg"))  # beside the model, before 2.7
    for part in ("neck", "bbox_head"):  # those that are changed here; a config's values may be shared
        if isinstance(model.get(part), dict):
            model[part] = dict(model[part])
    backbone, neck, head = (model.get(part) for part in ("backbone", "neck", "bbox_head"))
    if isinstance(neck, dict):
        if neck.get("add_extra_convs") is True:
            neck["add_extra_convs"] = "on_input" if neck.get("extra_convs_on_inputs", True) else "on_output"
        if isinstance(backbone, dict):
            neck["stages"] = list(backbone.get("out_indices", range(4)))[neck.get("start_level", 0) :]
    if "anchor_strides" in head:
        head["anchor_generator"] = Unread("that of MMDetection 1.x, with anchors at other places")
    if head_of(config)[0] == "VFNetHead":
        five = [8, 16, 32, 64, 128]
        head.setdefault("anchor_generator", {"octave_base_scale": 8, "ratios": [1.0], "strides": five})
        if (
            "regress_ranges" in head
        ):  # each level's unit is where its range ends; the last one's is twice the one before
            ends = [end for _, end in head["regress_ranges"]][:-1]
            head["regress_ranges"] = [*ends, 2 * ends[-1]]
    generator = head.get("anchor_generator")
    if isinstance(generator, dict):
        generator = head["anchor_generator"] = dict(generator)
        if len(generator.get("scales") or []) == 1:
            (generator["octave_base_scale"],), generator["scales"] = generator["scales"], None
        if generator.get("base_sizes") == generator.get("strides"):
            generator["base_sizes"] = None
    return model


def test_places(config: dict) -> dict[str, object]:
    """Where a config says how the images of the test are made."""
    data = config.get("data")
    return {
        "test_pipeline": config.get("test_pipeline"),
        "data.test": data.get("test") if isinstance(data, dict) else data,
        "test_dataloader": config.get("test_dataloader"),
    }


def _normalization(config: dict, cfg: CfgNode) -> list[tuple[str, object, object]]:
    """Setting, theirs and ours, of all that normalises images for the network."""
    places = {
        "img_norm_cfg": config.get("img_norm_cfg"),
        **test_places(config),
        "model.data_preprocessor": config["model"].get("data_preprocessor"),
        "data_preprocessor": config.get("data_preprocessor"),
    }
    pairs = []
    for place, node in places.items():
        for found in dicts_in(node):
            kind = _find(found, "type", "Normalize" if place == "img_norm_cfg" else "")
            if kind != "Normalize" and not str(kind).endswith("DataPreprocessor"):
                continue
            flag, default = ("to_rgb", True) if kind == "Normalize" else ("bgr_to_rgb", False)
            pairs += [
                (f"{place}: mean", found.get("mean"), cfg.MODEL.PIXEL_MEAN),
                (f"{place}: std", found.get("std"), cfg.MODEL.PIXEL_STD),
                (f"{place}: {flag}", found.get(flag, default), cfg.INPUT.FORMAT == "RGB"),
            ]
    if not pairs and (config.get("data") or config.get("test_dataloader")):
        pairs.append(("Normalize or data_preprocessor", None, f"mean {cfg.MODEL.PIXEL_MEAN}"))
    return pairs


def _loading(config: dict) -> list[tuple[str, object, object]]:
    """Setting, theirs and ours, of all that reads images: as three channels, which the normalization expects as BGR."""
    return [
        (f"{place}: {setting}", found.get(setting, ours), ours)
        for place, node in test_places(config).items()
        for found in dicts_in(node)
        if str(_find(found, "type", "")).startswith("LoadImageFrom")
        for setting, ours in (("channel_order", "bgr"), ("color_type", "color"))
    ]


def _same(theirs: object, ours: object) -> bool:
    if isinstance(theirs, (list, tuple)) and isinstance(ours, (list, tuple)):
        return len(theirs) == len(ours) and all(map(_same, theirs, ours))
    if isinstance(theirs, (int, float)) and isinstance(ours, (int, float)):
        return math.isclose(theirs, ours, rel_tol=1e-6)
    return theirs == ours
