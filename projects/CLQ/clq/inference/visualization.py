"""Pictures: detections on an image, and ground truth beside detections."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import Boxes, Instances
from detectron2.utils.visualizer import Visualizer
from matplotlib import colormaps
from matplotlib.colors import hsv_to_rgb
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

GROUND_TRUTH = (64, 224, 255)  # cyan: on neither earth nor leaves
SCORES = colormaps["plasma"]
DIMMEST = 0.45  # where the scale of scores begins on it: pink, orange and yellow are left
PANEL_SIDES = (480, 3000)  # pixels: smaller images are enlarged (4 times at most), larger ones reduced
MARGIN = 20  # pixels around the panels and between them


def draw_detections(image: np.ndarray, found: Instances, class_names: Sequence[str]) -> np.ndarray:
    """Boxes with name and score, or the score alone where there is but one class, by Detectron2's Visualizer.

    Args:
        image: (H, W, 3) uint8, RGB.
        found: with ``pred_boxes``, ``pred_classes`` and ``scores``; all of it is drawn.
        class_names: of the K classes.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    prefix = [f"{name} " for name in class_names] if len(class_names) > 1 else [""]
    labels = [f"{prefix[c]}{s:.2f}" for c, s in zip(found.pred_classes, found.scores.tolist(), strict=True)]
    return _label(image, found.pred_boxes, found.pred_classes, labels)


def compare(
    image: np.ndarray, truth: Instances, found: Instances, class_names: Sequence[str], threshold: float
) -> Image.Image:
    """Ground truth on the left, detections on the right, a caption above each.

    With one class, thin boxes without text, coloured by score, so that hundreds of objects stay legible; with several,
    labelled boxes as :func:`draw_detections` makes them.

    Args:
        image: (H, W, 3) uint8, RGB.
        truth: with ``gt_boxes`` and ``gt_classes``.
        found: with ``pred_boxes``, ``pred_classes`` and ``scores``; all of it is drawn.
        class_names: of the K classes.
        threshold: score that ``found`` was cut at; for the caption and the scale of colours.

    Returns:
        The picture.
    """
    image, truth, found = _rescale(image, truth, found)
    if len(class_names) == 1:
        what, scores = class_names[0], found.scores.tolist()
        # Up to the best score rounded up to a tenth: joint scores rarely come near 1.
        span = threshold, math.ceil(round(10 * max(scores, default=1.0), 3)) / 10
        left = _outline(image, truth.gt_boxes, [GROUND_TRUTH] * len(truth))
        right = _outline(image, found.pred_boxes, [_score_color(s, span) for s in scores])
    else:
        what, span = "object", None
        left = _label(image, truth.gt_boxes, truth.gt_classes, [class_names[c] for c in truth.gt_classes])
        right = draw_detections(image, found, class_names)
    captions = [
        ("Ground truth", f"{len(truth)} × {what}"),
        ("Detections", f"{len(found)} × {what}, score ≥ {threshold:.2f}"),
    ]
    return _side_by_side([left, right], captions, span)


def _rescale(image: np.ndarray, truth: Instances, found: Instances) -> tuple[np.ndarray, Instances, Instances]:
    """The same scene with its longer side within ``PANEL_SIDES``."""
    (low, high), side = PANEL_SIDES, max(image.shape[:2])
    scale = min(max(1.0, min(low / side, 4.0)), high / side)
    if scale == 1:
        return image, truth, found
    size = round(image.shape[1] * scale), round(image.shape[0] * scale)
    resized = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.BOX)
    return np.asarray(resized), *(_map_boxes(x, lambda boxes: boxes * scale) for x in (truth, found))


def _map_boxes(instances: Instances, change: Callable[[Tensor], Tensor]) -> Instances:
    field = "gt_boxes" if instances.has("gt_boxes") else "pred_boxes"
    fields = {**instances.get_fields(), field: Boxes(change(instances.get(field).tensor))}
    return Instances(instances.image_size, **fields)


def populated_window(boxes: np.ndarray, size: tuple[int, int], side: int) -> tuple[int, int, int, int]:
    """The window of at most ``side`` x ``side`` pixels that holds most box centres; the image's middle without boxes.

    Args:
        boxes: (M, 4) XYXY pixels.
        size: (H, W) of the image.
        side: of the window; less where the image is smaller.

    Returns:
        XYXY pixels.
    """
    height, width = (min(side, n) for n in size)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    middle = (size[1] - width) // 2, (size[0] - height) // 2
    # Candidates: the middle, and a grid over the image fine enough to lose few boxes at the edge.
    grid = [(x, y) for y in range(0, size[0] - height + 1, 16) for x in range(0, size[1] - width + 1, 16)]
    x, y = max([middle, *grid], key=lambda start: _inside(centres, (*start, start[0] + width, start[1] + height)).sum())
    return x, y, x + width, y + height


