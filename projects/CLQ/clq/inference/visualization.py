"""Draws detections on an image, and ground truth beside detections."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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

GROUND_TRUTH = (64, 224, 255)  # cyan, which neither earth nor leaves have
SCORES = colormaps["plasma"]
DIMMEST = 0.45  # where the scale of scores begins in the colour map, which leaves pink, orange and yellow
PANEL_SIDES = (480, 3000)  # limits in pixels: smaller images are enlarged, but at most 4 times, and larger ones reduced
MARGIN = 20  # pixels around the panels and between them


@dataclass(frozen=True)
class Scene:
    """An image with its ground truth and its detections.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        truth: ground truth with ``gt_boxes`` and ``gt_classes``.
        detections: detections with ``pred_boxes``, ``pred_classes`` and ``scores``; all of them are drawn.
    """

    image: np.ndarray
    truth: Instances
    detections: Instances


def draw_detections(image: np.ndarray, detections: Instances, class_names: Sequence[str]) -> np.ndarray:
    """Draws boxes labelled with class and score, or with the score only if there is a single class.

    Args:
        image: (H, W, 3) uint8, RGB.
        detections: detections with ``pred_boxes``, ``pred_classes`` and ``scores``; all of them are drawn.
        class_names: names of the K classes.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    prefix = [f"{name} " for name in class_names] if len(class_names) > 1 else [""]
    labels = [f"{prefix[c]}{s:.2f}" for c, s in zip(detections.pred_classes, detections.scores.tolist(), strict=True)]
    return _label(image, detections.pred_boxes, detections.pred_classes, labels)


def compare(scene: Scene, class_names: Sequence[str], threshold: float) -> Image.Image:
    """Draws the ground truth on the left and the detections on the right, with a caption above each.

    A single class is drawn as thin boxes without text, coloured by score, so that hundreds of objects remain legible.
    Several classes are drawn as labelled boxes; see :func:`draw_detections`.

    Args:
        scene: what is drawn.
        class_names: names of the K classes.
        threshold: lowest score of the detections, for the caption and the scale of colours.

    Returns:
        The picture.
    """
    scene = _rescale(scene)
    image, truth, detections = scene.image, scene.truth, scene.detections
    span = None
    if len(class_names) == 1:
        what, scores = class_names[0], detections.scores.tolist()
        # The scale ends at the best score, rounded up to a tenth, because joint scores are rarely close to 1.
        span = threshold, math.ceil(round(10 * max(scores, default=1.0), 3)) / 10
        left = _outline(image, truth.gt_boxes, [GROUND_TRUTH] * len(truth))
        right = _outline(image, detections.pred_boxes, [_score_color(s, span) for s in scores])
    else:
        what = "object"
        left = _label(image, truth.gt_boxes, truth.gt_classes, [class_names[c] for c in truth.gt_classes])
        right = draw_detections(image, detections, class_names)
    captions = [
        ("Ground truth", f"{len(truth)} × {what}"),
        ("Detections", f"{len(detections)} × {what}, score ≥ {threshold:.2f}"),
    ]
    return _side_by_side([left, right], captions, span)


def _rescale(scene: Scene) -> Scene:
    """Resizes a scene so that its longer side is within ``PANEL_SIDES``."""
    (low, high), (height, width) = PANEL_SIDES, scene.image.shape[:2]
    scale = min(max(1.0, min(low / max(height, width), 4.0)), high / max(height, width))
    if scale == 1:
        return scene
    resample = Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.BOX
    resized = Image.fromarray(scene.image).resize((round(width * scale), round(height * scale)), resample)
    return Scene(
        image=np.asarray(resized),
        truth=_map_boxes(scene.truth, lambda boxes: boxes * scale),
        detections=_map_boxes(scene.detections, lambda boxes: boxes * scale),
    )


def _map_boxes(instances: Instances, change: Callable[[Tensor], Tensor]) -> Instances:
    """Returns a copy of instances with the box tensor, (M, 4) XYXY, replaced by ``change`` of it."""
    field = "gt_boxes" if instances.has("gt_boxes") else "pred_boxes"
    fields = {**instances.get_fields(), field: Boxes(change(instances.get(field).tensor))}
    return Instances(instances.image_size, **fields)


