"""Data sets named in the config: registration, class names, and the number of classes a model needs."""

import difflib
import functools
import json
import os
from collections.abc import Mapping, Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from clq.errors import UserError

_KEYS = ("name", "json", "images")
# The group under MODEL with the NUM_CLASSES of a meta-architecture; CLQ's is also that of any not named here.
_GROUPS = {"FCOS": "RETINANET", "RetinaNet": "RETINANET", "GeneralizedRCNN": "ROI_HEADS"}
_registered: dict[str, tuple[str, str]] = {}  # ours: name -> (json, images), absolute


def register_coco_json(entries: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Registers COCO-format data sets in Detectron2's catalogs; reads no file, so a data set may be made later.

    The evaluator reads the json itself (``MetadataCatalog.get(name).json_file``): there is no converted copy to go
    stale. Registering the same again changes nothing; other paths under one of our names replace it.

    Args:
        entries: ``{"name": ..., "json": ..., "images": ...}`` each. Paths may hold ``~`` and ``$VARS`` and are relative
            to the working directory.

    Returns:
        The entries with absolute paths.

    Raises:
        UserError: other keys than these, an empty value, one name for two data sets, or a name that is not ours.
    """
    wanted: dict[str, tuple[str, str]] = {}
    for entry in entries:
        name, *paths = _parse_entry(entry)
        if name in DatasetCatalog and name not in _registered:
            raise UserError(
                f"DATASETS.COCO_JSON: {name} is a data set that Detectron2 has already; choose another name."
            )
        json_file, images = (os.path.abspath(os.path.expandvars(os.path.expanduser(path))) for path in paths)
        if wanted.setdefault(name, (json_file, images)) != (json_file, images):
            raise UserError(f"DATASETS.COCO_JSON: {name} is given twice, with different paths; use two names.")
    for name, paths in wanted.items():
        if _registered.get(name) == paths and name in DatasetCatalog:
            continue  # keeps metadata that was loaded meanwhile
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        register_coco_instances(name, {}, *paths)
        _registered[name] = paths
    return [{"name": name, "json": json_file, "images": images} for name, (json_file, images) in wanted.items()]


def _parse_entry(entry: Mapping[str, str]) -> list[str]:
    if not isinstance(entry, Mapping) or set(entry) != set(_KEYS):
        got = ", ".join(map(str, entry)) if isinstance(entry, Mapping) else repr(entry)
        raise UserError(f"DATASETS.COCO_JSON: each entry has the keys name, json and images; got {got}.")
    for key in _KEYS:
        if not isinstance(entry[key], str) or not entry[key]:
            raise UserError(f"DATASETS.COCO_JSON: {key} must be a non-empty string; got {entry[key]!r}.")
    return [entry[key] for key in _KEYS]


def is_declared(dataset_name: str) -> bool:
    """Whether a data set comes from ``DATASETS.COCO_JSON`` (else: from Detectron2, or from code)."""
    return dataset_name in _registered


def require_files(dataset_name: str) -> tuple[str, str]:
    """The json and the image folder of a COCO-format data set.

    Raises:
        UserError: unknown data set, no COCO json behind it, missing json, missing image folder.
    """
    require_known(dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    path, images = metadata.get("json_file"), metadata.get("image_root")
    if not path or not images:
        raise UserError(f"data set {dataset_name}: it has no COCO json; register it through DATASETS.COCO_JSON.")
    fix = "DATASETS.COCO_JSON" if is_declared(dataset_name) else "the environment variable DETECTRON2_DATASETS"
    if not os.path.isfile(path):
        raise UserError(f"data set {dataset_name}: its json {path} does not exist; put it there or correct {fix}.")
    if not os.path.isdir(images):
        raise UserError(
            f"data set {dataset_name}: its image folder {images} does not exist; put it there or correct {fix}."
        )
    return path, images


def read_coco_json(dataset_name: str) -> dict:
    """The parsed json of a registered COCO-format data set.

    Raises:
        UserError: see :func:`require_files`; invalid json, or one without categories.
    """
    path, _ = require_files(dataset_name)
    try:
        with open(path, encoding="utf-8") as f:
            data = json.load(f)
    except ValueError as e:  # JSONDecodeError or UnicodeDecodeError
        raise UserError(f"data set {dataset_name}: {path} is not valid json ({e}); write it again.") from e
    if not isinstance(data, dict) or not _named(data.get("categories")):
        raise UserError(
            f"data set {dataset_name}: {path} has no categories; COCO json needs a non-empty list of "
            '{"id": ..., "name": ...} under "categories".'
        )
    return data


def _named(categories: object) -> bool:
    return (
        isinstance(categories, list)
        and len(categories) > 0
        and all(isinstance(c, dict) and "id" in c and "name" in c for c in categories)
    )


def require_known(dataset_name: str) -> None:
    """Raises a UserError with the nearest names unless Detectron2's catalog has the data set."""
    if dataset_name in DatasetCatalog:
        return
    near = difflib.get_close_matches(dataset_name, DatasetCatalog.list(), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UserError(
        f"there is no data set {dataset_name}; {hint}Declare your own with DATASETS.COCO_JSON [{{name, json, images}}]."
    )


def class_names(dataset_name: str) -> list[str]:
    """Names of a data set's classes, in the order of the model's outputs (by category id).

    From the metadata when it has them (Detectron2's own data sets: no file is read), else from the data set itself.

    Raises:
        UserError: see :func:`read_coco_json`.
    """
    require_known(dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    if metadata.get("thing_classes") is None and metadata.get("json_file") is not None:
        path, _ = require_files(dataset_name)
        return list(_read_names(dataset_name, path, os.stat(path).st_mtime_ns))
    if metadata.get("thing_classes") is None:
        DatasetCatalog.get(dataset_name)  # registered by code, which may set them as it loads
    if metadata.get("thing_classes") is None:
        raise UserError(f"data set {dataset_name}: set thing_classes in its MetadataCatalog entry.")
    return list(metadata.thing_classes)


@functools.lru_cache(maxsize=64)  # asked for several times in a run; a file of COCO's size takes seconds
def _read_names(dataset_name: str, path: str, modified: int) -> tuple[str, ...]:
    """Names by category id; ``path`` and ``modified`` (ns) say which content of the data set's json is meant."""
    return tuple(names_by_id(read_coco_json(dataset_name)))


def names_by_id(data: dict) -> list[str]:
    """Class names of parsed COCO json, in the order of category ids, which Detectron2 makes the order of outputs."""
    return [c["name"] for c in sorted(data["categories"], key=lambda c: c["id"])]


def fill_num_classes(cfg: CfgNode) -> None:
    """Puts :func:`resolve_num_classes` where Detectron2's own models read it; for a config before it is frozen."""
    cfg.MODEL[_num_classes_group(cfg)].NUM_CLASSES = resolve_num_classes(cfg)


def _num_classes_group(cfg: CfgNode) -> str:
    return _GROUPS.get(cfg.MODEL.META_ARCHITECTURE, "CLQ")


def resolve_num_classes(cfg: CfgNode) -> int:
    """K: the model's ``NUM_CLASSES``, or with -1 the number of classes of the first training set.

    The key is in ``MODEL.CLQ``, for Detectron2's own models in ``MODEL.RETINANET`` (FCOS too) or ``MODEL.ROI_HEADS``.

    Raises:
        UserError: -1 without a training set that can be read; a number that disagrees with the training set's.
    """
    group, train = _num_classes_group(cfg), cfg.DATASETS.TRAIN
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
        return wanted  # a trained model can be used where its training set is not
    if wanted not in (-1, found):
        raise UserError(f"{key} is {wanted} but data set {train[0]} has {found} classes; set it to -1 or {found}.")
    return found
