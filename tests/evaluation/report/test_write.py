"""The page, the files beside it, and the command that writes them."""

import base64
import html.parser
import io
import json
import re

import pytest
from clq.evaluation.report.analysis import analyse, evaluate_coco
from clq.evaluation.report.write import plain, write_report
from made_runs import BOX, REFERENCES, found, recorded, run
from PIL import Image

PICTURES = {"confusion.png", "headroom.png", "precision_recall.png", "reliability.png", "score_iou.png", "tide.png"}
NUMBERS = {"metrics.json", "report.html", "thresholds.json", "thresholds_precision.json"}


class Page(html.parser.HTMLParser):
    """The pictures, links, ids and open tags of a page."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.links, self.ids, self.open = [], [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.sources += [attributes[key] for key in ("src",) if key in attributes]
        self.links += [attributes[key] for key in ("href",) if key in attributes]
        self.ids |= {attributes["id"]} if "id" in attributes else set()
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page_of(folder):
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert all(source.startswith("data:image/") for source in page.sources)  # nothing is loaded
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links) and page.links
    assert "http" not in text
    return text, page


def analysed(made):
    return analyse(made, evaluate_coco(made))


def no_constant(name):
    raise AssertionError(f"{name} is not json")


def test_the_page_and_the_files_beside_it(tmp_path):
    made = recorded()
    for name in made.truth.file_names:
        Image.new("RGB", (200, 200)).save(tmp_path / name)
    analysis = analysed(made)
    write_report([analysis], str(tmp_path / "report"), str(tmp_path))
    assert {p.name for p in (tmp_path / "report").iterdir()} == PICTURES | NUMBERS
    _, page = page_of(tmp_path / "report")
    assert len(page.sources) == len(PICTURES) + len(analysis.images) and 30 < len(analysis.images) <= 40
    for source in page.sources:
        Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).verify()
    numbers = json.loads((tmp_path / "report/metrics.json").read_text(), parse_constant=no_constant)["recorded"]
    assert numbers["tide"]["cost"]["Miss"] == pytest.approx(REFERENCES["references"]["tidecv"]["costs"]["Miss"])
    assert numbers["trust"]["final score"]["class"]["fish"]["laece"] is None
    thresholds = json.loads((tmp_path / "report/thresholds.json").read_text())
    assert list(thresholds) == ["cat", "dog", "bird"] and all(0 <= t <= 1 for t in thresholds.values())


@pytest.mark.parametrize(
    "objects, results, names",
    [
        ([(0, 0, BOX)], [], ("cat",)),
        ([], [found(0, 0, BOX, 0.5)], ("cat",)),
        ([], [], ("cat", "dog")),
        ([(0, 0, BOX, "crowd")], [found(0, 0, BOX, 0.5)], ("cat",)),
        ([(0, 0, BOX)], [found(0, 0, BOX, 0.5)], ("cat",)),
        ([(0, 0, BOX)], [found(0, 0, [300, 300, 9, 9], 0.5)], ("cat", "dog")),
        ([(0, 0, BOX)], [found(0, 0, [0, 0, 0, 0], 0.0)], ("cat", "dog")),
        ([(0, 0, BOX)], [found(0, 0, BOX, 0.5, cls_score=0, predicted_iou=0, level=0)], ("cat", "dog")),
    ],
)
def test_odd_runs_have_a_page_too(objects, results, names, tmp_path):
    write_report([analysed(run(objects, results, names=names))], str(tmp_path))
    page_of(tmp_path)
    json.loads((tmp_path / "metrics.json").read_text(), parse_constant=no_constant)


def test_names_are_text_and_not_html(tmp_path):
    evil = "<script>alert('$a_b')</script>"
    made = run(
        [(0, 0, BOX), (0, 1, BOX)], [found(0, 0, BOX, 0.5), found(0, 1, BOX, 0.5)], name=evil, names=(evil, "b&b")
    )
    made.truth.file_names[0] = evil
    write_report([analysed(made)], str(tmp_path), str(tmp_path))
    text, _ = page_of(tmp_path)
    assert "<script" not in text and "&lt;script&gt;" in text and "b&amp;b" in text
    assert evil in json.loads((tmp_path / "thresholds.json").read_text())


def test_several_runs_stand_side_by_side(tmp_path):
    made = recorded()
    better = run([(0, 0, BOX)], [found(0, 0, BOX, 0.9)], name="better")
    worse = run([(0, 0, BOX)], [found(0, 0, [50, 0, 100, 100], 0.9)], name="worse")
    write_report([analysed(better), analysed(worse)], str(tmp_path))
    text, _ = page_of(tmp_path)
    assert re.search(r"<th>better</th><th>worse</th>", text)
    assert (tmp_path / "confusion_1.png").exists() and (tmp_path / "thresholds_2.json").exists()
    assert list(json.loads((tmp_path / "metrics.json").read_text())) == ["better", "worse"]
    assert made.name == "recorded"


def test_numbers_that_json_lacks_are_null():
    assert plain({1: [float("nan"), float("inf"), 2, None, True], "a": "b"}) == {
        "1": [None, None, 2, None, True],
        "a": "b",
    }
