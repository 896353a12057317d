"""Finds faults in data sets before training starts, rather than hours into it."""

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from clq.data.datasets import class_names, is_declared, require_known, summary_of
from clq.data.formats.findings import Findings, LeftOut
from clq.data.headers import Header, read_headers
from clq.data.leakage import find_leaks
from clq.data.left_out import ImageKey, leave_out
from clq.data.num_classes import resolve_num_classes
from clq.data.similar_names import why_missing
from clq.errors import UserError


@dataclass
class DataSet:
    """What a data set contains. Whether that is enough depends on whether it is used for training or evaluation.

    Attributes:
        findings: what has been found in it.
        classes: names of the classes, in the order of the model's outputs.
        num_images: number of images that can be used. None means that the json was not read; the attributes below are
            then empty.
        has_annotations: whether the json has annotations, if only an empty list of them.
        boxes_per_image: number of boxes that are to be found, by image id: those that are not crowds.
        trainable: number of boxes to train on: those of ``boxes_per_image`` with an area in their image.
        files: size in bytes of each image file that can be used, by path.
        unusable: path and id of the images whose files cannot be used.
    """

    findings: Findings
    classes: list[str]
    num_images: int | None = None
    has_annotations: bool = True
    boxes_per_image: Counter = field(default_factory=Counter)
    trainable: int = 0
    files: dict[str, int] = field(default_factory=dict)
    unusable: set[ImageKey] = field(default_factory=set)


def check_datasets(cfg: CfgNode, splits: Sequence[str] = ("TRAIN", "TEST")) -> list[LeftOut]:
    """Checks each data set that a config names, once and as a whole.

    Of every image, the file must exist, its header must be readable, and its size must be the one that the json gives.
    Of every annotation, each field that is used later must have a type and a value that can be used. A data set needs
    unique ids. Its classes must be those of the first data set, in the same order; without training sets, their number
    must be that of the detector. A training set needs at least one box.

    With ``DATASETS.ON_ERROR error`` the first fault is raised, with the number of those like it. With ``skip``, faulty
    images and annotations are left out. The following are logged as warnings, each with its number and an example:

    * what is left out;
    * values that are read as something else, such as an ``iscrowd`` of null;
    * boxes that are not used as they are: without an area, or beyond their image;
    * images with more objects than ``TEST.DETECTIONS_PER_IMAGE``;
    * test sets without anything to find, and test images that are training images, too.

    Of Detectron2's own data sets only the images are checked, and of those that were registered in code without a json
    only the classes. Of several processes, one of each machine reads the files first; the others find the headers where
    it remembers them (:func:`~clq.data.headers.read_headers`).

    Args:
        cfg: config with ``DATASETS`` and ``INPUT.MAX_MEGAPIXELS``.
        splits: names of the splits to check, "TRAIN" or "TEST".

    Returns:
        What is left out.

    Raises:
        UserError: a fault that would stop or spoil training or evaluation.
    """
    with _one_process_first():
        summaries = _check_all(cfg, splits)
    left_out: list[LeftOut] = []
    for name, summary in summaries.items():
        root = MetadataCatalog.get(name).get("image_root", "")
        left_out += (e._replace(image=e.image and os.path.join(root, e.image)) for e in summary.findings.left_out)
        leave_out(name, summary.unusable)
        if comm.is_main_process():
            summary.findings.log()
    return left_out


@contextlib.contextmanager
def _one_process_first() -> Iterator[None]:
    first = comm.get_local_rank() == 0
    if not first:
        comm.synchronize()
    yield
    if first:
        comm.synchronize()


def _check_all(cfg: CfgNode, splits: Sequence[str]) -> dict[str, DataSet]:
    """Checks each data set and its use; returns what it contains."""
    summaries: dict[str, DataSet] = {}
    for split in splits:
        needed = split == "TRAIN" or "TRAIN" not in splits  # training works without a test set
        if needed and not cfg.DATASETS[split]:
            raise UserError(f"DATASETS.{split} is empty; name a data set, for example one from DATASETS.SETS.")
        for name in cfg.DATASETS[split]:
            if name not in summaries:
                summaries[name] = _check_one(name, cfg)
            _check_classes(summaries, next(iter(summaries)), name)
            if summaries[name].num_images is not None:
                _check_use(name, split, summaries[name], cfg.TEST.DETECTIONS_PER_IMAGE)
    if "TRAIN" not in splits:
        _check_number(summaries, resolve_num_classes(cfg))
    elif "TEST" in splits:
        _check_leakage([summaries[n] for n in cfg.DATASETS.TRAIN], [summaries[n] for n in cfg.DATASETS.TEST])
    return summaries


