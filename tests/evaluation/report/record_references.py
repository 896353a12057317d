"""Writes references.json: what tidecv, scikit-learn and scipy say about a made set of detections.

    python -m venv /tmp/references && /tmp/references/bin/pip install tidecv==1.0.1 scikit-learn==1.9.1
    /tmp/references/bin/python tests/evaluation/report/record_references.py

These packages are no requirements of the tests, because tidecv installs a second OpenCV beside the headless one. This
script imports nothing of the project.
"""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import stats
from sklearn.metrics import confusion_matrix, precision_recall_curve
from tidecv import TIDE, Data

CLASSES = {1: "cat", 3: "dog", 4: "bird", 9: "fish"}  # there is no fish, but detections of it
THRESHOLD = 0.45


def make_case(seed=0, images=40):
    """Objects, some in crowds, and detections near them, of the right or of another class, or anywhere."""
    random, annotations, results = np.random.default_rng(seed), [], []
    for image in range(1, images + 1):
        for _ in range(random.integers(0, 5)):
            category, box = int(random.choice([1, 3, 4])), [*random.uniform(0, 120, 2), *random.uniform(15, 60, 2)]
            crowd = int(random.random() < 0.08)
            number = {"id": len(annotations) + 1, "image_id": image, "category_id": category, "iscrowd": crowd}
            annotations.append({**number, "bbox": [round(float(x), 2) for x in box], "area": float(box[2] * box[3])})
            for _ in range(random.integers(0, 4)):
                found = category if random.random() < 0.8 else int(random.choice(list(CLASSES)))
                results.append((image, found, np.array(box) + random.normal(0, random.choice([2, 8]), 4)))
        for _ in range(random.integers(0, 4)):
            box = np.array([*random.uniform(0, 120, 2), *random.uniform(15, 60, 2)])
            results.append((image, int(random.choice(list(CLASSES))), box))
    scores = random.permutation(len(results)) / len(results) * 0.9 + 0.05  # all different
    truth = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 200, "height": 200} for i in range(1, images + 1)],
        "categories": [{"id": i, "name": name} for i, name in CLASSES.items()],
        "annotations": annotations,
    }
    detections = [
        {"image_id": i, "category_id": c, "bbox": [round(float(x), 2) for x in box], "score": round(float(s), 5)}
        for (i, c, box), s in zip(results, scores, strict=False)
    ]
    return truth, detections


def tide(truth, detections):
    objects, found = Data("objects"), Data("detections")
    for c in truth["categories"]:
        objects.add_class(c["id"], c["name"])
    for i in truth["images"]:
        objects.add_image(i["id"], i["file_name"])
    for a in truth["annotations"]:
        add = objects.add_ignore_region if a["iscrowd"] else objects.add_ground_truth
        add(a["image_id"], a["category_id"], a["bbox"])
    for d in detections:
        found.add_detection(d["image_id"], d["category_id"], d["score"], d["bbox"])
    tool = TIDE()
    run = tool.evaluate(objects, found)
    errors, counts = tool.get_all_errors(), run.count_errors()
    costs = {**errors["main"]["detections"], **errors["special"]["detections"], "AP50": run.ap}
    return {"costs": costs, "counts": {kind.short_name: count for kind, count in counts.items()}}


def flags(truth, detections):
    """Of each detection whether pycocotools says that it is right at IoU .5, and whether it does not count."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes([dict(d) for d in detections]), "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
    right, ignored, matched = {}, {}, {}
    for entry in filter(None, evaluation.evalImgs):
        for i, number in enumerate(entry["dtIds"]):
            ignored[number - 1] = bool(entry["dtIgnore"][0, i])
            right[number - 1] = bool(entry["dtMatches"][0, i]) and not ignored[number - 1]
            matched[number - 1] = int(entry["dtMatches"][0, i])
    count = range(len(detections))
    return [[part[i] for i in count] for part in (right, ignored, matched)]


def confusions(truth, detections, right, ignored, matched):
    """scikit-learn's matrix of pairs of objects and detections; 0 stands for no object and for no detection."""
    objects = {a["id"]: a for a in truth["annotations"] if not a["iscrowd"]}
    shown = [i for i, d in enumerate(detections) if d["score"] >= THRESHOLD and not ignored[i]]
    pairs = [(objects.pop(matched[i])["category_id"], detections[i]["category_id"]) for i in shown if right[i]]
    left = [i for i in shown if not right[i]]
    near = []
    for i in left:
        for key, a in objects.items():
            if a["image_id"] == detections[i]["image_id"]:
                near.append((float(mask.iou([detections[i]["bbox"]], [a["bbox"]], [0])[0, 0]), i, key))
    for iou, i, key in sorted(near, reverse=True):
        if iou >= 0.5 and i in left and key in objects:
            left.remove(i)
            pairs.append((objects.pop(key)["category_id"], detections[i]["category_id"]))
    pairs += [(0, detections[i]["category_id"]) for i in left] + [(a["category_id"], 0) for a in objects.values()]
    return confusion_matrix(*zip(*pairs, strict=False), labels=[*CLASSES, 0]).tolist()


def true_ious(truth, detections):
    ious = []
    for d in detections:
        same = [a["bbox"] for a in truth["annotations"]
                if a["image_id"] == d["image_id"]
                and a["category_id"] == d["category_id"] and not a["iscrowd"]]  # fmt: skip
        ious.append(float(mask.iou([d["bbox"]], same, [0] * len(same)).max()) if same else 0.0)
    return ious


def main():
    truth, detections = make_case()
    right, ignored, matched = flags(truth, detections)
    scores, ious = np.array([d["score"] for d in detections]), np.array(true_ious(truth, detections))
    use = ~np.array(ignored)
    precision, recall, thresholds = precision_recall_curve(np.array(right)[use], scores[use])
    references = {
        "tidecv": tide(truth, detections),
        "scipy": {
            "pearson": float(stats.pearsonr(scores, ious)[0]),
            "spearman": float(stats.spearmanr(scores, ious)[0]),
        },
        "precision": precision[:-1].tolist(),
        "recall_of_found": recall[:-1].tolist(),
        "thresholds": thresholds.tolist(),
        "confusion": confusions(truth, detections, right, ignored, matched),
    }
    content = {"truth": truth, "detections": detections, "threshold": THRESHOLD, "references": references}
    Path(__file__).with_name("references.json").write_text(json.dumps(content))


if __name__ == "__main__":
    main()
