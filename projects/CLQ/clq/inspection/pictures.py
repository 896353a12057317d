"""Draws images with their objects and the locations that are trained towards them."""

import colorsys
import functools
import math
import os
from collections.abc import Sequence

import numpy as np
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont

from clq.inspection.training_view import Positives, View

Color = tuple[int, int, int]
MARKED: Color = (255, 0, 0)
# From the finest level on: light to dark, so that neighbours differ in print, too.
LEVELS: tuple[Color, ...] = (
    (255, 255, 255),
    (255, 225, 50),
    (255, 130, 20),
    (220, 30, 110),
    (110, 30, 190),
    (20, 20, 60),
)
GAP = 8  # pixels between the pictures of a contact sheet
_LARGE = 640  # pixels from which on lines and squares are thicker


def draw_view(
    view: View,
    class_names: Sequence[str],
    side: int,
    *,
    marked: np.ndarray | None = None,
    captions: Sequence[str] = (),
    levels: Sequence[str] = (),
) -> Image.Image:
    """Draws an image with its boxes, the names of their classes, the positives, and lines of text below.

    Each object has a colour. A positive is a square in the colour of its level with a rim in that of its object, and
    larger on coarser levels.

    Args:
        view: what is drawn.
        class_names: names of the K classes.
        side: length in pixels that the longer side of the image gets.
        marked: (X, 4) further boxes, XYXY in pixels of the image, which are drawn in red; they may lie beyond it.
        captions: lines of text, which are cut where they are too long.
        levels: names of the levels, fine to coarse, for a legend; empty draws none.
    """
    scale = side / max(view.image.shape[:2])
    width, height = (max(1, round(n * scale)) for n in view.image.shape[1::-1])
    resample = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    image = Image.fromarray(view.image).resize((width, height), resample)
    draw, font, thick = ImageDraw.Draw(image), _font(max(11, side // 48)), 2 + (side > _LARGE)
    colors = [_color(i) for i in range(len(view.boxes))]
    boxes = view.boxes * scale
    for box, color in zip(boxes, colors, strict=True):
        _rectangle(draw, box, color, thick)
    for box in np.empty((0, 4)) if marked is None else marked * scale:
        _rectangle(draw, box.clip(0, [width - 1, height - 1] * 2), MARKED, 2 * thick)
    for box, label, color in zip(boxes, view.classes, colors, strict=True):
        _label(draw, box, class_names[label], color, font, width)
    if view.positives is not None:
        _squares(draw, view.positives, colors, scale, side > _LARGE)
    return _with_captions(image, captions, levels, font)


def contact_sheet(pictures: Sequence[Image.Image], columns: int, levels: Sequence[str]) -> Image.Image:
    """Places pictures in rows, above a legend of the levels.

    Args:
        pictures: the pictures, of any size.
        columns: number of pictures in a row.
        levels: names of the levels, fine to coarse; empty draws no legend.
    """
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    heights, cell = [max(p.height for p in row) for row in rows], max(p.width for p in pictures)
    out = Image.new("RGB", (len(rows[0]) * (cell + GAP) + GAP, sum(heights) + GAP * (len(rows) + 1)), "white")
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        for i, picture in enumerate(row):
            out.paste(picture, (GAP + i * (cell + GAP) + (cell - picture.width) // 2, top))
        top += height + GAP
    return _with_captions(out, (), levels, _font(14))


def picture_name(number: int, file_name: str) -> str:
    """The file name of a picture, such as ``003_photo.jpg``: its number and the name of its image."""
    return f"{number:03d}_{os.path.splitext(os.path.basename(file_name))[0]}.jpg"


@functools.lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(findfont(FontProperties()), size)


def _color(index: int) -> Color:
    """A bright colour; hues of successive objects are a golden section apart."""
    red, green, blue = colorsys.hsv_to_rgb((0.33 + 0.618 * index) % 1, 0.7, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _level_color(level: int) -> Color:
    return LEVELS[min(level, len(LEVELS) - 1)]


def _rectangle(draw: ImageDraw.ImageDraw, box: np.ndarray, color: Color, width: int) -> None:
    x0, y0, x1, y1 = (round(float(value)) for value in box)
    x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
    draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=(0, 0, 0), width=width + 2)
    draw.rectangle((x0, y0, x1, y1), outline=color, width=width)


def _squares(
    draw: ImageDraw.ImageDraw, positives: Positives, colors: Sequence[Color], scale: float, large: bool
) -> None:
    centers = (positives.centers * scale).round().astype(int).tolist()
    for (x, y), level, owner in zip(centers, positives.levels.tolist(), positives.objects.tolist(), strict=True):
        half = 4 + level if large else 2 + level // 2
        square = (x - half, y - half, x + half, y + half)
        draw.rectangle(square, fill=_level_color(level), outline=colors[owner], width=1 + large)


def _label(
    draw: ImageDraw.ImageDraw, box: np.ndarray, text: str, color: Color, font: ImageFont.FreeTypeFont, width: int
) -> None:
    """Writes a text above a box, or in it where there is no space above."""
    length, height = math.ceil(font.getlength(text)) + 4, round(1.2 * font.size)
    x = min(max(round(float(box[0])), 0), max(width - length, 0))
    y = max(round(float(box[1])), 0)
    y = y - height if y >= height else y
    draw.rectangle((x, y, x + length, y + height), fill=color)
    draw.text((x + 2, y + height / 2), text, "black", font, anchor="lm")


def _with_captions(
    image: Image.Image, captions: Sequence[str], levels: Sequence[str], font: ImageFont.FreeTypeFont
) -> Image.Image:
    """Adds lines of text and a legend of the levels below an image."""
    line = round(1.5 * font.size)
    out = Image.new("RGB", (image.width, image.height + line * (len(captions) + bool(levels))), "white")
    out.paste(image)
    draw, y = ImageDraw.Draw(out), image.height + line // 2
    for text in captions:
        draw.text((2, y), _cut(text, font, image.width - 4), "black", font, anchor="lm")
        y += line
    x, half = 2 + GAP, round(0.4 * font.size)
    for i, level in enumerate(levels):
        draw.rectangle((x - half, y - half, x + half, y + half), fill=_level_color(i), outline=(90, 90, 90))
        draw.text((x + 2 * half, y), level, "black", font, anchor="lm")
        x += 4 * half + math.ceil(font.getlength(level)) + GAP
    if levels:
        draw.text((x, y), "locations that are trained towards an object, by level", (90, 90, 90), font, anchor="lm")
    return out


def _cut(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The beginning of a text that fits into a width in pixels, with an ellipsis if it is not all."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"
