"""The data sets that a config names: their registration, their content and their class names."""

import difflib
import functools
import os
from collections.abc import Mapping, Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from clq.config import check_keys
from clq.data.declared import Declared, parse_coco_json, parse_sets
from clq.data.formats.coco import Content, check_content, check_images, read_coco_json, to_records
from clq.data.formats.findings import Findings
from clq.data.formats.readers import fingerprint, read_source
from clq.data.formats.source import Source
from clq.data.summaries import Summary, recall_summary, remember_summary, summarize
from clq.errors import UserError
from clq.utils.memory import garbage_collection_paused

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
    sources, absolute = parse_coco_json(entries)
    _register(sources, skip, masks or {}, ())
    return absolute


def register_declared(cfg: CfgNode) -> None:
    """Registers the data sets of ``DATASETS.COCO_JSON`` and ``DATASETS.SETS``.

    Their paths become absolute, in the config too. A config that a training saves thus works in any folder.

    Raises:
        UserError: see :func:`register_coco_json` and :func:`~clq.data.declared.parse_sets`.
    """
    check_keys(cfg, "DATASETS.COCO_JSON", "DATASETS.SETS", "DATASETS.CLASSES", "DATASETS.ON_ERROR")
    check_keys(cfg, "INPUT.MAX_MEGAPIXELS")
    masks = dict.fromkeys(cfg.DATASETS.TRAIN, cfg.INPUT.MASK_FORMAT) if cfg.MODEL.MASK_ON else {}  # tests need boxes
    coco, coco_entries = parse_coco_json(cfg.DATASETS.COCO_JSON)
    sets, set_entries = parse_sets(cfg.DATASETS.SETS, cfg.INPUT.MAX_MEGAPIXELS)
    _register([*coco, *sets], cfg.DATASETS.ON_ERROR == "skip", masks, tuple(cfg.DATASETS.CLASSES))
    cfg.DATASETS.COCO_JSON, cfg.DATASETS.SETS = coco_entries, set_entries


def _register(
    sources: Sequence[tuple[str, Source]], skip: bool, masks: Mapping[str, str], classes: tuple[str, ...]
) -> None:
    wanted: dict[str, Source] = {}
    for name, source in sources:
        if name in DatasetCatalog and name not in _registered:
            raise UserError(f"{source.key}: {name} is a data set that Detectron2 already has; choose another name.")
        if wanted.setdefault(name, source) != source:
            raise UserError(f"{source.key}: {name} is given twice, with different paths; use two names.")
    for name, source in wanted.items():
        declared = Declared(source, skip, masks.get(name), classes)
        if _registered.get(name) == declared and name in DatasetCatalog:
            continue  # registering it again would discard the metadata that loading the data set has added
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        DatasetCatalog.register(name, functools.partial(_load_records, name))
        metadata = MetadataCatalog.get(name).set(image_root=source.root, evaluator_type="coco")
        if source.format == "coco" and source.part is None and not classes:
            metadata.json_file = source.path  # Detectron2's own evaluator makes a json of what has none
        _registered[name] = declared


def is_declared(dataset_name: str) -> bool:
    """Returns whether a data set comes from ``DATASETS.COCO_JSON`` or ``SETS``, not from Detectron2 or from code."""
    return dataset_name in _registered


def leaves_out_faults(dataset_name: str) -> bool:
    """Whether what is faulty in a declared data set is left out rather than refused."""
    return _registered[dataset_name].skip


def is_a_json(dataset_name: str) -> bool:
    """Whether the content of a data set is that of a json in COCO format as it is."""
    return MetadataCatalog.get(dataset_name).get("json_file") is not None


def require_files(dataset_name: str) -> None:
    """Checks that the files of a data set exist.

    Raises:
        UserError: the data set is unknown, it is neither declared nor has a COCO json, or its files do not exist.
    """
    require_known(dataset_name)
    _source_of(dataset_name).check_path(dataset_name)


