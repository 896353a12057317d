"""tools/measure_images.py measures files that are read in full."""

import runpy
from pathlib import Path

import pytest
from clq.data.images import read_image

TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "measure_images.py"))


@pytest.mark.parametrize("name", TOOL["makers"](0))
def test_each_measured_file_is_an_image_of_the_size_that_is_asked_for(name, tmp_path):
    (tmp_path / name).write_bytes(TOOL["makers"](24)[name]())
    assert read_image(str(tmp_path / name), "RGB").shape == (24, 24, 3)


def test_headers_of_a_folder_are_timed(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(TOOL["png"](8, 8, 2, 24))
    TOOL["main"](["--headers", str(tmp_path)])
    assert capsys.readouterr().out.startswith("1 headers in ")
