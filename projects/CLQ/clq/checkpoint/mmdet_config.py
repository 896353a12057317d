"""Compares the config that MMDetection stores in a checkpoint with that of this project's variant.

Settings that the weights do not show (anchors, strides, activations, groups of normalization, the assigner) must be
equal in both. A setting that MMDetection's config does not have has MMDetection's default.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from detectron2.config import CfgNode

from clq.checkpoint.foreign import brief
from clq.checkpoint.mmdet_config_text import Unread, dicts_in
from clq.checkpoint.mmdet_settings import COMMON, NO_DEFAULT, OF_HEAD
from clq.errors import UserError


class Head(NamedTuple):
    """The head that a config describes.

    Attributes:
        kind: name of its class without the package; empty if the config does not have it.
        num_classes: number of classes; 0 if the config does not have it.
    """

    kind: str
    num_classes: int


class _Comparison(NamedTuple):
    """A setting in both configs.

    Attributes:
        setting: path of the setting in MMDetection's config.
        theirs: value in MMDetection's config.
        ours: value in this project's config.
        in_weights: whether the weights show the value too, so that a difference is a mistake in MMDetection's config.
    """

    setting: str
    theirs: object
    ours: object
    in_weights: bool = False


def head_of(config: dict) -> Head:
    """Returns the head that MMDetection's config describes."""
    model = config.get("model")
    head = model.get("bbox_head") if isinstance(model, dict) else None
    head = head if isinstance(head, dict) else {}
    kind, classes = head.get("type", ""), head.get("num_classes", 0)
    return Head(str(kind).rsplit(".", 1)[-1], classes if isinstance(classes, int) else 0)


def check_settings(path: str, config: dict, cfg: CfgNode, name: str) -> None:
    """Compares the settings that the weights do not show.

    Args:
        path: path of the checkpoint, for error messages.
        config: MMDetection's config, see :func:`~clq.checkpoint.mmdet_config_text.read_config`; if it is empty, nothing
            is compared.
        cfg: config of this project's variant, with the sizes that the weights show.
        name: path of this config, for error messages.

    Raises:
        UserError: a setting differs.
    """
    if not config:
        return
    try:
        model = _canonical_model(config)
        comparisons = [
            _Comparison(f"model.{s.path}", _find(model, s.path, s.default), s.ours(cfg), s.in_weights)
            for s in (*COMMON, *OF_HEAD[head_of(config).kind])
        ]
        comparisons += [*_normalization(config, cfg), *_loading(config)]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as e:
        raise UserError(
            f"{path}: the config in its meta is not structured like MMDetection's ({e}); correct it."
        ) from e
    for setting, theirs, ours, in_weights in comparisons:
        if theirs is NO_DEFAULT or _equal(theirs, ours):
            continue
        if in_weights:
            raise UserError(
                f"{path}: its config has {setting} = {brief(theirs)}, but its weights have {ours!r}; correct the "
                "config in its meta."
            )
        raise UserError(
            f"{path}: was trained with {setting} = {brief(theirs)}, but {name} has {ours!r} and no config key changes "
            "that, so the checkpoint cannot be converted; give one with that setting."
        )


def _find(node: object, setting: str, default: object) -> object:
    """The value of a setting, or the default if it or a group above it is absent; classes are without their package."""
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


def _canonical_model(config: dict) -> dict[str, Any]:
    """The part under ``model``, in which settings that can be written in several ways are written in one way.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: it does not have the structure of an MMDetection config.
    """
    model = dict(config["model"])
    model.setdefault("train_cfg", config.get("train_cfg"))  # before 2.7, train_cfg was beside the model
    for part in ("neck", "bbox_head"):  # copies, because values of a config may be shared and these are changed here
        if isinstance(model.get(part), dict):
            model[part] = dict(model[part])
    if isinstance(model.get("neck"), dict):
        _make_neck_canonical(model["neck"], model.get("backbone"))
    _make_head_canonical(model["bbox_head"], head_of(config).kind)
    return model


