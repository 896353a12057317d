"""The data.yaml of a YOLO data set, as ultralytics and others write it."""

import os
from dataclasses import dataclass

import yaml

from clq.config.yaml_checks import read_yaml
from clq.data.formats.findings import shown
from clq.data.formats.source import Source, unreadable
from clq.data.formats.values import is_number, is_text
from clq.errors import UserError

SPLITS = "train", "val", "test"


@dataclass(frozen=True)
class DataYaml:
    """Content of a data.yaml.

    Attributes:
        names: names of the classes.
        images: folders of images, and files that list images, of the split.
        keypoint_values: numbers that follow a box in each line of a label file, for keypoints.
    """

    names: tuple[str, ...]
    images: list[str]
    keypoint_values: int = 0


def read_data_yaml(path: str, source: Source, name: str) -> DataYaml:
    """Reads a data.yaml.

    Args:
        path: its path.
        source: source of the data set.
        name: name of the data set, for messages.

    Raises:
        UserError: it cannot be read, its classes are not defined, or its split or the images of that do not exist.
    """
    try:
        content = read_yaml(path)
    except UserError as e:
        raise UserError(f"data set {name}: {e}") from e
    except (OSError, ValueError, yaml.YAMLError) as e:
        raise unreadable(name, path, e) from e
    if not isinstance(content, dict) or "names" not in content:
        raise UserError(f"data set {name}: {path} has no names; a data.yaml names the classes under names: [a, b].")
    names = check_names(content["names"], path, name)
    if content.get("nc", len(names)) != len(names):
        raise UserError(
            f"data set {name}: {path} has nc {shown(content['nc'])}, but {len(names)} names; correct one of them."
        )
    entries = content.get(_choose_split(content, path, source, name))
    entries = entries if isinstance(entries, list) else [entries]
    if not entries or not all(is_text(entry) and entry for entry in entries):
        raise UserError(f"data set {name}: {path} has {shown(entries[:1])} for the images of its split; name a folder.")
    base = _base(content.get("path"), path, source, name)
    images = [_resolve(entry, base, path, name) for entry in entries]
    return DataYaml(tuple(names), images, _keypoint_values(content.get("kpt_shape"), path, name))


def check_names(names: object, path: str, name: str) -> list[str]:
    """Checks the names of classes, a list or, as ultralytics writes it, a mapping from 0, 1, ... to names.

    Raises:
        UserError: they are something else.
    """
    if isinstance(names, dict) and names and set(names) == set(range(len(names))):
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        what = f"data set {name}: {path} has names {shown(names)}"
        raise UserError(f"{what}; they must be a list, or a mapping from 0, 1, ... to names.")
    for value in names:
        if isinstance(value, bool) or not (is_text(value) or is_number(value)):
            raise UserError(f"data set {name}: {path} has the name {shown(value)} of a class; write it in quotes.")
    return [str(value) for value in names]


def _choose_split(content: dict, path: str, source: Source, name: str) -> str:
    known = [split for split in SPLITS if content.get(split)]
    if source.split is not None:
        if source.split not in known:
            have = f"it has {', '.join(known)}" if known else "it has none"
            raise UserError(f"data set {name}: {path} has no split {source.split}; {have}.")
        return source.split
    if len({str(content[split]) for split in known}) != 1:
        what = f"has the splits {', '.join(known)}; name one with split: {known[0]}" if known else "has no images"
        fix = "" if known else "; name them under train or val"
        raise UserError(f"data set {name}: {path} {what}{fix}.")
    return known[0]


def _base(given: object, path: str, source: Source, name: str) -> str:
    """The folder that the entries are relative to."""
    here = os.path.dirname(path)
    if source.images is not None or given in (None, ""):
        return source.images or here
    if not is_text(given):
        raise UserError(f"data set {name}: {path} has path {shown(given)}; it must be a folder.")
    given = os.path.expanduser(str(given))
    for base in (os.path.join(here, given), os.path.abspath(given)):
        if "\0" not in base and os.path.isdir(base):
            return os.path.normpath(base)
    raise UserError(
        f"data set {name}: {path} has path {shown(given)}, a folder that does not exist; correct it, or name the "
        "folder under images in DATASETS.SETS."
    )


def _resolve(entry: str, base: str, path: str, name: str) -> str:
    """The path of a folder of images or of a list of them."""
    for candidate in (entry, entry.removeprefix("../")):  # Roboflow writes ../train/images for train/images
        found = os.path.normpath(os.path.join(base, candidate))
        if "\0" not in found and os.path.exists(found):
            return found
    raise UserError(
        f"data set {name}: {path} names the images {shown(entry)}, but {os.path.normpath(os.path.join(base, entry))} "
        "does not exist; correct path or the split, or name the folder that they are relative to under images in "
        "DATASETS.SETS."
    )


def _keypoint_values(shape: object, path: str, name: str) -> int:
    if shape is None:
        return 0
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(n) is int and 0 < n < 10_000 for n in shape):
        raise UserError(
            f"data set {name}: {path} has kpt_shape {shown(shape)}; it must be [number of keypoints, 2 or 3]."
        )
    return shape[0] * shape[1]