def populated_window(boxes: np.ndarray, size: tuple[int, int], side: int) -> tuple[int, int, int, int]:
    """Finds the window with the most box centres; without boxes, it is in the middle of the image.

    Args:
        boxes: (M, 4) XYXY in pixels.
        size: (height, width) of the image.
        side: side of the window in pixels; the window is smaller where the image is.

    Returns:
        The window, XYXY in pixels.
    """
    height, width = (min(side, n) for n in size)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    middle = (size[1] - width) // 2, (size[0] - height) // 2
    # The candidates are the middle and a grid over the image that is fine enough to lose few boxes at the edge.
    grid = [(x, y) for y in range(0, size[0] - height + 1, 16) for x in range(0, size[1] - width + 1, 16)]
    x, y = max([middle, *grid], key=lambda start: _inside(centres, (*start, start[0] + width, start[1] + height)).sum())
    return x, y, x + width, y + height


def crop(scene: Scene, window: tuple[int, int, int, int]) -> Scene:
    """Cuts out a part of a scene.

    Args:
        scene: the whole scene.
        window: XYXY in pixels.

    Returns:
        The pixels in the window, and the boxes whose centres are in it, clipped to it and relative to its corner.
    """
    x0, y0, x1, y1 = window
    start, size = torch.tensor([x0, y0] * 2), torch.tensor([x1 - x0, y1 - y0] * 2)

    def part(instances: Instances, boxes: Boxes) -> Instances:
        kept = instances[_inside(boxes.get_centers().numpy(), window)]
        return _map_boxes(kept, lambda b: (b - start).clamp(min=0).minimum(size))

    return Scene(
        image=scene.image[y0:y1, x0:x1],
        truth=part(scene.truth, scene.truth.gt_boxes),
        detections=part(scene.detections, scene.detections.pred_boxes),
    )


def _inside(centres: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
    """Returns which centres, (M, 2) XY, are in a window, (M,) bool."""
    return np.asarray(((centres >= window[:2]) & (centres < window[2:])).all(axis=1))


def _score_color(score: float, span: tuple[float, float]) -> tuple[int, ...]:
    """Returns the RGB colour of a score; ``span`` is the lowest and the highest score of the scale."""
    low, high = span
    fraction = (score - low) / max(high - low, 1e-6)
    return tuple(round(255 * c) for c in SCORES(DIMMEST + (1 - DIMMEST) * fraction)[:3])


def _outline(image: np.ndarray, boxes: Boxes, colors: list[tuple[int, ...]]) -> np.ndarray:
    """Draws boxes two pixels wide with a dark rim, in reverse order so that the highest scores are on top."""
    out = Image.fromarray(image)
    draw = ImageDraw.Draw(out, "RGBA")
    for (x0, y0, x1, y1), color in reversed(list(zip(boxes.tensor.round().int().tolist(), colors, strict=True))):
        x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
        draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=(0, 0, 0, 110), width=4)
        draw.rectangle((x0, y0, x1, y1), outline=color, width=2)
    return np.asarray(out)


def _label(image: np.ndarray, boxes: Boxes, classes: Tensor, labels: list[str]) -> np.ndarray:
    """Draws labelled boxes in a bright colour per class. Hues of successive classes are a golden section apart."""
    colors = [hsv_to_rgb(((0.1 + 0.618 * c) % 1, 0.75, 1.0)) for c in classes.tolist()]
    drawn = Visualizer(image, Metadata()).overlay_instances(boxes=boxes, labels=labels, assigned_colors=colors)
    return drawn.get_image()


def _side_by_side(
    panels: list[np.ndarray], captions: list[tuple[str, str]], span: tuple[float, float] | None
) -> Image.Image:
    """Places panels beside each other.

    Args:
        panels: images of the same size.
        captions: bold and plain text above each panel.
        span: lowest and highest score of the scale that is drawn; None draws no scale.
    """
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
    """Draws the scale of scores in the line of the captions, so that it ends at pixel ``right``."""
    draw, (low, high) = ImageDraw.Draw(out), span
    width, gap = round(4 * font.size), round(0.4 * font.size)
    top, bottom = MARGIN + round(0.3 * font.size), MARGIN + round(0.9 * font.size)
    draw.text((right, MARGIN), f"{high:.2f}", (90, 90, 90), font, anchor="ra")
    start = right - round(draw.textlength(f"{high:.2f}", font)) - gap - width
    for i in range(width):
        color = _score_color(low + (high - low) * i / width, span)
        draw.line((start + i, top, start + i, bottom), color)
    draw.text((start - gap, MARGIN), f"{low:.2f}", (90, 90, 90), font, anchor="ra")