def _make_neck_canonical(neck: dict[str, Any], backbone: object) -> None:
    if neck.get("add_extra_convs") is True:
        neck["add_extra_convs"] = "on_input" if neck.get("extra_convs_on_inputs", True) else "on_output"
    if isinstance(backbone, dict):
        neck["stages"] = list(backbone.get("out_indices", range(4)))[neck.get("start_level", 0) :]


def _make_head_canonical(head: dict[str, Any], kind: str) -> None:
    if "anchor_strides" in head:
        head["anchor_generator"] = Unread("that of MMDetection 1.x, with anchors at other locations")
    if kind == "VFNetHead":
        five = [8, 16, 32, 64, 128]
        head.setdefault("anchor_generator", {"octave_base_scale": 8, "ratios": [1.0], "strides": five})
        if "regress_ranges" in head:
            # The unit of a level is the end of its range; that of the last level is twice the unit before.
            ends = [end for _, end in head["regress_ranges"]][:-1]
            head["regress_ranges"] = [*ends, 2 * ends[-1]]
    generator = head.get("anchor_generator")
    if isinstance(generator, dict):
        generator = head["anchor_generator"] = dict(generator)
        if len(generator.get("scales") or []) == 1:
            (generator["octave_base_scale"],), generator["scales"] = generator["scales"], None
        if generator.get("base_sizes") == generator.get("strides"):
            generator["base_sizes"] = None


def test_places(config: dict) -> dict[str, object]:
    """Returns the settings that describe the preparation of test images, by their names."""
    data = config.get("data")
    return {
        "test_pipeline": config.get("test_pipeline"),
        "data.test": data.get("test") if isinstance(data, dict) else data,
        "test_dataloader": config.get("test_dataloader"),
    }


def _normalization(config: dict, cfg: CfgNode) -> list[_Comparison]:
    """Compares all settings that normalize images for the network."""
    places = {
        "img_norm_cfg": config.get("img_norm_cfg"),
        **test_places(config),
        "model.data_preprocessor": config["model"].get("data_preprocessor"),
        "data_preprocessor": config.get("data_preprocessor"),
    }
    found: list[_Comparison] = []
    for place, node in places.items():
        for step in dicts_in(node):
            kind = _find(step, "type", "Normalize" if place == "img_norm_cfg" else "")
            if kind != "Normalize" and not str(kind).endswith("DataPreprocessor"):
                continue
            flag, default = ("to_rgb", True) if kind == "Normalize" else ("bgr_to_rgb", False)
            found += [
                _Comparison(f"{place}: mean", step.get("mean"), cfg.MODEL.PIXEL_MEAN),
                _Comparison(f"{place}: std", step.get("std"), cfg.MODEL.PIXEL_STD),
                _Comparison(f"{place}: {flag}", step.get(flag, default), cfg.INPUT.FORMAT == "RGB"),
            ]
    if not found and (config.get("data") or config.get("test_dataloader")):
        found.append(_Comparison("Normalize or data_preprocessor", None, f"mean {cfg.MODEL.PIXEL_MEAN}"))
    return found


def _loading(config: dict) -> Iterator[_Comparison]:
    """Compares all settings that read images. They must give three channels in the order BGR for the normalization."""
    for place, node in test_places(config).items():
        for step in dicts_in(node):
            if str(_find(step, "type", "")).startswith("LoadImageFrom"):
                for setting, ours in (("channel_order", "bgr"), ("color_type", "color")):
                    yield _Comparison(f"{place}: {setting}", step.get(setting, ours), ours)


def _equal(theirs: object, ours: object) -> bool:
    if isinstance(theirs, (list, tuple)) and isinstance(ours, (list, tuple)):
        return len(theirs) == len(ours) and all(map(_equal, theirs, ours))
    if isinstance(theirs, (int, float)) and isinstance(ours, (int, float)):
        return math.isclose(theirs, ours, rel_tol=1e-6)
    return theirs == ours
