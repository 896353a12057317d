"""The data sets that a config names: their registration, their content and their class names."""

import difflib
import functools
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from clq.config import check_keys
from clq.data.formats.coco import Content, check_content, check_images, read_coco_json, to_records
from clq.data.formats.findings import Findings
from clq.data.summaries import Summary, recall_summary, remember_summary, summarize
from clq.errors import UserError
from clq.utils.memory import garbage_collection_paused

_KEYS = ("name", "json", "images")


class DatasetFiles(NamedTuple):
    """The annotation file and the image folder of a COCO-format data set."""

    json: str
    images: str


class Declared(NamedTuple):
    """A data set of ``DATASETS.COCO_JSON``.

    Attributes:
        files: its files, with absolute paths.
        skip: whether what is faulty in it is left out rather than refused.
        masks: ``INPUT.MASK_FORMAT`` if its segmentations are used, else None.
    """

    files: DatasetFiles
    skip: bool
    masks: str | None


_registered: dict[str, Declared] = {}


def register_coco_json(
    entries: Sequence[Mapping[str, str]], *, skip: bool = False, masks: Mapping[str, str] | None = None
) -> list[dict[str, str]]:
    """Registers COCO-format data sets in Detectron2's catalogs.

    No file is read, so a data set may be created later. Whatever uses the data set reads the json again, so there is no
    converted copy that could become outdated. Registering a data set again has no effect unless something has changed.

    Args:
        entries: data sets, each as ``{"name": ..., "json": ..., "images": ...}``. Paths may contain ``~`` and
            ``$VARS`` and are relative to the working directory.
        skip: whether faulty images and annotations are left out rather than refused.
        masks: ``INPUT.MASK_FORMAT`` by the name of each data set whose segmentations are used.

    Returns:
        The entries with absolute paths.

    Raises:
        UserError: an entry has other keys or an empty value, two data sets have the same name, or a name is already
            used by a data set that does not come from ``DATASETS.COCO_JSON``.
    """
    wanted: dict[str, DatasetFiles] = {}
    for entry in entries:
        _check_entry(entry)
        name, files = entry["name"], DatasetFiles(json=_absolute(entry["json"]), images=_absolute(entry["images"]))
        if name in DatasetCatalog and name not in _registered:
            raise UserError(
                f"DATASETS.COCO_JSON: {name} is a data set that Detectron2 already has; choose another name."
            )
        if wanted.setdefault(name, files) != files:
            raise UserError(f"DATASETS.COCO_JSON: {name} is given twice, with different paths; use two names.")
    for name, files in wanted.items():
        declared = Declared(files, skip, (masks or {}).get(name))
        if _registered.get(name) == declared and name in DatasetCatalog:
            continue  # registering it again would discard the metadata that loading the data set has added
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        DatasetCatalog.register(name, functools.partial(_load_records, name))
        MetadataCatalog.get(name).set(json_file=files.json, image_root=files.images, evaluator_type="coco")
        _registered[name] = declared
    return [{"name": name, "json": files.json, "images": files.images} for name, files in wanted.items()]


def register_declared(cfg: CfgNode) -> None:
    """Registers the data sets of ``DATASETS.COCO_JSON`` and makes their paths absolute, in the config too.

    A config that a training saves thus works in any folder.

    Raises:
        UserError: see :func:`register_coco_json`.
    """
    check_keys(cfg, "DATASETS.COCO_JSON", "DATASETS.ON_ERROR")
    masks = dict.fromkeys(cfg.DATASETS.TRAIN, cfg.INPUT.MASK_FORMAT) if cfg.MODEL.MASK_ON else {}  # tests need boxes
    cfg.DATASETS.COCO_JSON = register_coco_json(
        cfg.DATASETS.COCO_JSON, skip=cfg.DATASETS.ON_ERROR == "skip", masks=masks
    )


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expandvars(os.path.expanduser(path)))


def _check_entry(entry: Mapping[str, str]) -> None:
    if not isinstance(entry, Mapping) or set(entry) != set(_KEYS):
        got = ", ".join(map(str, entry)) if isinstance(entry, Mapping) else repr(entry)
        raise UserError(f"DATASETS.COCO_JSON: each entry must have exactly the keys name, json and images; got {got}.")
    for key in _KEYS:
        if not isinstance(entry[key], str) or not entry[key]:
            raise UserError(f"DATASETS.COCO_JSON: {key} must be a non-empty string; got {entry[key]!r}.")


def is_declared(dataset_name: str) -> bool:
    """Returns whether a data set comes from ``DATASETS.COCO_JSON`` rather than from Detectron2 or from code."""
    return dataset_name in _registered


def leaves_out_faults(dataset_name: str) -> bool:
    """Whether what is faulty in a data set of ``DATASETS.COCO_JSON`` is left out rather than refused."""
    return _registered[dataset_name].skip


