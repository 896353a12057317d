#!/usr/bin/env python3
"""Detect objects with a file that `clq export --format onnx` wrote. It needs onnxruntime, numpy and Pillow alone.

    python onnx_detect.py detector.onnx photo.jpg other.jpg --output pictures --json detections.json

The images are read, resized and given to the network as `clq predict` does it, so the detections are the same. The json
file is a list in COCO's results format, of all detections that the file itself keeps; pictures show the better ones.
Copy what you need of this script: `Detector` is the part that finds objects.
"""

import argparse
import json
import os
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

# The name of the output `predicted_iou` in the results, by the metadata `quality`. Others have "quality".
QUALITY_NAMES = {"iou": "predicted_iou", "centerness": "centerness"}
COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000", "#f032e6", "#000075")


class Detector:
    """An exported detector.

    Args:
        path: ONNX file of `clq export`, with decode and NMS.
        threads: number of threads; 0 lets onnxruntime choose.

    Attributes:
        classes: names of the classes.
        category_ids: their ids in the data set that the detector was trained on.
    """

    def __init__(self, path, threads=0):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(path, options, providers=onnxruntime.get_available_providers())
        metadata = self._session.get_modelmeta().custom_metadata_map
        if "clq_version" not in metadata or json.loads(metadata["raw"]):
            raise ValueError(f"{path}: is no detector with NMS of `clq export`; export it without --raw.")
        self.classes, self.category_ids = json.loads(metadata["classes"]), json.loads(metadata["category_ids"])
        self._resize, self._channels = json.loads(metadata["resize"]), metadata["channels"]
        self._outputs = [output.name for output in self._session.get_outputs()]
        quality = QUALITY_NAMES.get(metadata["quality"], "quality")
        self._part_names = {"cls_scores": "cls_score", "predicted_iou": quality}

    def __call__(self, image):
        """Detects the objects in an image of Pillow.

        Returns:
            ``boxes`` (D, 4), x1, y1, x2 and y2 in pixels of the image, ``scores`` (D,), ``labels`` (D,), indices of
            ``classes``, and the factors of the scores (D,) that the detector has, all by name, best detection first.
        """
        image = image.convert("L" if self._channels == "L" else "RGB")
        pixels = np.asarray(image).reshape(image.height, image.width, -1)
        pixels, scale, shift = resize(pixels[:, :, ::-1] if self._channels == "BGR" else pixels, self._resize)
        batch = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32)
        sizes = np.array([pixels.shape[:2]], np.int64)
        found = dict(zip(self._outputs, self._session.run(None, {"images": batch, "sizes": sizes}), strict=True))
        count = int(found.pop("counts")[0])
        found = {self._part_names.get(name, name): values[0, :count] for name, values in found.items()}
        boxes = (found["boxes"] - np.tile(shift, 2)) * np.tile(scale, 2)
        boxes = boxes.clip(0, [image.width, image.height] * 2).astype(np.float32)
        has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        return {name: values[has_area] for name, values in {**found, "boxes": boxes}.items()}


def resize(pixels, how):
    """Makes an image (H, W, C) uint8 the network's input, in the way that the metadata ``resize`` describes.

    Returns:
        The input (H', W', C) uint8; and ``scale`` and ``shift``, (x, y) each, with which a point p of the input is the
        point (p - shift) * scale of the image.
    """
    height, width = pixels.shape[:2]
    if how["mode"] == "none":
        return pixels, np.ones(2), np.zeros(2)
    if how["mode"] == "letterbox":
        frame_height, frame_width = how["size"]
        ratio = min(frame_width / width, frame_height / height)
        shift = np.array([frame_width - ratio * width, frame_height - ratio * height]) / 2
        return warp(pixels, ratio, shift, (frame_height, frame_width)), np.full(2, 1 / ratio), shift
    scale = how["size"] / min(height, width)
    new_height, new_width = (how["size"], scale * width) if height < width else (scale * height, how["size"])
    if max(new_height, new_width) > how["max_size"]:
        scale = how["max_size"] / max(new_height, new_width)
        new_height, new_width = new_height * scale, new_width * scale
    new_height, new_width = int(new_height + 0.5), int(new_width + 0.5)
    if min(new_height, new_width) < 1:
        raise ValueError(f"{width} x {height} pixels: too thin for the detector's size")
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels))
    resized = np.asarray(image.resize((new_width, new_height), Image.Resampling.BILINEAR))
    return (
        resized.reshape(new_height, new_width, -1),
        np.array([width / new_width, height / new_height]),
        np.zeros(2),
    )