def _source_of(dataset_name: str) -> Source:
    if is_declared(dataset_name):
        return _registered[dataset_name].source
    metadata = MetadataCatalog.get(dataset_name)
    path, images = metadata.get("json_file"), metadata.get("image_root")
    if not path or not images:
        raise UserError(f"data set {dataset_name}: it has no COCO json; register it through DATASETS.COCO_JSON.")
    return Source("coco", os.path.abspath(path), images, key="the environment variable DETECTRON2_DATASETS")


def load_content(dataset_name: str, findings: Findings | None = None) -> Content:
    """Reads the usable content of a declared data set.

    Args:
        dataset_name: name of the data set.
        findings: receives what is found. Without it, faults are raised unless ``DATASETS.ON_ERROR`` is ``skip``.

    Raises:
        UserError: as in :func:`require_files`, or the files cannot be used.
    """
    require_known(dataset_name)
    declared = _registered[dataset_name]
    ours = Findings(dataset_name, declared.skip) if findings is None else findings
    ours.file_kind = declared.source.file_kind
    with garbage_collection_paused():  # it would look at millions of new values again and again, and find nothing
        data = read_source(declared.source, ours, declared.classes)
        if not data.get("images"):
            ours.raise_faults()  # they say why
        content = check_content(data, ours, masks=declared.masks)
    if findings is None:
        ours.raise_faults()
    return content


def summary_of(dataset_name: str, findings: Findings) -> Summary:
    """Summarizes the usable content of a data set with files. It is remembered until the files change.

    Of a data set that is not declared, the annotations are not looked at and count as none.

    Args:
        dataset_name: name of the data set.
        findings: receives what is found.

    Raises:
        UserError: as in :func:`load_content`.
    """
    source, stamp = _source_of(dataset_name), _stamp(dataset_name)
    findings.file_kind = source.file_kind
    summary = recall_summary(source.subject, stamp, findings)
    if summary is None:
        if is_declared(dataset_name):
            content = load_content(dataset_name, findings)
        else:
            content = Content([], check_images(read_coco_json(source.path, dataset_name), findings), None)
        summary = summarize(content)
        remember_summary(source.subject, stamp, findings, summary)
    return summary


def _stamp(dataset_name: str) -> list[int | str]:
    """What the summary of a data set depends on: its files and what is asked of them."""
    declared = _registered.get(dataset_name)
    return [*fingerprint(_source_of(dataset_name), dataset_name), "images" if declared is None else declared.options]


def _load_records(dataset_name: str) -> list[dict]:
    """Detectron2's records of a declared data set."""
    content = load_content(dataset_name)
    complete_metadata(dataset_name, content)
    return to_records(content, _registered[dataset_name].source.root)


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
        f"there is no data set {dataset_name}; {hint}Declare your own in DATASETS.SETS or DATASETS.COCO_JSON."
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
    if metadata.get("thing_classes") is None and (is_declared(dataset_name) or metadata.get("json_file") is not None):
        return list(_read_names(dataset_name, tuple(_stamp(dataset_name))))
    if metadata.get("thing_classes") is None:
        DatasetCatalog.get(dataset_name)  # a data set that was registered in code may set them when it is loaded
    if metadata.get("thing_classes") is None:
        raise UserError(f"data set {dataset_name}: set thing_classes in its MetadataCatalog entry.")
    return list(metadata.thing_classes)


@functools.lru_cache(maxsize=64)  # a run needs them several times, and a file of COCO's size takes seconds to parse
def _read_names(dataset_name: str, stamp: tuple[int | str, ...]) -> tuple[str, ...]:
    """Reads the class names; ``stamp`` identifies the content in the cache."""
    subject = _source_of(dataset_name).subject
    if is_declared(dataset_name) and (known := recall_summary(subject, list(stamp), Findings(dataset_name))):
        return tuple(known.classes)
    return tuple(c["name"] for c in read_categories(dataset_name))


def read_categories(dataset_name: str) -> list[dict]:
    """Reads the categories of a data set by id, the order that Detectron2 gives the outputs of a model."""
    classes = _registered[dataset_name].classes if is_declared(dataset_name) else ()
    data = read_source(_source_of(dataset_name), Findings(dataset_name, skip=True), classes)
    return sorted(data["categories"], key=lambda c: c["id"])