def crop(
    image: np.ndarray, truth: Instances, found: Instances, window: tuple[int, int, int, int]
) -> tuple[np.ndarray, Instances, Instances]:
    """The part of a scene in a window (XYXY pixels): its pixels, and the boxes whose centres lie in it, clipped."""
    x0, y0, x1, y1 = window
    end = torch.tensor([x1 - x0, y1 - y0] * 2)
    parts = []
    for instances, field in ((truth, "gt_boxes"), (found, "pred_boxes")):
        part = instances[_inside(instances.get(field).get_centers().numpy(), window)]
        parts.append(_map_boxes(part, lambda b: (b - torch.tensor([x0, y0] * 2)).clamp(min=0).minimum(end)))
    return image[y0:y1, x0:x1], *parts


def _inside(centres: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
    return ((centres >= window[:2]) & (centres < window[2:])).all(axis=1)


def _score_color(score: float, span: tuple[float, float]) -> tuple[int, ...]:
    low, high = span
    part = (score - low) / max(high - low, 1e-6)
    return tuple(round(255 * c) for c in SCORES(DIMMEST + (1 - DIMMEST) * part)[:3])


def _outline(image: np.ndarray, boxes: Boxes, colors: list[tuple[int, ...]]) -> np.ndarray:
    """Boxes two pixels wide on a dark rim, the last (lowest score) first so that the best lie on top."""
    out = Image.fromarray(image)
    draw = ImageDraw.Draw(out, "RGBA")
    for (x0, y0, x1, y1), color in reversed(list(zip(boxes.tensor.round().int().tolist(), colors, strict=True))):
        x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
        draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=(0, 0, 0, 110), width=4)
        draw.rectangle((x0, y0, x1, y1), outline=color, width=2)
    return np.asarray(out)


def _label(image: np.ndarray, boxes: Boxes, classes: Tensor, labels: list[str]) -> np.ndarray:
    """Labelled boxes in one colour a class: bright, and hues a golden section apart, whatever the number of classes."""
    colors = [hsv_to_rgb(((0.1 + 0.618 * c) % 1, 0.75, 1.0)) for c in classes.tolist()]
    drawn = Visualizer(image, Metadata()).overlay_instances(boxes=boxes, labels=labels, assigned_colors=colors)
    return drawn.get_image()


def _side_by_side(panels: list[np.ndarray], captions: list[tuple[str, str]], span: tuple | None) -> Image.Image:
    """Panels of one size in a row under their captions (bold, plain); ``span``: ends of the scale of scores, if any."""
    height, width = panels[0].shape[:2]
    font_size = int(np.clip(width / 36, 13, 30))
    top = MARGIN + round(1.8 * font_size)
    out = Image.new("RGB", (2 * width + 3 * MARGIN, top + height + MARGIN), "white")
    draw = ImageDraw.Draw(out)
    bold, plain = (ImageFont.truetype(findfont(FontProperties(weight=w)), font_size) for w in ("bold", "normal"))
    for i, (panel, (title, text)) in enumerate(zip(panels, captions, strict=True)):
        x = MARGIN + i * (width + MARGIN)
        out.paste(Image.fromarray(panel), (x, top))
        draw.text((x, MARGIN), title, "black", bold)
        draw.text((x + draw.textlength(title + "  ", bold), MARGIN), text, (90, 90, 90), plain)
    if span is not None:
        _draw_scale(out, plain, span, right=out.width - MARGIN)
    return out


def _draw_scale(out: Image.Image, font: ImageFont.FreeTypeFont, span: tuple[float, float], right: int) -> None:
    """The scale of scores, in the captions' line, ending at pixel ``right``."""
    draw, (low, high) = ImageDraw.Draw(out), span
    width, gap = round(4 * font.size), round(0.4 * font.size)
    top, bottom = MARGIN + round(0.3 * font.size), MARGIN + round(0.9 * font.size)
    draw.text((right, MARGIN), f"{high:.2f}", (90, 90, 90), font, anchor="ra")
    start = right - round(draw.textlength(f"{high:.2f}", font)) - gap - width
    for i in range(width):
        color = _score_color(low + (high - low) * i / width, span)
        draw.line((start + i, top, start + i, bottom), color)
    draw.text((start - gap, MARGIN), f"{low:.2f}", (90, 90, 90), font, anchor="ra")
