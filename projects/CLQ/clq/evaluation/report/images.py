"""The best and the worst images of a run, and their pictures."""

import os
from dataclasses import dataclass

import numpy as np
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from clq.data.images import read_image
from clq.errors import UserError
from clq.evaluation.report.matching import Assigned
from clq.evaluation.report.operating import MATCH_IOU
from clq.evaluation.report.run import Run

LONGEST_SIDE = 420  # pixels of a picture
RIGHT, WRONG, MISSED = (86, 180, 233), (213, 94, 0), (240, 228, 66)  # blue, vermilion, yellow: Okabe and Ito's
_DASH = 7  # pixels
_MOST_LABELS = 25  # boxes in a picture up to which each has a label


@dataclass(frozen=True)
class ImageError:
    """How much is wrong in an image at a threshold.

    Attributes:
        index: of the image.
        error: from 0 to 1; see :func:`image_errors`.
        right, wrong, missed: numbers of right and wrong detections, and of missed objects.
    """

    index: int
    error: float
    right: int
    wrong: int
    missed: int


def image_errors(run: Run, assigned: Assigned, threshold: float) -> list[ImageError]:
    """The errors of all images with an object or a detection, from the best image to the worst.

    The error is LRP (Oksuz et al., ECCV 2018) at IoU .5: (sum of (1 - IoU) / .5 over the right detections + wrong
    detections + missed objects) / (right + wrong + missed). Of images with the same error, the one with more objects
    and detections is the more telling: it comes first among good images and last among bad ones.

    Args:
        run: the detections.
        assigned: their matches at IoU .5.
        threshold: score from which detections count.
    """
    count, truth = len(run.truth.image_ids), run.truth
    shown = (run.scores >= threshold) & ~assigned.ignored
    hit = shown & assigned.correct

    def per_image(image: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(image, weights=weights, minlength=count)

    right, wrong = per_image(run.image[hit]), per_image(run.image[shown & ~hit])
    missed = per_image(truth.image[~truth.crowd]) - right
    inexact = per_image(run.image[hit], (1 - assigned.iou[hit]) / (1 - MATCH_IOU))
    total = right + wrong + missed
    some = np.flatnonzero(total)
    error = (inexact + wrong + missed)[some] / total[some]
    telling = np.where(error < 0.5, -total[some], total[some])
    order = np.lexsort((telling, error.round(6)))
    rows = zip(*(x[some][order].tolist() for x in (right, wrong, missed)), strict=True)
    return [ImageError(int(some[i]), float(error[i]), *row) for i, row in zip(order, rows, strict=True)]


def draw_image(run: Run, assigned: Assigned, index: int, threshold: float, folder: str) -> Image.Image | str:
    """Draws an image with its right detections (blue), wrong ones (vermilion) and missed objects (yellow, dashed).

    Args:
        run: the detections.
        assigned: their matches at IoU .5.
        index: of the image.
        threshold: score from which detections are drawn.
        folder: folder of the images.

    Returns:
        The picture, or a sentence on why the image cannot be read.
    """
    try:
        pixels = read_image(os.path.join(folder, run.truth.file_names[index]), "RGB")
    except UserError as e:
        return str(e)
    picture = Image.fromarray(pixels)
    scale = LONGEST_SIDE / max(picture.size)
    resampling = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    picture = picture.resize([max(1, round(side * scale)) for side in picture.size], resampling)
    draw, names = ImageDraw.Draw(picture), run.truth.names
    font = ImageFont.truetype(findfont("DejaVu Sans"), 12)
    mine = (run.image == index) & (run.scores >= threshold)
    prefix = [f"{name} " for name in names] if len(names) > 1 else [""]
    found = np.zeros(len(run.truth.label), bool)
    found[assigned.truth[mine & assigned.correct]] = True
    missed = np.flatnonzero((run.truth.image == index) & ~run.truth.crowd & ~found)
    shown = np.flatnonzero(mine & ~assigned.ignored)[::-1]
    labels, width = [], 3 if len(missed) + len(shown) <= _MOST_LABELS else 2
    for t in missed:
        box = _corners(run.truth.boxes[t], scale)
        _dashed(draw, box, width)
        labels.append((box, names[run.truth.label[t]], MISSED))
    for d in shown:
        box, color = _corners(run.boxes[d], scale), RIGHT if assigned.correct[d] else WRONG
        draw.rectangle(box, outline=color, width=width)
        labels.append((box, f"{prefix[run.label[d]]}{run.scores[d]:.2f}", color))
    for box, text, color in labels if len(labels) <= _MOST_LABELS else ():
        _label(draw, box, text, color, font)
    return picture


def _corners(box: np.ndarray, scale: float) -> tuple[float, float, float, float]:
    x, y, w, h = (float(v) * scale for v in box)
    return x, y, max(x + w, x + 1), max(y + h, y + 1)


def _dashed(draw: ImageDraw.ImageDraw, box: tuple[float, float, float, float], width: int) -> None:
    x0, y0, x1, y1 = box
    for start in np.arange(x0, x1, 2 * _DASH):
        for y in (y0, y1):
            draw.line((start, y, min(start + _DASH, x1), y), MISSED, width)
    for start in np.arange(y0, y1, 2 * _DASH):
        for x in (x0, x1):
            draw.line((x, start, x, min(start + _DASH, y1)), MISSED, width)


def _label(draw: ImageDraw.ImageDraw, box: tuple, text: str, color: tuple, font: ImageFont.FreeTypeFont) -> None:
    """Writes a text on the upper edge of a box, inside of the picture."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font)
    width, height = right - left + 4, bottom - top + 4
    x = min(max(box[0], 0), max(draw.im.size[0] - width, 0))
    y = min(max(box[1] - height, 0), max(draw.im.size[1] - height, 0))
    draw.rectangle((x, y, x + width, y + height), fill=color)
    draw.text((x + 2 - left, y + 2 - top), text, "black", font)
