"""Merges files and overrides into a config, and reports each mistake in one line."""

import difflib
import io
import logging
import os
import re
from typing import TextIO

import yaml
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from fvcore.common.config import BASE_KEY

from clq.config.yaml_checks import check_config_files, config_named
from clq.configs import path as path_of_config
from clq.errors import UserError
from clq.utils.config_tree import get_key

logger = logging.getLogger(__name__)

# Keys whose overrides are written as in a file, and how.
_LISTS = {
    "DATASETS.COCO_JSON": "[{name: a, json: b.json, images: c}]",
    "DATASETS.SETS": "[{name: a, voc: b}]",
    "DATASETS.CLASSES": "[a, b]",
}


def merge_file(cfg: CfgNode, path: str) -> None:
    """Merges a yaml file and its ``_BASE_`` into a config, in place, without executing or fetching anything.

    Raises:
        UserError: the file or its base cannot be read, is on another machine, is not plain yaml, takes too much memory,
            or has an unknown key or a value of the wrong type.
    """
    if not os.path.isfile(path):
        path = path_of_config(path)
    try:
        check_config_files(path)
        _keep_older_meaning(cfg, path)
        vars(cfg)["load_yaml_with_base"] = _Reader.load_yaml_with_base  # which the next line calls
        cfg.merge_from_file(path, allow_unsafe=False)
    except yaml.constructor.ConstructorError as e:
        raise UserError(f"{path}: only plain yaml is read ({e.problem}); write lists as [a, b].") from e
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: not valid yaml: {' '.join(str(e).split())}") from e
    except OSError as e:
        name, reason = e.filename or "its _BASE_", e.strerror or e
        raise UserError(
            f"{path}: {name} cannot be read ({reason}); a _BASE_ is relative to its file, or a name of "
            "clq.configs.list()."
        ) from e
    except (TypeError, AttributeError) as e:  # yacs takes it for granted that files and groups are mappings
        raise UserError(
            f"{path}: the file or its _BASE_ is empty or not nested KEY: value pairs as in configs/; correct it."
        ) from e
    except (KeyError, ValueError, AssertionError) as e:
        raise UserError(f"{path}: {_explain(cfg, e)}") from e
    finally:
        vars(cfg).pop("load_yaml_with_base", None)


class _Reader(CfgNode):
    """Reads files whose ``_BASE_`` may be the name of a config of the project."""

    @classmethod
    def _open_cfg(cls, filename: str) -> TextIO:
        with PathManager.open(filename, "r") as f:
            text = f.read()
        content = yaml.safe_load(text)
        base = content.get(BASE_KEY, []) if isinstance(content, dict) else []
        bases = base if isinstance(base, list) else [base]
        if any(config_named(b, filename) for b in bases):
            text = yaml.safe_dump({**content, BASE_KEY: [config_named(b, filename) or b for b in bases]})
        return io.StringIO(text)


def _keep_older_meaning(cfg: CfgNode, path: str) -> None:
    """Keeps the meaning of a config that a training saved while CLQ followed the paper's text.

    Such a config has all keys of its time, among them QUALITY.TARGET. The keys that have been added since get the
    values with which the detector computes what it computed then.

    Raises:
        UserError: QUALITY.TARGET is set beside keys that are newer.
    """
    quality = _Reader.load_yaml_with_base(path, allow_unsafe=False)
    for name in ("MODEL", "CLQ", "QUALITY"):
        quality = quality.get(name) if isinstance(quality, dict) else None
    if not isinstance(quality, dict) or "TARGET" not in quality:
        return
    if "TOWER" in quality:
        raise UserError(
            f"{path}: the config key MODEL.CLQ.QUALITY.TARGET does not exist any more, because the quality branch "
            "always learns the IoU of the decoded box. Remove the key."
        )
    cfg.register_deprecated_key("MODEL.CLQ.QUALITY.TARGET")
    c = cfg.MODEL.CLQ
    c.QUALITY.TOWER, c.ALIGN.OFFSET_GROUPS, c.ALIGN.GRADIENT = "reg", 1, 0.0
    c.BOX.WEIGHT_FLOOR, c.TOPK_COUNTS = 1.0, "pairs"
    if quality.get("NAME") == "iou":
        logger.warning(
            "%s: saved by an older version, in which CLQ followed the paper's text. The detector computes what it "
            "computed then. If it is trained further, the target of class and quality is the IoU of the decoded box; "
            "it was IoU^alpha for the class and QUALITY.TARGET %s for the quality.",
            path,
            quality["TARGET"],
        )


def merge_opts(cfg: CfgNode, opts: list) -> None:
    """Merges overrides ``KEY VALUE KEY VALUE ...`` into a config, in place.

    Raises:
        UserError: a key without a value, an unknown key, or a value of the wrong type.
    """
    if len(opts) % 2:
        raise UserError(f"overrides come in pairs, KEY VALUE; got {len(opts)} words: {' '.join(map(str, opts))}")
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        try:
            if key in _LISTS and isinstance(value, str):
                value = yaml.safe_load(value)  # written as in a file
            cfg.merge_from_list([key, value])
        except yaml.YAMLError as e:
            raise UserError(f"{key} {value}: write '{_LISTS[key]}', in quotes.") from e
        except (TypeError, AttributeError) as e:  # the key is not text, or has more parts than there are groups
            raise UserError(f"{key} {value}: {_unknown(cfg, str(key))}") from e
        except (KeyError, ValueError, AssertionError) as e:
            raise UserError(f"{key} {value}: {_explain(cfg, e)}") from e


def _explain(cfg: CfgNode, error: Exception) -> str:
    """Explains an error of yacs in one line, with similar keys for an unknown one and the type that a value must have.

    Args:
        cfg: config that was merged into.
        error: what yacs raised.
    """
    message = " ".join(str(error.args[0] if error.args else error).split())
    if match := re.fullmatch(r"Non-existent (?:config )?key: ?(\S*)", message):
        return _unknown(cfg, match[1])
    match = re.fullmatch(r"Type mismatch \(<class '(\S+)'> vs. <class '(\S+)'>\) .* for config key: (\S+)", message)
    if not match:
        return message
    wanted, given, key = match.groups()
    value = get_key(cfg, key)
    if isinstance(value, CfgNode):
        return f"{key} is a group of keys ({', '.join(value)}), not a value."
    # The present value shows how one is written: 2.0 where a float is wanted, ('a',) for a tuple.
    return f"{key} must be of type {wanted}, such as {value!r}; this is of type {given.rsplit('.', 1)[-1]}."


def _unknown(cfg: CfgNode, key: str) -> str:
    near = difflib.get_close_matches(key, _all_keys(cfg), n=3, cutoff=0.5)
    return f"there is no config key {key}" + (f"; did you mean {' or '.join(near)}?" if near else ".")


def _all_keys(node: CfgNode, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, value in node.items():
        keys += _all_keys(value, f"{prefix}{name}.") if isinstance(value, CfgNode) else [prefix + name]
    return keys
