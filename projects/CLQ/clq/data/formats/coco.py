"""COCO json: its usable content, Detectron2's records of it, and pycocotools' view of it.

A json file that is read here may hold anything. What is returned holds only what is used later, in the types that
Detectron2 and pycocotools take for granted. Both get this content and never the file itself, so that what the check
accepts does not fail later in code that is not this project's.
"""

import contextlib
import io
import itertools
import os
from collections import Counter
from dataclasses import dataclass

from detectron2.structures import BoxMode
from pycocotools.coco import COCO

from clq.data.formats.annotations import check_annotations
from clq.data.formats.findings import Findings, shown
from clq.data.formats.values import LARGEST_ID, LARGEST_SIDE, check_id_types, integer, is_id, is_text
from clq.errors import UserError
from clq.utils.files import read_json

_IMAGE_FIELDS = "id", "file_name", "width", "height"


@dataclass(frozen=True)
class Content:
    """The usable content of a data set.

    Attributes:
        categories: records with ``id`` and ``name``, in the order of the model's outputs, by id.
        images: records with ``id``, ``file_name``, ``width`` and ``height``, in the order of the file.
        annotations: records with ``id``, ``image_id``, ``category_id``, ``bbox`` (x, y, width, height in pixels),
            ``area``, ``iscrowd`` and, if masks are used, ``segmentation``. None if the file has no annotations, as for
            a test set whose annotations are not public.
    """

    categories: list[dict]
    images: list[dict]
    annotations: list[dict] | None

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in the order of the model's outputs."""
        return [c["name"] for c in self.categories]


def read_coco_json(path: str, name: str) -> dict:
    """Reads a COCO json and checks its categories.

    Args:
        path: path of the file.
        name: name of the data set, for messages.

    Raises:
        UserError: the file cannot be read, is not COCO json, or has no categories.
    """
    try:
        data = read_json(path)
    except UserError as e:
        raise UserError(f"data set {name}: {e}") from e
    categories = data.get("categories") if isinstance(data, dict) else None
    if not isinstance(categories, list) or not categories:
        raise UserError(
            f"data set {name}: {path} has no categories; COCO json needs a non-empty list of "
            '{"id": ..., "name": ...} under "categories".'
        )
    for number, category in enumerate(categories, 1):
        if not isinstance(category, dict) or not is_id(category.get("id")):
            raise UserError(
                f"data set {name}: category number {number} in its json is {shown(category)}; it must have an id, an "
                "integer or text."
            )
        if not is_text(category.get("name")):
            what = f"category {category['id']} has name {shown(category.get('name'))} in its json"
            raise UserError(f"data set {name}: {what}; it must be text of whole characters.")
    _check_unique(name, "category", [c["id"] for c in categories])
    return data


def check_content(data: dict, findings: Findings, *, masks: str | None) -> Content:
    """Checks the images and annotations of a COCO json.

    Args:
        data: of :func:`read_coco_json`.
        findings: receives what is found.
        masks: ``INPUT.MASK_FORMAT``, in which segmentations are used; None if they are not looked at.

    Returns:
        The content without what is faulty.

    Raises:
        UserError: the file as a whole cannot be used: it lists no images, or its ids do not identify anything.
    """
    if not isinstance(data.get("annotations", []), list):
        raise UserError(f'data set {findings.name}: its json has no list under "annotations"; it is not COCO json.')
    categories = [{"id": integer(c["id"]), "name": c["name"]} for c in data["categories"]]
    categories.sort(key=lambda category: category["id"])
    for class_name, count in Counter(c["name"] for c in categories).most_common(1):
        if count > 1:
            what = "categories have the same name as another one; they are learned as different classes, and metrics "
            findings.note(f"{what}of a class show only the last of them", shown(class_name), count)
    images = check_images(data, findings)
    annotations = None
    if "annotations" in data:
        listed = [i.get("id") for i in data["images"] if isinstance(i, dict)]  # also those that were left out
        category_ids = [c["id"] for c in categories]
        annotations = check_annotations(data["annotations"], images, listed, category_ids, findings, masks=masks)
    return Content(categories, images, annotations)


