"""Small runs for the tests of the report."""

import json
from pathlib import Path

from clq.data.formats.coco import Content, to_coco
from clq.evaluation.report.run import make_run
from clq.evaluation.report.truth import truth_of

REFERENCES = json.loads(Path(__file__).with_name("references.json").read_text())
BOX = [0, 0, 100, 100]


def narrow(iou, x=0, y=0):
    """A box whose IoU with the box of 100 x 100 pixels at (x, y) is this."""
    return [x, y, 100 * iou, 100]


def truth(objects, images=1, names=("cat", "dog")):
    """The truth of objects (image, class, box) or (image, class, box, crowd); images and classes count from 0."""
    annotations = [
        {"id": n, "image_id": o[0], "category_id": o[1], "bbox": o[2], "area": o[2][2] * o[2][3],
         "iscrowd": int(len(o) > 3)}
        for n, o in enumerate(objects, start=1)
    ]  # fmt: skip
    listed = [{"id": i, "file_name": f"{i}.png", "width": 500, "height": 500} for i in range(images)]
    categories = [{"id": i, "name": name} for i, name in enumerate(names)]
    return truth_of(to_coco(Content(categories, listed, annotations)))


def found(image, label, box, score, **parts):
    return {"image_id": image, "category_id": label, "bbox": box, "score": score, **parts}


def run(objects, results, name="run", **kinds):
    return make_run(name, truth(objects, **kinds), results)


def recorded():
    """The run of references.json."""
    content = REFERENCES["truth"]
    there = truth_of(to_coco(Content(content["categories"], content["images"], content["annotations"])))
    return make_run("recorded", there, REFERENCES["detections"])
