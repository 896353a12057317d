"""The sections of a report: numbers and pictures of one or several runs, with what they mean in plain words."""

from collections.abc import Mapping, Sequence

from clq.evaluation.report import figures
from clq.evaluation.report.analysis import Analysis
from clq.evaluation.report.operating import Point
from clq.evaluation.report.page import Section, folded, number, paragraph, picture, table
from clq.evaluation.report.tide import KINDS
from clq.evaluation.report.trust import quantities

Pictures = dict[str, bytes]  # PNG by the name of the file


def by_run(analyses: Sequence[Analysis], rows: Mapping[str, Sequence[str]]) -> str:
    """A table with a column for each run; ``rows`` has the values of the runs by the name of a row."""
    return table(["", *(a.run.name for a in analyses)], [[name, *values] for name, values in rows.items()])


def heading(analyses: Sequence[Analysis], analysis: Analysis) -> str:
    """The name of a run in front of what belongs to it, where there are several."""
    return f"{analysis.run.name}: " if len(analyses) > 1 else ""


def file_name(stem: str, analyses: Sequence[Analysis], index: int) -> str:
    """The name of a picture that each run has one of."""
    return f"{stem}.png" if len(analyses) == 1 else f"{stem}_{index + 1}.png"


def overview(analyses: Sequence[Analysis], pictures: Pictures) -> Section:
    coco = {
        "AP": "AP (mean over IoU .50 to .95)",
        "AP50": "AP at IoU .50",
        "AP75": "AP at IoU .75",
        "APs": "AP, small objects",
        "APm": "AP, medium objects",
        "APl": "AP, large objects",
        "AR1": "AR, 1 detection an image",
        "AR10": "AR, 10 detections an image",
        "AR": "AR, all detections",
        "ARs": "AR, small objects",
        "ARm": "AR, medium objects",
        "ARl": "AR, large objects",
    }
    rows = {
        "objects": [f"{a.run.truth.objects.sum():,}" for a in analyses],
        "detections": [f"{len(a.run):,}" for a in analyses],
        **{title: [number(a.coco[key]) for a in analyses] for key, title in coco.items()},
    }
    content = paragraph(
        "COCO's metrics, by pycocotools, in percent. Average precision (AP) is high if right detections rank before",
        "wrong ones. Average recall (AR) is the share of the objects that is found at all, whatever the ranking.",
        "Small is below 32 x 32 pixels, and large above 96 x 96.",
    ) + by_run(analyses, rows)
    return Section("AP and AR", "overview", content)


def trust(analyses: Sequence[Analysis], pictures: Pictures) -> Section:
    content = paragraph(
        "A box is as good as its IoU with the object. AP and NMS see only the score, so the best score is one that",
        "knows this IoU. Each detection is compared with the object of its class that it overlaps most; without",
        "one, the true IoU is 0.",
    )
    for i, a in enumerate(analyses):
        name = file_name("score_iou", analyses, i)
        pictures[name] = figures.density(quantities(a.run), a.run.true_iou) if len(a.run) else b""
        caption = (
            f"{heading(analyses, a)}How many detections have which score (from left to right) and which true IoU "
            "(from bottom to top). A score that knows the box lies along the dashed diagonal; the orange line is "
            "the mean IoU."
        )
        content += picture(pictures[name], caption) if pictures[name] else paragraph("There is no detection.")
    curves = {a.run.name: (quantities(a.run), a.run.true_iou) for a in analyses if len(a.run)}
    if curves:
        pictures["reliability.png"] = figures.reliability_curves(curves)
        content += picture(
            pictures["reliability.png"],
            "Reliability: the mean true IoU of the detections with about the same score. Below the diagonal a score "
            "promises more than the box keeps; above it, the score is too modest. The bars count detections, on a "
            "logarithmic scale.",
        )
    content += paragraph(
        "Distance is the mean of |score - true IoU|. LaECE (localization-aware expected calibration error, Oksuz et",
        "al. 2023; LaECE_0 of Kuzucu et al. 2024) sorts the detections of a class into 25 bins by score and",
        "compares the mean score of each with the mean IoU of one-to-one matches, so that the second detection of",
        "an object counts as 0. Both are 0 for a perfect score. Pearson's correlation is 1 if score and IoU lie on",
        "a line, Spearman's if they rank boxes alike. On objects means detections with a true IoU of at least .5:",
        "among these, the score should tell good boxes from better ones.",
    )
    columns = ["", "detections", "distance", "LaECE", "Pearson", "Spearman", "on objects", "Pearson", "Spearman"]
    rows = []
    for a in analyses:
        for name, numbers in a.trust.items():
            everything, on = numbers["all"], numbers["on_objects"]
            rows.append(
                [heading(analyses, a) + name, *_agreement(everything), f"{on['detections']:,}", *_correlations(on)]
            )
    content += table(columns, rows)
    groups = {"size": "size of the detected box", "level": "FPN level, from 0, the finest", "class": "class"}
    for kind, title in groups.items():
        rows = [
            [heading(analyses, a) + name, *_agreement(numbers)]
            for a in analyses
            for name, numbers in a.trust["final score"][kind].items()
        ]
        if rows:
            content += folded(f"Final score by {title}", table(columns[:6], rows, tall=True))
    return Section("Does the score know the box?", "trust", content)