def check_images(data: dict, findings: Findings) -> list[dict]:
    """Checks the descriptions of the images in a COCO json; see :func:`check_content`."""
    if not isinstance(data.get("images"), list):
        raise UserError(f'data set {findings.name}: its json has no list under "images"; it is not COCO json.')
    if not data["images"]:
        raise UserError(f"data set {findings.name}: its json lists no images; add some.")
    if _are_regular(data["images"]):
        good = [{key: image[key] for key in _IMAGE_FIELDS} for image in data["images"]]
        _check_unique(findings.name, "image", [image["id"] for image in good])
        return good
    good = []
    for number, image in enumerate(data["images"], 1):
        if (what := _fault_of_image(image)) is None:
            size = {key: integer(image[key]) for key in ("width", "height")}
            good.append({"id": integer(image["id"]), "file_name": image["file_name"], **size})
            continue
        record = image if isinstance(image, dict) else {}
        item = f"image {record['id']}" if is_id(record.get("id")) else f"image number {number} in its json"
        file_name = record["file_name"] if isinstance(record.get("file_name"), str) else str(record.get("id", number))
        findings.fault("images have a wrong description", f"{item} {what}", image=file_name)
    _check_unique(findings.name, "image", [image["id"] for image in good])
    return good


def _are_regular(images: list) -> bool:
    """Whether all images are described as they must be, as almost always; faster than :func:`_fault_of_image`."""
    try:
        ids, names, *sizes = ([image[key] for image in images] for key in _IMAGE_FIELDS)
        return (
            {type(image) for image in images} == {dict}
            and {type(i) for i in ids} == {int}
            and max(map(abs, ids)) < LARGEST_ID
            and {type(name) for name in names} == {str}
            and all(names)
            and "\0" not in "".join(names)
            and is_text("".join(names))
            and {type(size) for size in itertools.chain(*sizes)} == {int}
            and min(map(min, sizes)) > 0
            and max(map(max, sizes)) <= LARGEST_SIDE
        )
    except (KeyError, TypeError):
        return False


def _fault_of_image(image: object) -> str | None:
    """What is wrong with the description of an image, in words that follow its name; None if it can be used."""
    if not isinstance(image, dict):
        return f"is {shown(image)}; it must be an object"
    for key in _IMAGE_FIELDS:
        if key not in image:
            return f"lacks {key}; it needs id, file_name, width and height"
    if not is_id(image["id"]):
        return f"has id {shown(image['id'])}; it must be an integer or text"
    file_name = image["file_name"]
    if not isinstance(file_name, str) or not file_name or "\0" in file_name:
        return f"has file_name {shown(file_name)}; it must be the path of a file"
    if not is_text(file_name):
        return f"has file_name {shown(file_name)}, which UTF-8 cannot hold; rename the file"
    for key in ("width", "height"):
        size = integer(image[key])
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= LARGEST_SIDE:
            return f"has {key} {shown(image[key])}; it must be a positive integer, the size of the file in pixels"
    return None


def _check_unique(name: str, kind: str, ids: list) -> None:
    check_id_types(name, kind, ids)
    for record_id, count in Counter(ids).most_common(1):
        if count > 1:
            raise UserError(
                f"data set {name}: {kind} id {record_id} occurs {count} times in its json; make ids unique."
            )


def to_records(content: Content, folder: str) -> list[dict]:
    """Detectron2's records of the images, in the order of their ids, as its own loader of COCO json makes them.

    Args:
        content: content of the data set.
        folder: folder that the names of the files are relative to.
    """
    index = {category["id"]: i for i, category in enumerate(content.categories)}
    records = {}
    for image in sorted(content.images, key=lambda i: i["id"]):
        records[image["id"]] = {
            "file_name": os.path.join(folder, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "annotations": [],
        }
    for a in content.annotations or ():
        record = {"iscrowd": a["iscrowd"], "bbox": a["bbox"], "category_id": index[a["category_id"]]}
        record["bbox_mode"] = BoxMode.XYWH_ABS
        if "segmentation" in a:
            record["segmentation"] = a["segmentation"]
        records[a["image_id"]]["annotations"].append(record)
    return list(records.values())


def to_coco(content: Content) -> COCO:
    """pycocotools' index of the content, which COCO's evaluation reads."""
    data = {"info": {}, "images": content.images, "categories": content.categories}
    if content.annotations is not None:
        data["annotations"] = content.annotations
    coco = COCO()
    coco.dataset = data
    with contextlib.redirect_stdout(io.StringIO()):  # hides the progress that pycocotools prints
        coco.createIndex()
    return coco
