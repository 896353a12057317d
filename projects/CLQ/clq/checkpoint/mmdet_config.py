"""The config that MMDetection keeps in a checkpoint: reading it, and holding it against this project's.

Nothing in it is executed. What no weight shows (anchors, strides, activations, groups of normalisation, how training
chose positives) must be as in the config of this project's variant; MMDetection's defaults count where its config is
silent.
"""

import ast
import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

from detectron2.config import CfgNode

from clq.checkpoint.mmdet_settings import COMMON, NO_DEFAULT, OF_HEAD
from clq.errors import UserError


@dataclass(frozen=True)
class Unread:
    """An expression of a config that is no plain value, such as ``range(0, 1)``; equal to no value of ours."""

    text: str

    def __repr__(self) -> str:
        return self.text


def read_config(path: str, text: str) -> dict:
    """The values of a config's assignments: nested dicts and lists of plain values, and :class:`Unread`.

    Args:
        path: of the checkpoint, for errors.
        text: of the config, with its ``_base_`` merged; empty for a checkpoint without one.

    Raises:
        UserError: no config that MMDetection has merged and written.
    """
    how = "remove config (2.x) or cfg (3.x) from its meta to have it taken at its weights' word"
    try:
        tree = ast.parse(text)
        values: dict[str, object] = {}
        for statement in tree.body:
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                values[statement.targets[0].id] = _value(statement.value, values)
    except (SyntaxError, ValueError, RecursionError, MemoryError, TypeError) as e:
        line = f", line {e.lineno}" if isinstance(e, SyntaxError) else ""
        raise UserError(f"{path}: the config in its meta is no Python that can be read{line}; {how}.") from e
    if text and not isinstance(values.get("model"), dict):
        raise UserError(f"{path}: the config in its meta has no model = dict(...); {how}.")
    if "_base_" in values:
        raise UserError(f"{path}: the config in its meta has a _base_ that is not merged; {how}.")
    return values


def _value(node: ast.expr, names: dict[str, object]) -> object:
    """What an expression stands for, if it is plain; names are those assigned before."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        return [_value(x, names) for x in node.elts]
    if isinstance(node, ast.Dict):
        return _merged(
            ((k and _value(k, names), _value(v, names)) for k, v in zip(node.keys, node.values, strict=True))
        )
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return _merged((k.arg, _value(k.value, names)) for k in node.keywords)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _value(node.operand, names)
        return -value if isinstance(value, (int, float)) else Unread(ast.unparse(node))
    if isinstance(node, ast.Name):
        if node.id in ("inf", "nan"):
            return float(node.id)
        return copy.deepcopy(names.get(node.id, Unread(node.id)))
    return Unread(ast.unparse(node))


def _merged(items: Iterator[tuple[object, object]]) -> dict:
    merged: dict = {}
    for key, value in items:
        merged.update(value if key is None and isinstance(value, dict) else {key: value})  # None: of **value
    return merged


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
        config: MMDetection's, as :func:`read_config` returns it; empty: nothing to compare.
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
            (f"model.{s.path}", _find(model, s.path, s.default), s.ours(cfg))
            for s in (*COMMON, *OF_HEAD[head_of(config)[0]])
        ]
        pairs += _preprocessing(config, cfg)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as e:
        raise UserError(f"{path}: the config in its meta is not built as MMDetection's are ({e}).") from e
    for setting, theirs, ours in pairs:
        if theirs is not NO_DEFAULT and not _same(theirs, ours):
            raise UserError(
                f"{path}: was trained with {setting} = {theirs!r}, where {name} has {ours!r}; no setting of this "
                "project makes up for that, so it cannot be converted."
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
    model = copy.deepcopy(config["model"])
    model.setdefault("train_cfg", config.get("train_cfg"))  # beside the model, before 2.7
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
        if len(generator.get("scales") or []) == 1:
            (generator["octave_base_scale"],), generator["scales"] = generator["scales"], None
        if generator.get("base_sizes") == generator.get("strides"):
            generator["base_sizes"] = None
    return model


def _preprocessing(config: dict, cfg: CfgNode) -> list[tuple[str, object, object]]:
    """Setting, theirs and ours, of all that normalises images for the network."""
    data = config.get("data")
    places = {
        "img_norm_cfg": config.get("img_norm_cfg"),
        "test_pipeline": config.get("test_pipeline"),
        "data.test": data.get("test") if isinstance(data, dict) else None,
        "test_dataloader": config.get("test_dataloader"),
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
    if not pairs and (data or config.get("test_dataloader")):
        pairs.append(("Normalize or data_preprocessor", None, f"mean {cfg.MODEL.PIXEL_MEAN}"))
    return pairs


def dicts_in(node: object) -> Iterator[dict]:
    """All dicts in nested dicts and lists, outer ones first."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from dicts_in(child)


def _same(theirs: object, ours: object) -> bool:
    if isinstance(theirs, (list, tuple)) and isinstance(ours, (list, tuple)):
        return len(theirs) == len(ours) and all(map(_same, theirs, ours))
    if isinstance(theirs, (int, float)) and isinstance(ours, (int, float)):
        return math.isclose(theirs, ours, rel_tol=1e-6)
    return theirs == ours
