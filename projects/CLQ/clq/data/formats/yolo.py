"""YOLO: images with a text file each, as COCO json.

A line of a label file is a class and a box (class, center x, center y, width, height) or a polygon (class, x1, y1, x2,
y2, ...), in fractions of the upright image. Boxes and polygons are in pixels here, rounded to 1/1000: six digits, which
is what tools write, place a box of an image of 640 pixels to 1/2000, so a box of whole pixels is read as such. A
polygon gives its box and a segmentation.

The reader of ``supervision`` (0.31) is not used: it reads no splits of data.yaml, takes images without a label file for
images without objects in silence, ends at the first fault, and returns float32 that is not rounded: the corners of
BCCD's boxes, of whole pixels, are wrong by up to 4e-4 px (2e-5 if the text has 17 digits).
"""

import os

from clq.data.formats.files import finite, read_lines
from clq.data.formats.findings import Findings, Places, shown
from clq.data.formats.source import Source
from clq.data.formats.yolo_files import YoloFiles, find_yolo
from clq.data.headers import Header, read_headers
from clq.errors import reason_of

_DIGITS = 3  # of pixels
_BEYOND = 0.01  # by which a coordinate may be outside of 0 and 1, because of rounding
_MAX_LINES = 100_000  # of one image


def read_yolo(source: Source, findings: Findings) -> dict:
    """Reads a YOLO data set.

    Args:
        source: its source.
        findings: receives what is found.

    Returns:
        What a json in COCO format would hold. The id of a category is its number in the label files.

    Raises:
        UserError: as :func:`~clq.data.formats.yolo_files.find_yolo`.
    """
    files = find_yolo(source, findings.name)
    orphans = sorted(files.existing.keys() - set(files.labels.values())) if files.whole else []
    if orphans:
        findings.note("label files have no image, and are not used", orphans[0], len(orphans))
    reader = _Reader(files, source, findings)
    chosen = sorted(path for path in files.labels if source.part is None or source.part.holds(path))
    headers = read_headers(source.root, chosen, source.max_megapixels)
    for path, header in zip(chosen, headers, strict=True):
        reader.read(path, header)
    categories = [{"id": i, "name": name} for i, name in enumerate(files.names)]
    return {"images": reader.images, "annotations": reader.annotations, "categories": categories}


class _Reader:
    """Makes images and annotations of label files."""

    def __init__(self, files: YoloFiles, source: Source, findings: Findings):
        self._files, self._root, self._findings = files, source.root, findings
        self._places = findings.places = Places("line")
        self.images: list[dict] = []
        self.annotations: list[dict] = []

    def read(self, path: str, header: Header | str) -> None:
        """Adds an image and what is in its label file.

        Args:
            path: path of the image.
            header: its header, or what is wrong with it.
        """
        name, label = self._name(path), self._files.labels[path]
        if isinstance(header, str):
            self._findings.fault("files cannot be used", f"image {path} {header}", image=name)
            return
        lines: list[str] = []
        if label not in self._files.existing:
            self._findings.note("images have no label file, and count as images without objects", path)
        else:
            try:
                lines = read_lines(label)
                if len(lines) > _MAX_LINES:
                    raise ValueError(f"it has {len(lines)} lines; at most {_MAX_LINES} are read")
            except (OSError, ValueError) as e:
                what = f"{label}: cannot be read ({reason_of(e)}); write it again"
                self._findings.fault("label files cannot be used", what, image=name)
                return
        image = {"id": len(self.images) + 1, "file_name": name, "width": header.width, "height": header.height}
        self.images.append(image)
        for number, line in enumerate(lines, 1):
            if line:
                self._add_line(line, image, label, number)

    def _name(self, path: str) -> str:
        """The path of an image relative to the folder of the data set, if it is inside of it."""
        return os.path.relpath(path, self._root) if path.startswith(f"{self._root}/") else path

    def _add_line(self, line: str, image: dict, label: str, number: int) -> None:
        parsed = parse_line(line.split(), len(self._files.names), self._files.keypoint_values)
        if isinstance(parsed, str):
            item = f"{label}: line {number}"
            self._findings.fault("lines of label files are wrong", f"{item} {parsed}", image["file_name"], item)
            return
        category, values = parsed
        box, polygon = to_pixels(values, image["width"], image["height"])
        record = {"id": self._places.add(label, number), "image_id": image["id"], "category_id": category}
        record |= {"bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        self.annotations.append(record if polygon is None else {**record, "segmentation": [polygon]})


def parse_line(words: list[str], num_classes: int, keypoint_values: int = 0) -> tuple[int, list[float]] | str:
    """Parses a line of a label file.

    Args:
        words: its words.
        num_classes: number of the names of classes.
        keypoint_values: numbers after a box, for keypoints, which are not used.

    Returns:
        The class, and the four numbers of a box or the six or more of a polygon; or what is wrong, in words that follow
        the name of the line.
    """
    if keypoint_values and len(words) == 5 + keypoint_values:
        words = words[:5]
    if len(words) != 5 and (len(words) < 7 or len(words) % 2 == 0):
        like = ", as if its last one were a confidence" if len(words) == 6 else ""
        return f"has {len(words)} values{like}; a box has 5 (class x y w h), and a polygon 7, 9, ... (class x1 y1 ...)"
    number = finite(words[0])
    if number is None or number != int(number):
        return f"has class {shown(words[0])}; it must be an integer"
    if not 0 <= number < num_classes:
        return f"has class {int(number)}, but there are names for {num_classes} classes, from 0 on"
    values: list[float] = []
    for word in words[1:]:
        value = finite(word)
        if value is None or not -_BEYOND <= value <= 1 + _BEYOND:
            return f"has coordinate {shown(word)}; it must be a fraction of the image, between 0 and 1"
        values.append(value)
    if len(values) == 4 and min(values[2:]) < 0:
        return f"has a box of negative size, {words[3]} x {words[4]}"
    return int(number), values


def to_pixels(values: list[float], width: int, height: int) -> tuple[list[float], list[float] | None]:
    """Converts a box or a polygon to pixels.

    Args:
        values: of :func:`parse_line`.
        width, height: size of the image in pixels.

    Returns:
        The box, [x, y, width, height], and the polygon, [x1, y1, x2, y2, ...], or None.
    """
    if len(values) == 4:
        x, y, w, h = values
        box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
        return [round(v, _DIGITS) for v in box], None
    polygon = [round(v * (height if i % 2 else width), _DIGITS) for i, v in enumerate(values)]
    left, top = min(polygon[::2]), min(polygon[1::2])
    size = max(polygon[::2]) - left, max(polygon[1::2]) - top
    return [left, top, *(round(side, _DIGITS) for side in size)], polygon