def warp(pixels, ratio, shift, size):
    """Scales an image (H, W, C) by ``ratio`` into a black frame of ``size``, its corner at ``shift`` (x, y).

    This is OpenCV's ``warpPerspective`` with bilinear interpolation, which does not average the pixels that it skips.
    Everything is float32, as there, because many values lie half-way between two integers.
    """
    (height, width, channels), (frame_height, frame_width) = pixels.shape, size
    framed = np.zeros((height + 4, width + 4, channels), np.float32)  # two black pixels on each side of the image
    framed[2:-2, 2:-2] = pixels

    def taps(length, start, limit):
        """The pixel to the left of each of ``length`` positions, in ``framed``, and how far each is from it."""
        position = np.arange(length, dtype=np.float32) * np.float32(1 / ratio) - np.float32(start / ratio)
        first = np.floor(position)
        return first.clip(-2, limit).astype(int) + 2, position - first

    x, right = taps(frame_width, shift[0], width)
    y, below = taps(frame_height, shift[1], height)
    right, below = right[:, None], below[:, None, None]
    rows = framed[:, x] + right * (framed[:, x + 1] - framed[:, x])
    return np.rint(rows[y] + below * (rows[y + 1] - rows[y])).clip(0, 255).astype(np.uint8)


def read(path):
    """An upright image of Pillow; its colors are 8 bits deep, since deeper ones could be scaled in many ways."""
    with Image.open(path) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"has more than 8 bits a channel ({image.mode}); convert it first")
        return ImageOps.exif_transpose(image)


def to_coco(found, detector, path, image_id):
    """The detections in an image in COCO's results format, as `clq predict --json` writes it."""
    results = []
    for i, (x1, y1, x2, y2) in enumerate(found["boxes"].tolist()):
        label = int(found["labels"][i])
        parts = {name: float(values[i]) for name, values in found.items() if name not in ("boxes", "scores", "labels")}
        results.append(
            {
                "image_id": image_id,
                "category_id": detector.category_ids[label],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": float(found["scores"][i]),
                "file_name": path,
                "category_name": detector.classes[label],
                **parts,
            }
        )
    return results


def draw(image, found, classes, threshold):
    """The image with a labelled box for each detection whose score is at least ``threshold``."""
    picture = image.convert("RGB")
    canvas, font = ImageDraw.Draw(picture), ImageFont.load_default(max(12, image.height // 40))
    for box, score, label in reversed([*zip(found["boxes"].tolist(), found["scores"], found["labels"], strict=True)]):
        if score < threshold:
            continue
        color, text = COLORS[label % len(COLORS)], f"{classes[label]} {score:.2f}"
        canvas.rectangle(box, outline=color, width=max(2, image.height // 200))
        _, _, right, bottom = canvas.textbbox((0, 0), text, font=font)
        corner = min(box[0], max(0, image.width - right - 4)), max(0, box[1] - bottom - 4)
        canvas.rectangle((*corner, corner[0] + right + 4, corner[1] + bottom + 4), fill=color)
        canvas.text((corner[0] + 2, corner[1] + 2), text, fill="white", font=font)
    return picture


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="ONNX file of `clq export`")
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--output", help="folder for the pictures, which are named after their images")
    parser.add_argument("--json", help="file for the detections")
    parser.add_argument("--threshold", type=float, default=0.4, help="lowest score to draw (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="threads of onnxruntime; default: its own choice")
    args = parser.parse_args(argv)
    try:
        detector = Detector(args.model, args.threads)
    except Exception as e:  # onnxruntime's errors have no common class
        sys.exit(f"onnx_detect.py: {e}")
    results, skipped = [], 0
    if args.output:
        os.makedirs(args.output, exist_ok=True)
    for i, path in enumerate(args.images):
        try:
            image = read(path)
            found = detector(image)
        except (OSError, ValueError, UnidentifiedImageError) as e:
            skipped += 1
            print(f"{path}: skipped: {e}", file=sys.stderr)
            continue
        results += to_coco(found, detector, path, i)
        print(f"{path}: {len(found['boxes'])} detections, {(found['scores'] >= args.threshold).sum()} drawn")
        if args.output:
            picture = draw(image, found, detector.classes, args.threshold)
            picture.save(os.path.join(args.output, os.path.splitext(os.path.basename(path))[0] + ".png"))
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump(results, f)
    return int(skipped > 0)


if __name__ == "__main__":
    sys.exit(main())
