"""The picture of the page: an image, and over it an SVG of boxes that a browser can point at."""

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from detectron2.structures import Instances
from PIL import Image

from clq.inference.inspection import Inspection

# Colours that people with any colour vision tell apart (Okabe and Ito), of classes and of offset groups.
COLORS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")


def encode(image: np.ndarray) -> str:
    """An RGB image (H, W, 3) as the address of a JPEG that contains it."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def numbers(found: Instances, index: int, quality: str) -> dict[str, float]:
    """The scores of a detection by their names.

    Args:
        found: detections of :meth:`Inspection.detections`.
        index: index of one of them.
        quality: name of the quality, such as ``predicted IoU``.
    """
    fields = {"score": "final_scores", "class score": "cls_scores", quality: "pred_quality"}
    return {name: found.get(field)[index].item() for name, field in fields.items() if found.has(field)}


def draw_boxes(found: Instances, names: Sequence[str], quality: str, selected: int | None = None) -> str:
    """Draws detections as elements of an SVG in pixels of the image.

    Small boxes lie above large ones, so that each can be pointed at. An element has the index of its detection as
    ``data-index``, and what the page shows beside the pointer as ``data-tip``.

    Args:
        found: detections of :meth:`Inspection.detections`.
        names: names of the model's classes.
        quality: name of the quality.
        selected: index of a detection that is drawn with a thicker line, or None.
    """
    elements = []
    for index in found.pred_boxes.area().argsort(descending=True).tolist():
        x1, y1, x2, y2 = found.pred_boxes.tensor[index].tolist()
        label = int(found.pred_classes[index])
        lines = [names[label], *(f"{name} {value:.3f}" for name, value in numbers(found, index, quality).items())]
        elements.append(
            f'<rect class="detection{" chosen" if index == selected else ""}" data-index="{index}" '
            f'data-tip="{html.escape("; ".join(lines), quote=True)}" x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" '
            f'height="{y2 - y1:.1f}" stroke="{COLORS[label % len(COLORS)]}"/>'
        )
    return "".join(elements)


def draw_taps(inspection: Inspection, level: int, location: int) -> str:
    """Draws the location that predicted a box as a cross and the taps of its alignment as circles, by offset group."""
    height, width = inspection.image.shape[:2]
    radius = max(height, width) / 300
    taps = inspection.taps(level, location)
    x, y = inspection.position(level, location)
    arm = 2 * radius
    elements = [
        f'<path class="location" d="M{x - arm:.1f} {y:.1f}h{2 * arm:.1f}M{x:.1f} {y - arm:.1f}v{2 * arm:.1f}"/>'
    ]
    for group, points in enumerate(() if taps is None else taps):
        color = COLORS[group % len(COLORS)]
        elements += [
            f'<circle class="tap" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{color}"/>' for x, y in points
        ]
    return "".join(elements)
