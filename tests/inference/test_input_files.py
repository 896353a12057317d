"""Input files, streamed lines, and names of pictures."""

import os
import threading

import pytest
from clq.data.image_checks import FORMATS
from clq.errors import UserError
from clq.inference.files import IMAGE_SUFFIXES, PictureNames, find_images, read_lines
from PIL import Image


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).touch()


def test_files_are_found_once_in_the_order_of_the_inputs(tmp_path):
    touch(tmp_path, "b.png", "A.JPG", "c[1].png", "notes.txt", "raw.dat", "sub/d.png")
    inputs = ["raw.dat", "c[1].png", ".", "*b.png", "sub/*"]
    found = find_images([str(tmp_path / x) for x in inputs])
    # A file that is named is used whatever its suffix; a folder stands for its images, without its subfolders.
    assert [p.replace("/./", "/") for p in found] == [
        str(tmp_path / x) for x in ("raw.dat", "c[1].png", "A.JPG", "b.png", "sub/d.png")
    ]


def test_subfolders_by_flag_and_by_two_stars(tmp_path):
    touch(tmp_path, "b.png", "a/b/c.PGM", "a/notes.txt", "z/d.ppm")
    expected = [str(tmp_path / x) for x in ("a/b/c.PGM", "b.png", "z/d.ppm")]
    assert find_images([str(tmp_path)], recursive=True) == expected
    assert find_images([str(tmp_path / "**" / "*.p*")]) == expected[1:]  # this file system knows case
    assert find_images([str(tmp_path)]) == expected[1:2]


@pytest.mark.parametrize("name", ["gone.png", "*.png", "sub"])
@pytest.mark.parametrize("recursive", [False, True])
def test_an_input_that_names_no_file_is_refused(name, recursive, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.jpg").touch()
    with pytest.raises(UserError, match=f"{tmp_path}/") as e:
        find_images([str(tmp_path / "a.jpg"), str(tmp_path / name)], recursive=recursive)
    assert str(tmp_path / name) in str(e.value)


def test_every_format_that_is_read_has_its_usual_suffixes():
    Image.init()
    known = {suffix for suffix, name in Image.EXTENSION.items() if name in (*FORMATS, "MPO")}
    assert set(IMAGE_SUFFIXES) == known - {".apng"}  # which nobody uses for photographs


def test_lines_come_as_soon_as_they_are_written():
    reader, writer = os.pipe()
    lines, seen = read_lines(reader), []
    os.write(writer, b"a.jpg\r\n\nb c.jpg\nd")
    seen = [next(lines), next(lines)]
    threading.Timer(0.05, lambda: (os.write(writer, b"e.jpg"), os.close(writer))).start()
    assert [*seen, *lines] == ["a.jpg", "b c.jpg", "de.jpg"]
    os.close(reader)


def test_picture_names_are_unique():
    paths = ["a/x.png", "b/x.png", "x_2.png", "c/X.png", "d/x.jpg", "e/x.raw", "f/x", "g/y.pgm"]
    names = PictureNames()
    assert [names.name(path) for path in paths] == [
        "x.png",
        "x_2.png",
        "x_2_2.png",
        "X_3.png",
        "x.jpg",
        "x.raw.png",
        "x_4.png",
        "y.pgm.png",
    ]