def require_files(dataset_name: str) -> DatasetFiles:
    """Returns the json and the image folder of a COCO-format data set.

    Raises:
        UserError: the data set is unknown or has no COCO json, or its json or its image folder does not exist.
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
    return DatasetFiles(path, images)


def load_content(dataset_name: str, findings: Findings | None = None) -> Content:
    """Reads the usable content of a data set of ``DATASETS.COCO_JSON``.

    Args:
        dataset_name: name of the data set.
        findings: receives what is found. Without it, faults are raised unless ``DATASETS.ON_ERROR`` is ``skip``.

    Raises:
        UserError: as in :func:`require_files`, or the json cannot be used.
    """
    path, declared = require_files(dataset_name).json, _registered[dataset_name]
    ours = Findings(dataset_name, declared.skip) if findings is None else findings
    with garbage_collection_paused():  # it would look at millions of new values again and again, and find nothing
        content = check_content(read_coco_json(path, dataset_name), ours, masks=declared.masks)
    if findings is None:
        ours.raise_faults()
    return content


def summary_of(dataset_name: str, findings: Findings) -> Summary:
    """Summarizes the usable content of a data set with a json. It is remembered until the json changes.

    Of a data set that is not from ``DATASETS.COCO_JSON``, the annotations are not looked at and count as none.

    Args:
        dataset_name: name of the data set.
        findings: receives what is found.

    Raises:
        UserError: as in :func:`load_content`.
    """
    path, options = os.path.abspath(require_files(dataset_name).json), _options(dataset_name)
    summary = recall_summary(path, options, findings)
    if summary is None:
        if is_declared(dataset_name):
            content = load_content(dataset_name, findings)
        else:
            content = Content([], check_images(read_coco_json(path, dataset_name), findings), None)
        summary = summarize(content)
        remember_summary(path, options, findings, summary)
    return summary


def _options(dataset_name: str) -> str:
    """What the summary of a data set depends on besides its json."""
    declared = _registered.get(dataset_name)
    return "images" if declared is None else f"skip {declared.skip}, masks {declared.masks}"


def _load_records(dataset_name: str) -> list[dict]:
    """Detectron2's records of a data set of ``DATASETS.COCO_JSON``."""
    content = load_content(dataset_name)
    complete_metadata(dataset_name, content)
    return to_records(content, _registered[dataset_name].files.images)


def complete_metadata(dataset_name: str, content: Content) -> None:
    """Adds the classes of a data set to its metadata, as Detectron2 does when it loads COCO json."""
    MetadataCatalog.get(dataset_name).set(
        thing_classes=content.class_names,
        thing_dataset_id_to_contiguous_id={c["id"]: i for i, c in enumerate(content.categories)},
    )


def require_known(dataset_name: str) -> None:
    """Checks that Detectron2's catalog has a data set.

    Raises:
        UserError: it does not; the message suggests data sets with similar names.
    """
    if dataset_name in DatasetCatalog:
        return
    near = difflib.get_close_matches(dataset_name, DatasetCatalog.list(), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UserError(
        f"there is no data set {dataset_name}; {hint}Declare your own with DATASETS.COCO_JSON [{{name, json, images}}]."
    )


def class_names(dataset_name: str) -> list[str]:
    """Returns the names of a data set's classes, in the order of the model's outputs (by category id).

    They come from the metadata if it has them, as it does for Detectron2's own data sets, of which no file is read;
    otherwise they come from the data set itself.

    Raises:
        UserError: the data set is unknown or does not define its classes, or as in :func:`read_coco_json`.
    """
    require_known(dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    if metadata.get("thing_classes") is None and metadata.get("json_file") is not None:
        path = require_files(dataset_name).json
        return list(_read_names(dataset_name, path, os.stat(path).st_mtime_ns))
    if metadata.get("thing_classes") is None:
        DatasetCatalog.get(dataset_name)  # a data set that was registered in code may set them when it is loaded
    if metadata.get("thing_classes") is None:
        raise UserError(f"data set {dataset_name}: set thing_classes in its MetadataCatalog entry.")
    return list(metadata.thing_classes)


@functools.lru_cache(maxsize=64)  # a run needs them several times, and a file of COCO's size takes seconds to parse
def _read_names(dataset_name: str, path: str, modified: int) -> tuple[str, ...]:
    """Reads the class names; ``path`` and the time of modification (ns) identify the contents in the cache."""
    if is_declared(dataset_name) and (known := recall_summary(path, _options(dataset_name), Findings(dataset_name))):
        return tuple(known.classes)
    return tuple(c["name"] for c in read_categories(path, dataset_name))


def read_categories(path: str, dataset_name: str) -> list[dict]:
    """Reads the categories of a COCO json by id, the order that Detectron2 gives the outputs of a model."""
    return sorted(read_coco_json(path, dataset_name)["categories"], key=lambda c: c["id"])
