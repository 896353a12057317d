"""Whatever xml, label files and data.yaml hold, they are read or refused in one line."""

import tempfile
from pathlib import Path

import pytest
from clq.data.formats.coco import check_content
from clq.data.formats.findings import Findings
from clq.data.formats.readers import fingerprint, read_source
from clq.data.formats.source import Source
from fuzzing import accepting_or_refusing, damaged_bytes, damaged_text
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

XML = """<annotation><filename>a.png</filename><size><width>20</width><height>10</height></size>
<object><name>cat</name><difficult>0</difficult>
<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></object></annotation>"""
WORDS = st.sampled_from(
    ["nan", "-1", "1e400", "9" * 5000, "<", "&x;", "<object>", "0.5", "", ":", "\0", "٣", "~", "*a", "&a"]
)
YAML = "path: .\ntrain: images\nval: [images]\nnc: 2\nnames:\n  0: ant\n  1: bee\nkpt_shape: [2, 2]\n"


def use(source):
    """All that is done with a data set before its images are read."""
    with accepting_or_refusing():
        fingerprint(source, "fuzzed")
        findings = Findings("fuzzed", skip=True)
        content = check_content(read_source(source, findings), findings, masks=None)
        assert {a["image_id"] for a in content.annotations} <= {image["id"] for image in content.images}
        for entry in findings.left_out:
            assert entry.reason


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "a.png"
    Image.new("RGB", (20, 10)).save(path)
    return path.read_bytes()


@pytest.mark.fuzz
@given(content=st.one_of(damaged_bytes([XML.encode()]), damaged_text([XML], WORDS).map(lambda text: text.encode())))
def test_xml_is_read_or_refused(content, image):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "a.xml").write_bytes(content)
        Path(folder, "b.xml").write_text(XML)
        Path(folder, "a.png").write_bytes(image)
        use(Source("voc", folder))


@pytest.mark.fuzz
@given(content=damaged_text(["0 .5 .5 .5 .5\n1 .1 .1 .2 .1 .2 .2\n"], WORDS))
def test_a_label_file_is_read_or_refused(content, image):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "a.txt").write_bytes(content.encode("utf-8", "surrogatepass"))
        Path(folder, "a.png").write_bytes(image)
        use(Source("yolo", folder, names=("ant", "bee")))


@pytest.mark.fuzz
@given(content=damaged_text([YAML], WORDS), split=st.sampled_from([None, "train", "val"]))
def test_a_data_yaml_is_read_or_refused(content, split, image):
    with tempfile.TemporaryDirectory() as folder:
        for name, data in (("images/a.png", image), ("labels/a.txt", b"0 .5 .5 .5 .5")):
            Path(folder, name).parent.mkdir()
            Path(folder, name).write_bytes(data)
        Path(folder, "data.yaml").write_bytes(content.encode("utf-8", "surrogatepass"))
        use(Source("yolo", f"{folder}/data.yaml", split=split))