def _check_one(name: str, cfg: CfgNode) -> DataSet:
    """Runs the checks that do not depend on how the data set is used."""
    require_known(name)
    findings = Findings(name, skip=cfg.DATASETS.ON_ERROR == "skip")
    metadata = MetadataCatalog.get(name)
    if not is_declared(name) and metadata.get("json_file") is None:
        return DataSet(findings, class_names(name))
    content = summary_of(name, findings)
    findings.raise_faults()  # before the files, which take longer
    columns = zip(content.ids, content.file_names, content.widths, content.heights, strict=True)
    images = [{"id": i, "file_name": file, "width": w, "height": h} for i, file, w, h in columns]
    files, unusable = _check_files(images, findings, cfg)
    findings.raise_faults()
    if not is_declared(name):  # its annotations are read by code of others
        return DataSet(findings, class_names(name), files=files, unusable=unusable)
    gone = {image_id for _, image_id in unusable}
    counts = zip(content.ids, content.found, content.trainable, strict=True)
    usable = [(image_id, found, trainable) for image_id, found, trainable in counts if image_id not in gone]
    return DataSet(
        findings,
        content.classes,
        num_images=len(usable),
        has_annotations=content.has_annotations,
        boxes_per_image=Counter({image_id: found for image_id, found, _ in usable if found}),
        trainable=sum(trainable for _, _, trainable in usable),
        files=files,
        unusable=unusable,
    )


def _check_files(images: Sequence[dict], findings: Findings, cfg: CfgNode) -> tuple[dict[str, int], set[ImageKey]]:
    """Checks the files of images.

    Returns:
        The size in bytes of each file that can be used, by path, and the path and id of each image that cannot be used.
    """
    root, good, unusable = MetadataCatalog.get(findings.name).image_root, dict[str, int](), set[ImageKey]()
    paths = [os.path.join(root, image["file_name"]) for image in images]
    headers = read_headers(root, paths, cfg.INPUT.MAX_MEGAPIXELS)
    for image, path, header in zip(images, paths, headers, strict=True):
        if isinstance(header, Header):
            if (header.width, header.height) == (image["width"], image["height"]):
                if path in good:
                    findings.note("files are listed more than once, as images of their own", f"image {path}")
                good[path] = header.num_bytes
                continue
            kind = f"files have another size than their {findings.file_kind} says"
            sizes = f"{header.width} x {header.height} pixels (width x height)", f"{image['width']} x {image['height']}"
            what = f"is {sizes[0]}, but has width and height {sizes[1]} in its {findings.file_kind}"
            if (header.height, header.width) == (image["width"], image["height"]):
                what += (
                    ", as if its EXIF orientation had been ignored; its boxes must be those of the upright image, too"
                )
        else:
            missing = not os.path.lexists(path) if "\0" not in path else True
            kind = "files do not exist" if missing else "files cannot be used"
            what = why_missing(root, image["file_name"]) if missing else header
        findings.fault(kind, f"image {path} {what}", image=image["file_name"])
        unusable.add((path, image["id"]))
    return good, unusable


def _check_classes(summaries: dict[str, DataSet], first: str, name: str) -> None:
    ours, theirs = summaries[name].classes, summaries[first].classes
    if ours == theirs:
        return
    only = sorted(map(str, set(ours) ^ set(theirs)))
    verb = "is" if len(only) == 1 else "are"
    why = f"{', '.join(only[:5])} {verb} in only one of them" if only else "their order differs"
    raise UserError(
        f"data sets {first} ({len(theirs)} classes) and {name} ({len(ours)}) must have the same categories in the "
        f"same order of id: {why}. DATASETS.CLASSES chooses classes and their order."
    )


def _check_number(summaries: dict[str, DataSet], num_classes: int) -> None:
    for name, summary in summaries.items():
        if len(summary.classes) != num_classes:
            raise UserError(
                f"data set {name} has {len(summary.classes)} classes, but the detector has {num_classes}, according to "
                "its NUM_CLASSES or DATASETS.TRAIN; evaluate it on data with the same classes."
            )


def _check_use(name: str, split: str, summary: DataSet, detections_per_image: int) -> None:
    """Checks whether a data set is enough to train on or to evaluate on."""
    if not summary.num_images:
        raise UserError(f"data set {name}: none of its images can be used; correct them.{summary.findings.because()}")
    if split == "TRAIN":
        if not summary.has_annotations:
            raise UserError(f'data set {name}: its json has no list under "annotations", which training needs.')
        if not summary.trainable:
            raise UserError(
                f"data set {name}: none of its {summary.num_images} images has a box to train on; add some."
                f"{summary.findings.because()}"
            )
        return
    note = summary.findings.note
    if not summary.has_annotations:
        note("its json has no annotations; detections are written to a file, but no metrics can be computed")
    elif not summary.boxes_per_image:
        note("it has no object to find, because it has no annotations or all are crowds; its AP will be nan")
    for image_id, num_boxes in summary.boxes_per_image.most_common(1):
        if num_boxes > detections_per_image:
            many = sum(n > detections_per_image for n in summary.boxes_per_image.values())
            limit = f"TEST.DETECTIONS_PER_IMAGE {detections_per_image}"
            note(
                f"images have more objects than {limit}; raise it to find them all",
                f"image {image_id} has {num_boxes} objects",
                many,
            )


def _check_leakage(train: Sequence[DataSet], test: Sequence[DataSet]) -> None:
    """Notes test images that are training images."""
    ours = {path: n for summary in train for path, n in summary.files.items()}
    for summary in test:
        leaks = find_leaks(ours, summary.files)
        if leaks:
            kind = "test images are training images, too, so its metrics do not tell how well the detector generalizes"
            summary.findings.note(kind, f"{leaks[0][1]} is {leaks[0][0]}", len(leaks))
