"""The page in a real browser: an image is dropped, boxes are pointed at and clicked, the ranking is changed."""

import re
import shutil
import socket

import clq
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="clq app needs gradio")
playwright = pytest.importorskip("playwright.sync_api", reason="drives the browser")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")


@pytest.fixture(scope="module")
def address(trained):
    from clq.app.page import Page

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    blocks = Page(clq.load(trained, opts=["MODEL.CLQ.SCORE_THRESH", 0.01]), "A <detector>").build()
    blocks.launch(server_name="127.0.0.1", server_port=port, share=False, prevent_thread_lock=True, quiet=True)
    yield f"http://127.0.0.1:{port}"
    blocks.close()


@pytest.fixture
def page(address):
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(address)
        yield page
        browser.close()


def test_a_dropped_image_is_detected_in_and_each_box_explains_itself(page, tmp_path):
    image = np.zeros((96, 128, 3), np.uint8)
    image[20:60, 30:90] = 230, 30, 30
    Image.fromarray(image).save(tmp_path / "image.png")
    page.get_by_label("number input").fill("0.02")
    page.locator("input[type=file]").set_input_files(tmp_path / "image.png")
    boxes = page.locator(".detection")
    boxes.last.wait_for(state="attached", timeout=20_000)
    before = boxes.count()

    boxes.last.hover(force=True)
    tip = page.locator(".tip")
    name, *numbers = tip.inner_text().split("\n")
    assert name in ("red", "blue")
    values = dict(re.fullmatch(r"(.*) (\d\.\d{3})", line).groups() for line in numbers)
    assert set(values) == {"score", "class score", "predicted IoU"}
    product = float(values["class score"]) * float(values["predicted IoU"]) ** 0.3
    assert float(values["score"]) == pytest.approx(product, abs=2e-3)

    boxes.last.click(force=True)
    page.locator(".tap").first.wait_for(state="attached")
    assert page.locator(".tap").count() % 9 == 0
    assert values["score"] in page.locator("#details table").inner_text()
    page.get_by_alt_text("plot").or_(page.locator(".matplotlib img, img[alt*=plot]")).first.wait_for()

    page.get_by_label("class score", exact=True).check()
    page.locator(".tap").first.wait_for(state="detached")  # nothing is chosen any more
    assert boxes.count() >= before  # the class score is never below the product

    page.get_by_label("number input").fill("1")
    page.locator("text=0 of").wait_for()
    assert boxes.count() == 0


def test_a_file_that_is_no_image_is_named_and_the_page_goes_on(page, tmp_path):
    (tmp_path / "image.png").write_bytes(b"no image")
    page.locator("input[type=file]").set_input_files(tmp_path / "image.png")
    page.locator(".toast-body, [data-testid=toast-body]").first.wait_for()
    assert page.locator(".detection").count() == 0
