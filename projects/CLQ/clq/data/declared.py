"""The entries of ``DATASETS.COCO_JSON`` and ``DATASETS.SETS``."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from clq.data.formats.findings import shown
from clq.data.formats.source import FORMATS, Part, Source
from clq.data.formats.values import is_number
from clq.errors import UserError

COCO_JSON, SETS = "DATASETS.COCO_JSON", "DATASETS.SETS"
PARTS = "train", "val", "test"
_KEYS = ("name", "json", "images")
_FORM = "{name: NAME, coco|voc|yolo: PATH}, and if needed images, split and names"


class Declared(NamedTuple):
    """A data set of ``DATASETS.COCO_JSON`` or ``DATASETS.SETS``.

    Attributes:
        source: its files, with absolute paths.
        skip: whether what is faulty in it is left out rather than refused.
        masks: ``INPUT.MASK_FORMAT`` if its segmentations are used, else None.
        classes: ``DATASETS.CLASSES``.
    """

    source: Source
    skip: bool
    masks: str | None
    classes: tuple[str, ...]

    @property
    def options(self) -> str:
        """What its summary depends on besides its files."""
        return f"skip {self.skip}, masks {self.masks}, classes {json.dumps(self.classes)}"


def parse_coco_json(entries: Sequence[Mapping[str, str]]) -> tuple[list[tuple[str, Source]], list[dict]]:
    """Parses ``DATASETS.COCO_JSON``.

    Returns:
        The data sets by name, and the entries with absolute paths.

    Raises:
        UserError: an entry has other keys or an empty value.
    """
    sources = []
    for entry in entries:
        if not isinstance(entry, Mapping) or set(entry) != set(_KEYS):
            got = ", ".join(map(str, entry)) if isinstance(entry, Mapping) else repr(entry)
            raise UserError(f"{COCO_JSON}: each entry must have exactly the keys name, json and images; got {got}.")
        for key in _KEYS:
            _check_text(COCO_JSON, entry, key)
        source = Source("coco", _absolute(entry["json"]), _absolute(entry["images"]), key=COCO_JSON)
        sources.append((entry["name"], source))
    absolute = {name: {"name": name, "json": s.path, "images": s.root} for name, s in sources}
    return sources, list(absolute.values())


def parse_sets(
    entries: Sequence[Mapping[str, Any]], max_megapixels: float
) -> tuple[list[tuple[str, Source]], list[dict]]:
    """Parses ``DATASETS.SETS``. An entry with shares is a data set for each of them, NAME_train and so on.

    Args:
        entries: the entries.
        max_megapixels: limit on images whose size has to be read.

    Returns:
        The data sets by name, and the entries with absolute paths.

    Raises:
        UserError: an entry has keys or values that it cannot have.
    """
    sources: list[tuple[str, Source]] = []
    absolute = []
    for entry in entries:
        form = _check_keys(entry)
        entry = {**entry, form: _absolute(entry[form])}
        if "images" in entry:
            entry["images"] = _absolute(entry["images"])
        absolute.append(entry)
        name, split, names = entry["name"], entry.get("split"), tuple(_check_names(entry))
        whole = Source(form, entry[form], entry.get("images"), names=names, max_megapixels=max_megapixels)
        if isinstance(split, Mapping):
            shares, seed = _check_shares(name, split)
            sources += ((f"{name}_{part}", replace(whole, part=Part(part, shares, seed))) for part, _ in shares)
        else:
            sources.append((name, replace(whole, split=split)))
    return sources, absolute


def _check_keys(entry: object) -> str:
    """Checks the keys of an entry and the values that are text; returns its format."""
    if not isinstance(entry, Mapping):
        raise UserError(f"{SETS}: each entry must be {_FORM}; got {shown(entry)}.")
    forms = [form for form in FORMATS if form in entry]
    odd = [str(key) for key in entry if key not in ("name", "images", "split", "names", *FORMATS)]
    if odd or len(forms) != 1 or "name" not in entry:
        raise UserError(f"{SETS}: each entry must be {_FORM}; got {', '.join(map(str, entry)) or 'nothing'}.")
    form = forms[0]
    for key in {"name", form, "images"} & set(entry):
        _check_text(SETS, entry, key)
    if "split" in entry and not isinstance(split := entry["split"], Mapping):
        _check_text(SETS, entry, "split")
        if form == "coco":
            raise UserError(
                f"{SETS}: {entry['name']} has split {split}, but a COCO json has no splits; give each split its own "
                "json, or use split: {train: 0.8, val: 0.2}."
            )
        if os.path.basename(split) != split or split.startswith("."):
            raise UserError(f"{SETS}: {entry['name']} has split {split}; it must be a name such as train.")
    if "names" in entry and form != "yolo":
        raise UserError(
            f"{SETS}: {entry['name']} has names, which only yolo takes; {form} has the names of its classes."
        )
    return form


def _check_text(key: str, entry: Mapping, name: str) -> None:
    if not isinstance(entry[name], str) or not entry[name] or "\0" in entry[name]:
        raise UserError(f"{key}: {name} must be a non-empty string; got {entry[name]!r}.")


def _check_names(entry: Mapping) -> list[str]:
    names = entry.get("names", ["x"])
    if not isinstance(names, (list, tuple)) or not names or not all(isinstance(n, str) and n for n in names):
        raise UserError(f"{SETS}: {entry['name']} has names {shown(names)}; write the names of its classes, [a, b].")
    return list(names) if "names" in entry else []


def _check_shares(name: str, split: Mapping) -> tuple[tuple[tuple[str, float], ...], int]:
    """Returns the shares in the order of :data:`PARTS`, and the seed."""
    given = {key: value for key, value in split.items() if key != "seed"}
    seed = split.get("seed", 0)
    shares = tuple((part, given[part]) for part in PARTS if part in given)
    good = bool(shares) and len(shares) == len(given) and all(is_number(v) and 0 < v <= 1 for v in given.values())
    if not good or sum(given.values()) > 1 + 1e-9:
        raise UserError(
            f"{SETS}: {name} has split {shown(dict(split))}; write a name, or shares such as {{train: 0.8, val: 0.2}} "
            "of train, val and test that add up to at most 1, with a seed if you like."
        )
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise UserError(f"{SETS}: {name} has seed {shown(seed)} in its split; it must be an integer.")
    return shares, seed


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expandvars(os.path.expanduser(path)))
