#!/usr/bin/env python3
"""Measure what reading image files takes: the peak memory of a process, and the time of a header.

    measure_images.py --megapixels 90          # the largest image that the default limits allow, in each format
    measure_images.py --headers FOLDER         # the milliseconds that the size of each image in a folder takes

Each large image is written to a temporary folder and read in a process of its own. The figure is how much more memory
than after its imports the process took at its peak. This needs Linux.
"""

import argparse
import io
import os
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable

from clq.data.images import read_size
from clq.errors import UserError
from clq.inference.files import find_images
from clq.utils.cli import run_cli
from PIL import Image

CHILD = """
import re, sys
import clq
from clq.data.images import read_image
from PIL import Image

def kib(name):
    with open("/proc/self/status") as f:
        return int(re.search(rf"{name}:\\s+(\\d+) kB", f.read())[1])

Image.init()
with open("/proc/self/clear_refs", "w") as f:
    f.write("5")  # the peak so far, that of the imports, is forgotten
before = kib("VmRSS")
read_image(sys.argv[1], "BGR", max_megapixels=float(sys.argv[2]))
print(kib("VmHWM") - before)
"""


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, default=90.0, help="size of the images (default: %(default)s)")
    parser.add_argument("--only", default="", help="measure only the images whose names contain this")
    parser.add_argument("--headers", metavar="FOLDER", help="measure the time of headers instead")
    return parser.parse_args(argv)


def png(side: int, depth: int, color: int, bits: int, interlaced: bool = False) -> bytes:
    """A PNG file with the same value everywhere.

    Args:
        side: width and height in pixels.
        depth: bits of a channel.
        color: type of color of the PNG specification.
        bits: bits of a pixel.
        interlaced: whether the pixels come in seven passes.
    """

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    compressor, data = zlib.compressobj(1), []
    for x, y, dx, dy in passes if interlaced else [(0, 0, 1, 1)]:
        row = b"\0" + b"\x55" * (-(-(side - x) // dx) * bits // 8)
        data += [compressor.compress(row) for _ in range(-(-(side - y) // dy))]
    header = struct.pack(">IIBBBBB", side, side, depth, color, 0, 0, interlaced)
    pixels = chunk(b"IDAT", b"".join([*data, compressor.flush()]))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def encoded(mode: str, side: int, name: str, **options) -> bytes:
    """A file that Pillow writes, with the tag of an image that has to be turned by 90 degrees where it has tags."""
    exif, f = Image.Exif(), io.BytesIO()
    exif[274] = 6
    tags = {} if name in ("BMP", "PPM") else {"exif": exif}
    Image.new(mode, (side, side), 0.5 if mode == "F" else 77).save(f, name, **tags, **options)
    return f.getvalue()


def makers(side: int) -> dict[str, Callable[[], bytes]]:
    """Functions that make the content of each file, by its name."""
    one_strip = {"compression": "tiff_deflate", "strip_size": 2**31 - 1}
    return {
        "grey16.png": lambda: png(side, 16, 0, 16),
        "rgba16.png": lambda: png(side, 16, 6, 64),
        "rgb16_interlaced.png": lambda: png(side, 16, 2, 48, interlaced=True),
        "baseline.jpg": lambda: encoded("RGB", side, "JPEG", subsampling=0),
        "progressive.jpg": lambda: encoded("RGB", side, "JPEG", subsampling=0, progressive=True),
        "progressive_cmyk.jpg": lambda: encoded("CMYK", side, "JPEG", subsampling=0, progressive=True),
        "float.tif": lambda: encoded("F", side, "TIFF"),
        "float_one_strip.tif": lambda: encoded("F", side, "TIFF", **one_strip),
        "rgba_one_strip.tif": lambda: encoded("RGBA", side, "TIFF", **one_strip),
        "lossy.webp": lambda: encoded("RGB", min(side, 16383), "WEBP", method=0),
        "lossless.webp": lambda: encoded("RGBA", min(side, 16383), "WEBP", lossless=True, method=0),
        "rgb.bmp": lambda: encoded("RGB", side, "BMP"),
        "rgb.ppm": lambda: encoded("RGB", side, "PPM"),
        "rgb10.ppm": lambda: b"P6 %d %d 1023 " % (side, side) + bytes(6 * side * side),
    }


def measure_memory(name: str, make: Callable[[], bytes], megapixels: float) -> float:
    """The growth in MiB of the peak of a process that reads a file.

    Args:
        name: name of the file.
        make: function that returns its content.
        megapixels: limit on the size of the image.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, name)
        with open(path, "wb") as f:
            f.write(make())
        command = [sys.executable, "-c", CHILD, path, str(megapixels)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{name}: could not be read ({done.stderr.strip().splitlines()[-1]}).")
    return int(done.stdout) / 1024


def main(argv=None):
    args = parse_args(argv)
    if args.headers:
        paths = find_images([args.headers])
        read_size(paths[0])  # the first call loads parts of Pillow
        start = time.perf_counter()
        for path in paths:
            read_size(path)
        seconds = time.perf_counter() - start
        print(f"{len(paths)} headers in {seconds:.2f} s, {seconds / len(paths) * 1e3:.3f} ms each")
        return
    Image.MAX_IMAGE_PIXELS = None  # of this process, which writes the images
    for name, make in makers(int((args.megapixels * 1e6) ** 0.5)).items():
        if args.only in name:
            print(f"{name:22s} {measure_memory(name, make, args.megapixels):6.0f} MiB", flush=True)


if __name__ == "__main__":
    run_cli(main)
