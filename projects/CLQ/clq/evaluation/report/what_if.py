"""The section on what could be won without another detector, and the one with the best and the worst images."""

import io
from collections.abc import Sequence

from clq.evaluation.report import figures
from clq.evaluation.report.analysis import Analysis
from clq.evaluation.report.images import ImageError, draw_image
from clq.evaluation.report.page import Section, gallery, number, paragraph, picture, text
from clq.evaluation.report.sections import Pictures, by_run, heading

SHOWN = 20  # best and worst images

_WHAT_IF = {
    "AP": "as it is",
    "true_quality": "if the quality were the true IoU",
    "true_ranking": "if the true IoU ranked the boxes",
    "true_class": "if every class were right",
}


def headroom(analyses: Sequence[Analysis], pictures: Pictures) -> Section:
    content = paragraph(
        "What the same boxes would score if one thing were perfect. With the true IoU as quality, the class score",
        "stays as it is; a detector without a quality that is known has its score multiplied by the true IoU, which",
        "is the most that a quality branch could bring it. The true IoU as the only score is the best order of",
        "these boxes. With right classes, each detection has the class of the object that it overlaps most (IoU of",
        "at least .5), and NMS is repeated. NMS has seen the trained scores in all of these.",
    )
    pictures["headroom.png"] = figures.bars(
        list(_WHAT_IF.values()), {a.run.name: [a.headroom[key] for key in _WHAT_IF] for a in analyses}, "AP"
    )
    content += picture(
        pictures["headroom.png"], "AP as it is, and as it would be. The longer a bar, the more is to win."
    )
    swept = {a.run.name: (a.sweep, a.alpha) for a in analyses if a.sweep and a.alpha is not None}
    content += "<h3>The exponent α of the quality</h3>"
    if swept:
        pictures["alpha.png"] = figures.sweep_curves(swept)
        content += picture(
            pictures["alpha.png"],
            "AP if the detections are ranked anew by class score times quality to the power of α, without "
            "retraining. α = 0 ranks by the class score alone. NMS was done with the trained α (ring). The network "
            "was trained with it too, so another optimum is a hint, and no proof, that another α would train a "
            "better detector.",
        )
        best = {
            "trained α, read off the results": [number(a.alpha, 2) for a in analyses],
            "best α": [number(_best(a.sweep), 2) for a in analyses],
            "AP with the best α": [number(max(a.sweep.values(), default=None), 2) for a in analyses],
        }
        content += by_run(analyses, best)
    else:
        content += paragraph(
            "The results do not have the two parts of the score (a detector without a quality branch has none), so",
            "there is nothing to rank anew.",
        )
    content += "<h3>What NMS loses</h3>" + _nms(analyses, pictures)
    return Section("What could be won?", "headroom", content)


def _best(sweep: dict[float, float]) -> float | None:
    return max(sweep, key=lambda alpha: sweep[alpha]) if sweep else None


def _nms(analyses: Sequence[Analysis], pictures: Pictures) -> str:
    kept = [a for a in analyses if a.nms is not None]
    if not kept:
        return paragraph(
            "Results have no candidates before NMS. An evaluation with TEST.REPORT_CANDIDATES 100 keeps those of 100",
            "images, which takes the detector a second look at each.",
        )
    keys = {
        "images": ("images with candidates", 0),
        "candidates": ("candidates before NMS", 0),
        "detections": ("detections after NMS", 0),
        "AP": ("AP on these images", 1),
        "AP_best_box": ("AP if NMS had kept the best box", 1),
        "iou": ("mean IoU of detections on objects", 3),
        "iou_best_box": ("mean IoU if NMS had kept the best box", 3),
        "objects": ("objects", 0),
        "lost_objects": ("objects whose candidates were all removed", 0),
    }
    rows = {
        title: [number(a.nms[key], digits) if a.nms else "–" for a in analyses] for key, (title, digits) in keys.items()
    }
    content = paragraph(
        "NMS keeps the box with the highest score and removes those around it. If a removed box would have fitted",
        "the object better, the ranking has cost accuracy. The second AP is that of the same detections, each with",
        "the best of its own box and those that it has removed.",
    ) + by_run(analyses, rows)
    swept = {a.run.name: (a.nms["alpha"], a.alpha) for a in kept if a.nms and a.nms["alpha"] and a.alpha is not None}
    if swept:
        pictures["alpha_nms.png"] = figures.sweep_curves(swept)
        content += picture(
            pictures["alpha_nms.png"], "The same sweep of α on these images, with NMS repeated for each α."
        )
    return content


def images(analyses: Sequence[Analysis], folder: str | None) -> Section:
    """The best and the worst images.

    Args:
        analyses: of the runs.
        folder: folder of the images; None if they are not drawn.
    """
    content = paragraph(
        "Images by their LRP error (Oksuz et al. 2018) at the best threshold for F1: wrong detections and missed",
        "objects count 1, right detections count by how far their IoU is from 1 (0 at IoU 1, 1 at IoU .5), and the",
        "sum is divided by their number. 0 is perfect. Of equal images, those with more objects and detections come",
        "first. Blue boxes are right, vermilion ones wrong, and yellow dashed ones are objects that were not found.",
    )
    if folder is None:
        return Section(
            "The best and the worst images", "images", content + paragraph("Without --images, none is drawn.")
        )
    for a in analyses:
        best = a.images[: min(SHOWN, (len(a.images) + 1) // 2)]
        worst = a.images[::-1][: min(SHOWN, len(a.images) // 2)]
        for title, chosen in (("worst", worst), ("best", best)):
            content += f"<h3>{text(heading(analyses, a))}The {len(chosen)} {title}</h3>"
            content += gallery(_one(a, entry, folder) for entry in chosen)
    return Section("The best and the worst images", "images", content)


def _one(analysis: Analysis, entry: ImageError, folder: str) -> str:
    name = analysis.run.truth.file_names[entry.index]
    drawn = draw_image(analysis.run, analysis.assigned, entry.index, analysis.threshold, folder)
    if isinstance(drawn, str):
        return paragraph(f"Not drawn: {drawn}")
    buffer = io.BytesIO()
    drawn.save(buffer, format="JPEG", quality=80)
    counts = f"{entry.right} right, {entry.wrong} wrong, {entry.missed} missed"
    return picture(buffer.getvalue(), f"{name}: {counts}, error {entry.error:.2f}", "jpeg")
