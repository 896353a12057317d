"""Draws detections with Pillow, in a tenth of the time that matplotlib needs: boxes, and labels beside them."""

import colorsys
import functools
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]
_Rectangle = tuple[int, int, int, int]  # XYXY


@dataclass(frozen=True)
class Label:
    """The text of a detection.

    Attributes:
        name: class, which may be empty.
        details: score and the like, the most important first. The last ones are left out where a box is too small.
    """

    name: str
    details: tuple[str, ...] = ()

    def versions(self) -> list[str]:
        """The whole text, and shorter ones that leave out more and more details, but for the first."""
        counts = range(len(self.details), 0, -1) if self.details else [0]
        return [" ".join(filter(None, (self.name, *self.details[:count]))) for count in counts]


def class_color(label: int) -> Color:
    """A bright colour for a class. The hues of successive classes are a golden section apart."""
    red, green, blue = colorsys.hsv_to_rgb((0.1 + 0.618 * label) % 1, 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_boxes(image: np.ndarray, boxes: np.ndarray, classes: Sequence[int], labels: Sequence[Label]) -> Image.Image:
    """Draws boxes in the colour of their classes, with a dark rim that shows them on any background.

    A label is above its box, or else where it covers no other label. It is as bright as its class, with black or white
    text. The first boxes are drawn on top, so that the best detections remain legible in a crowd.

    Args:
        image: (H, W, 3) uint8, RGB.
        boxes: (N, 4) XYXY in pixels.
        classes: class of each box, from 0.
        labels: text of each box.

    Returns:
        A new RGB image.
    """
    picture = Image.fromarray(np.ascontiguousarray(image))
    draw = ImageDraw.Draw(picture)
    short = min(picture.size)
    width, font = max(1, round(short / 250)), _font(int(np.clip(short / 32, 11, 36)))
    corners = [_whole_pixels(box, picture.size) for box in boxes.tolist()]
    colors = [class_color(label) for label in classes]
    for (x0, y0, x1, y1), color in reversed(list(zip(corners, colors, strict=True))):
        draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=(0, 0, 0), width=width + 2)
        draw.rectangle((x0, y0, x1, y1), outline=color, width=width)
    places: list[tuple[_Rectangle, str]] = []
    for corner, label in zip(corners, labels, strict=True):
        places.append(_place(corner, label, font, picture.size, [rectangle for rectangle, _ in places]))
    for (rectangle, text), color in reversed(list(zip(places, colors, strict=True))):
        draw.rectangle(rectangle, fill=color, outline=(0, 0, 0))
        draw.text((rectangle[0] + _margin(font), _middle(rectangle)), text, _text_color(color), font, anchor="lm")
    return picture


def _whole_pixels(box: Sequence[float], size: tuple[int, int]) -> _Rectangle:
    """The pixels of a box within an image of this (width, height), at least two in each direction."""
    x0, y0, x1, y1 = (round(value) for value in box)
    x0, y0 = min(max(x0, 0), size[0] - 2), min(max(y0, 0), size[1] - 2)
    return x0, y0, max(min(x1, size[0]) - 1, x0 + 1), max(min(y1, size[1]) - 1, y0 + 1)


def _place(
    box: _Rectangle, label: Label, font: ImageFont.FreeTypeFont, size: tuple[int, int], taken: Sequence[_Rectangle]
) -> tuple[_Rectangle, str]:
    """Finds the place of a label: the first that is within the image and covers no other label, if there is one.

    Returns:
        The rectangle, XYXY, and the version of the text in it.
    """
    x0, y0, x1, y1 = box
    texts = label.versions()
    text = next((t for t in texts if font.getlength(t) <= 1.5 * (x1 - x0)), texts[-1])
    width = round(font.getlength(text)) + 2 * _margin(font)
    height = round(1.25 * font.size)
    left, right = min(x0, size[0] - width), x1 - width
    tops = (left, y0 - height), (left, y0), (left, y1), (right, y0 - height), (right, y1), (left, y1 - height)
    places = [(max(x, 0), y, max(x, 0) + width - 1, y + height - 1) for x, y in tops if 0 <= y <= size[1] - height]
    free = (p for p in places if not any(_overlap(p, other) for other in taken))
    default = places[0] if places else (max(left, 0), 0, max(left, 0) + width - 1, height - 1)
    return next(free, default), text


def _overlap(one: _Rectangle, other: _Rectangle) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]


def _middle(rectangle: _Rectangle) -> float:
    return (rectangle[1] + rectangle[3]) / 2


def _margin(font: ImageFont.FreeTypeFont) -> int:
    return max(2, round(font.size / 5))


def _text_color(color: Color) -> Color:
    """Black on bright colours and white on dark ones, by the luma of ITU-R BT.601."""
    luma = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    return (0, 0, 0) if luma > 130 else (255, 255, 255)


@functools.lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which has Latin, Greek, Cyrillic and more. It comes with matplotlib, which is slow to import."""
    spec = importlib.util.find_spec("matplotlib")
    assert spec is not None and spec.submodule_search_locations  # Detectron2 requires it
    folder = os.path.join(spec.submodule_search_locations[0], "mpl-data", "fonts", "ttf")
    return ImageFont.truetype(os.path.join(folder, "DejaVuSans.ttf"), size)
