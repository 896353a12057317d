"""Reads detections in COCO's results format, as COCOEvaluator writes them, and what they are compared with."""

import contextlib
import io
from collections.abc import Collection

from pycocotools.coco import COCO

from clq.data.formats.values import is_number
from clq.errors import UserError
from clq.utils.files import read_json


def read_truth(path: str) -> COCO:
    """Reads a COCO json whose annotations are complete, such as the one that an evaluation used.

    Raises:
        UserError: the file cannot be read, or COCO's evaluation cannot read it.
    """
    coco = COCO()
    coco.dataset = read_json(path)
    if not isinstance(coco.dataset, dict):
        raise UserError(f"{path}: COCO's evaluation cannot read it (it is not an object); correct it.")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # hides the progress that pycocotools prints
            coco.createIndex()
    except (AttributeError, LookupError, TypeError, ValueError) as e:
        raise UserError(f"{path}: COCO's evaluation cannot read it ({type(e).__name__} {e}); correct it.") from e
    return coco


def read_results(path: str, image_ids: Collection[int | str], category_ids: Collection[int | str]) -> list[dict]:
    """Reads the detections of a data set.

    Args:
        path: json file (``coco_instances_results.json``).
        image_ids: ids of the data set's images.
        category_ids: ids of its categories.

    Returns:
        A dict for each detection, with ``image_id``, ``category_id``, ``bbox`` (XYWH) and ``score``.

    Raises:
        UserError: the file cannot be read, is not a list of such dicts, or is of another data set.
    """
    try:
        results = read_json(path)
    except UserError as e:
        raise UserError(f"{e} Evaluate the detector again.") from e
    check_results(path, results, image_ids, category_ids)
    return results


def check_results(
    path: str, results: object, image_ids: Collection[int | str], category_ids: Collection[int | str]
) -> None:
    """Checks the content of a results file; see :func:`read_results`.

    Raises:
        UserError: it is not a list of detections of a data set with these ids.
    """
    if not isinstance(results, list):
        raise UserError(f"{path}: holds no list of detections; evaluate the detector again.")
    images, categories = set(image_ids), set(category_ids)
    for number, result in enumerate(results, start=1):
        if fault := _fault(result, images, categories):
            raise UserError(f"{path}: detection {number} {fault}; evaluate the detector again.")


def _fault(result: object, images: set[int | str], categories: set[int | str]) -> str | None:
    """What is wrong with a detection; None for a good one."""
    if not isinstance(result, dict):
        return "is not an object"
    box = result.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)) or min(box[2:]) < 0:
        return "has no bbox [x, y, width, height] of finite numbers"
    if not _is_number(result.get("score")):
        return "has no finite score"
    for key, known in (("image_id", images), ("category_id", categories)):
        value = result.get(key)
        if type(value) not in (int, str) or value not in known:
            return f"has an unknown {key}, which its data set lacks"
    return None


def _is_number(value: object) -> bool:
    return is_number(value) and abs(value) < 1e100  # type: ignore[arg-type]  # the area of the box is finite too