def _agreement(numbers: dict[str, float]) -> list[str]:
    shown = [number(numbers[key], 3) for key in ("mean_distance", "laece")]
    return [f"{numbers['detections']:,}", *shown, *_correlations(numbers)]


def _correlations(numbers: dict[str, float]) -> list[str]:
    return [number(numbers[key], 2) for key in ("pearson", "spearman")]


def thresholds(analyses: Sequence[Analysis], pictures: Pictures) -> Section:
    content = paragraph(
        "Lowering the threshold of the score shows more objects (recall) and more mistakes (less precision). F1 is",
        "high where both are. A detection is right if its IoU with an object of its class that is still free is at",
        "least .5.",
    )
    known = {a.run.name: (a.precisions, a.curve, a.best) for a in analyses if a.precisions}
    if known:
        pictures["precision_recall.png"] = figures.precision_recall(known)
        content += picture(
            pictures["precision_recall.png"],
            "Left: the precision that is reached at each recall. Right: what each threshold gives; the dot is the "
            "best threshold for F1.",
        )
    wanted = f"{analyses[0].precision:g}"
    best = {
        "threshold": [number(None if a.best is None else a.best.threshold, 2) for a in analyses],
        "F1": [number(None if a.best is None else a.best.f1, 3) for a in analyses],
        "precision": [number(None if a.best is None else a.best.precision, 3) for a in analyses],
        "recall": [number(None if a.best is None else a.best.recall, 3) for a in analyses],
    }
    content += "<h3>One threshold for all classes</h3>" + by_run(analyses, best)
    content += "<h3>A threshold for each class</h3>" + paragraph(
        "thresholds.json has the best thresholds for F1, and thresholds_precision.json the lowest ones that reach a",
        f"precision of {wanted}; `clq predict --thresholds` reads either. A class that never reaches it has the",
        "threshold 1, so it is not shown. Thresholds of classes with few objects are chance: choose them on other",
        "images than those that you report results of, and look at the number of objects.",
    )
    for a in analyses:
        columns = ["class", "objects", "best for F1", "F1", "precision", "recall", f"precision {wanted}", "recall"]
        rows = []
        for name, (f1, high) in a.points.items():
            rows.append([name, f"{a.classes[name]['objects']:,}", *_point(f1), *_high(high)])
        content += folded(f"{heading(analyses, a)}Thresholds of {len(rows)} classes", table(columns, rows, tall=True))
    return Section("Which threshold?", "thresholds", content)


def _point(point: Point | None) -> list[str]:
    if point is None:
        return ["–"] * 4
    return [number(point.threshold, 2), *(number(x, 2) for x in (point.f1, point.precision, point.recall))]


def _high(point: Point | None) -> list[str]:
    return ["never", "–"] if point is None else [number(point.threshold, 2), number(point.recall, 2)]


def errors(analyses: Sequence[Analysis], pictures: Pictures) -> Section:
    content = paragraph(
        "TIDE (Bolya et al. 2020) sorts the errors at IoU .5 into six kinds, and computes the AP50 that would be",
        "won if all errors of a kind were corrected. The kinds do not add up, because an object that is found costs",
        "nothing elsewhere. A long bar is where work pays.",
    )
    labels = [f"{kind}: {meaning}" for kind, meaning in KINDS.items()]
    pictures["tide.png"] = figures.bars(
        labels, {a.run.name: [a.costs[kind] for kind in KINDS] for a in analyses}, "AP50 that the errors of a kind cost"
    )
    content += picture(pictures["tide.png"], "The cost of each kind of error, in AP at IoU .5.")
    rows = {kind: [f"{number(a.costs[kind], 2)} ({a.errors[kind]:,} errors)" for a in analyses] for kind in KINDS}
    totals = {
        "all wrong detections": "FalsePos",
        "all objects that are not found": "FalseNeg",
        "AP50 as TIDE counts it": "AP50",
    }
    rows |= {title: [number(a.costs[key], 2) for a in analyses] for title, key in totals.items()}
    content += by_run(analyses, rows)
    return Section("Which errors?", "errors", content)


def classes(analyses: Sequence[Analysis], pictures: Pictures) -> Section:
    content = paragraph(
        "Which class is taken for which, at the best threshold for F1. Each object is paired with one detection:",
        "first those that are right, then, whatever the class, those with the highest IoU from .5 on. Rows are true",
        "classes; darker cells have a larger share of their row.",
    )
    for i, a in enumerate(analyses):
        if a.confusion is None:
            content += paragraph(f"{heading(analyses, a)}No detection is right at IoU .5.")
            continue
        names = a.run.truth.names
        name = file_name("confusion", analyses, i)
        pictures[name] = figures.confusion_matrix(a.confusion, names)
        content += picture(
            pictures[name], f"{heading(analyses, a)}Confusion matrix at score {a.confusion.threshold:.2f}."
        )
        pairs = [[true, found, f"{count:,}"] for true, found, count in a.confusion.largest(names, 20)]
        if pairs:
            content += folded("The most frequent confusions", table(["true class", "detected as", "count"], pairs))
    keys = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR", "ARs", "ARm", "ARl"]
    for a in analyses:
        rows = [[name, f"{m['objects']:,}", *(number(m[key]) for key in keys)] for name, m in a.classes.items()]
        content += folded(
            f"{heading(analyses, a)}AP and AR of {len(rows)} classes, by size",
            table(["class", "objects", *keys], rows, tall=True),
        )
    return Section("Which classes?", "classes", content)
