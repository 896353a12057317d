"""Small files that ask for much memory or time are refused by their header; each limit is named."""

import io
import json
import struct
import subprocess
import sys
import zlib

import clq
import pytest
from clq.data.images import ImageError, read_image, read_options, read_size
from clq.data.mapper import build_test_mapper
from hostile_images import grey_tiff, png, png_chunk, tags_that_share_their_bytes, tiff
from PIL import Image

MB = 1_000_000


def jpeg(*segments: bytes, scans: int = 1) -> bytes:
    """A JPEG file with further segments in its header, each with its marker, and with its scan repeated."""
    f = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 100, 50)).save(f, "JPEG")
    content = f.getvalue()
    scan = content.index(b"\xff\xda")
    header = b"".join(s[:2] + struct.pack(">H", len(s)) + s[2:] for s in segments)
    return content[:2] + header + content[2:scan] + content[scan:-2] * scans + content[-2:]


def webp(width: int, height: int) -> bytes:
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunks = b"VP8X" + struct.pack("<II", 10, 0) + canvas
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


BOMB = zlib.compress(bytes(50 * MB))
SHARED = tags_that_share_their_bytes(2000, 40_000)  # 64 KB that stand for 80 MB
HOSTILE = {
    "pixels.png": (png(60_000, 60_000, 8, 2, b"\0"), "far more pixels than INPUT.MAX_MEGAPIXELS 90; raise"),
    "canvas.webp": (webp(16_000, 16_000), "16000 x 16000 pixels, more than INPUT.MAX_MEGAPIXELS 90"),
    "pixels.ppm": (b"P6 60000 60000 255\n", "far more pixels than INPUT.MAX_MEGAPIXELS 90"),
    "pixels.bmp": (
        b"BM" + struct.pack("<IIIIiiHHIIIIII", 54, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
        "far more pixels than INPUT.MAX_MEGAPIXELS 90",
    ),
    "more.png": (png(10_000, 10_000, 8, 2, b"\0"), "10000 x 10000 pixels, more than INPUT.MAX_MEGAPIXELS 90; raise"),
    "profile.png": (png(1, 1, 8, 0, b"\0\0", png_chunk(b"iCCP", b"a\0\0" + BOMB)), "MAX_TEXT_CHUNK"),
    "text.png": (png(1, 1, 8, 0, b"\0\0", png_chunk(b"zTXt", b"a\0\0" + BOMB)), "MAX_TEXT_CHUNK"),
    "exif.jpg": (jpeg(b"\xff\xe1Exif\0\0" + SHARED[:65_000]), "its EXIF data has "),
    "exif.png": (png(1, 1, 8, 0, b"\0\0", png_chunk(b"eXIf", SHARED)), "its EXIF data has "),
    "pictures.jpg": (jpeg(b"\xff\xe2MPF\0" + SHARED[:65_000]), "its EXIF data has "),
    "long_exif.jpg": (jpeg(*[b"\xff\xe1Exif\0\0" + bytes(60_000)] * 20), "1.0 MiB of EXIF data"),
    "metadata.jpg": (jpeg(*[b"\xff\xe5" + bytes(65_000)] * 1100), "more than 64 MiB of metadata"),
    "scans.jpg": (jpeg(scans=600), "more than 500 scans"),
    "tags.tif": (tags_that_share_their_bytes(4000, 1_000_000), "MiB of tags"),
    "directory.tif": (tiff([(34665, 4, 1, 8), *[(40000 + i, 7, 500_000, 0) for i in range(100)]]), "MiB of tags"),
    "numbers.tif": (tiff([(273, 4, 20_000_000, 8)]), "76 MiB of tags"),
    "many.tif": (tiff([(i, 3, 1, 1) for i in range(5000)]), "5000 tags"),
    "tile.tif": (grey_tiff(8, 8, (322, 4, 1, 65_000), (323, 4, 1, 65_000)), "tiles of 4225 megapixels"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_small_file_that_asks_for_much_is_refused(name, tmp_path):
    content, words = HOSTILE[name]
    path = str(tmp_path / name)
    with open(path, "wb") as f:
        f.write(content)
    with pytest.raises(ImageError) as e:
        read_image(path, "RGB")
    assert str(e.value).startswith(f"image {path}: ") and words in str(e.value)
    if name != "scans.jpg":  # of which the header is in order
        with pytest.raises(ImageError):
            read_size(path)


def test_all_hostile_files_together_take_little_memory(tmp_path):
    """In a process of its own, because the peak of a process never sinks."""
    paths = []
    for name, (content, _) in HOSTILE.items():
        paths.append(str(tmp_path / name))
        (tmp_path / name).write_bytes(content)
    script = """if True:
        import json, resource, sys
        import clq
        from clq.data.images import ImageError, read_image
        before, refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
        for path in json.loads(sys.argv[1]):
            try:
                read_image(path, "RGB")
            except ImageError:
                refused += 1
        print(refused, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    done = subprocess.run([sys.executable, "-c", script, json.dumps(paths)], capture_output=True, text=True, check=True)
    refused, kib = map(int, done.stdout.split())
    assert refused == len(paths) and kib < 200 * 1024


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_a_file_of_absurd_size_is_refused_before_it_is_read(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(png(1, 1, 8, 0, b"\0\0"))
    with open(path, "r+b") as f:
        f.truncate(1 << 42)  # 4 TiB, of which nothing is on the disk
    with pytest.raises(ImageError, match=r"MB, more than 8 bytes for each of INPUT\.MAX_MEGAPIXELS 90; raise that"):
        read_size(str(path))


def test_the_limit_is_a_key(tmp_path):
    Image.new("RGB", (2000, 1000)).save(tmp_path / "a.png")
    record = {"file_name": str(tmp_path / "a.png")}
    cfg = clq.setup_cfg(None, ["MODEL.DEVICE", "cpu", "INPUT.MAX_MEGAPIXELS", 1.5])
    with pytest.raises(ImageError, match=r"2000 x 1000 pixels, more than INPUT\.MAX_MEGAPIXELS 1\.5"):
        build_test_mapper(cfg)(record)
    with pytest.raises(ImageError, match=r"INPUT\.MAX_MEGAPIXELS 1\.5"):
        read_size(record["file_name"], max_megapixels=read_options(cfg)["max_megapixels"])
    cfg.INPUT.MAX_MEGAPIXELS = 2.0
    assert build_test_mapper(cfg)(record)["height"] == 1000


def test_a_limit_above_that_of_pillow_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow refuses twice as many
    Image.new("L", (30, 20)).save(tmp_path / "a.png")
    assert read_size(str(tmp_path / "a.png"), max_megapixels=0.001) == (30, 20)
