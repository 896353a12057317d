"""A detector with 8-bit integers, from the command to examples/onnx_detect.py, which runs it without torch."""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import clq
import numpy as np
import onnx
import pytest
from clq.commands.export import main
from clq.data.images import read_image
from clq.data.transforms import Letterbox
from clq.export.exported import ExportedDetector
from clq.export.formats import read_onnx
from detectron2.data.transforms import AugInput, ResizeShortestEdge
from PIL import Image

EXAMPLE = Path(__file__).parents[2] / "examples/onnx_detect.py"
HIDDEN = "torch", "torchvision", "cv2", "detectron2", "clq", "onnx", "matplotlib", "scipy"


@pytest.fixture(scope="module")
def shapes(tiny):
    """The validation images, 96 x 96 pixels."""
    return sorted((Path(tiny).parent / "shapes_val").iterdir())


@pytest.fixture(scope="module")
def exported(trained, shapes, tmp_path_factory):
    """The file, and what the command printed."""
    file, printed = tmp_path_factory.mktemp("int8") / "detector.onnx", io.StringIO()
    with contextlib.redirect_stdout(printed):
        main([str(trained), "--output", str(file), "--int8", "--calibration", str(shapes[0].parent)])
    return file, printed.getvalue()


def detect(*arguments):
    """Runs the example in a process in which it can import onnxruntime, numpy and Pillow but nothing of ours."""
    code = f"import runpy, sys; sys.modules.update(dict.fromkeys({HIDDEN})); sys.argv = sys.argv[1:]\n"
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, EXAMPLE, *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


def test_the_network_is_stored_as_integers(exported, shapes):
    file, printed = exported
    assert printed.splitlines()[2].startswith("with 8-bit integers on 4 images: 100% of the 10 best")
    model = onnx.load(file)
    assert {p.key: p.value for p in model.metadata_props}["precision"] == "int8"
    types = {x.name: x.data_type for x in model.graph.initializer}
    assert types["model.head.cls_logits.weight"] == types["model.head.box_pred.weight"] == onnx.TensorProto.FLOAT
    assert types["model.backbone.bottom_up.res2.0.conv1.weight_quantized"] == onnx.TensorProto.INT8


def test_the_example_detects_what_the_predictor_detects_with_the_same_file(exported, trained, shapes, tmp_path):
    done = detect(exported[0], *shapes, "--output", tmp_path / "pictures", "--json", tmp_path / "found.json")
    assert done.returncode == 0, done.stderr
    predictor = clq.load(trained)
    predictor.model = ExportedDetector(read_onnx(exported[0].read_bytes()))
    expected = [x for i, path in enumerate(shapes) for x in predictor(path).to_coco(i)]
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found) == len(expected) > 10
    for x, y in zip(found, expected, strict=True):
        assert x.keys() == y.keys()
        for name, value in y.items():
            near = pytest.approx(value, abs=1e-4) if isinstance(value, float | list) else str(value)
            assert (x[name] if isinstance(value, float | list) else str(x[name])) == near
    with Image.open(tmp_path / "pictures/0.png") as picture:
        assert picture.size == (96, 96)


def test_the_example_skips_what_is_no_image(exported, shapes, tmp_path):
    (broken := tmp_path / "broken.png").write_text("no image")
    deep = tmp_path / "deep.png"
    Image.fromarray(np.full((40, 40), 40000, np.uint16)).save(deep)
    done = detect(exported[0], broken, deep, shapes[0])
    assert done.returncode == 1
    assert f"{broken}: skipped" in done.stderr and f"{deep}: skipped: has more than 8 bits" in done.stderr
    assert done.stdout.startswith(f"{shapes[0]}: ")


def test_the_example_needs_a_detector(tmp_path):
    (tmp_path / "a.onnx").write_text("no model")
    done = detect(tmp_path / "a.onnx", "image.png")
    assert done.returncode == 1 and done.stderr.startswith("onnx_detect.py: ") and "Traceback" not in done.stderr


@pytest.mark.parametrize("size", [(61, 100), (100, 61), (230, 352), (20, 20)])
def test_the_example_resizes_as_the_predictor(size, script):
    resize = script("examples/onnx_detect.py").resize
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    for how, augmentation in (
        ({"mode": "shortest_edge", "size": 48, "max_size": 70}, ResizeShortestEdge(48, 70)),
        ({"mode": "shortest_edge", "size": 200, "max_size": 1000}, ResizeShortestEdge(200, 1000)),
        ({"mode": "letterbox", "size": [64, 96]}, Letterbox((64, 96))),
    ):
        expected = AugInput(image.copy())
        transform = augmentation(expected)
        found, scale, shift = resize(image, how)
        assert found.shape == expected.image.shape
        # OpenCV rounds once where it multiplies and adds, so values that are half-way may differ by one.
        difference = np.abs(found.astype(int) - expected.image)
        assert difference.max() <= 1 and (difference > 0).mean() < (1e-3 if how["mode"] == "letterbox" else 1e-9)
        corner = np.array([[30.0, 20.0]])
        assert (transform.apply_coords(corner.copy()) - shift) * scale == pytest.approx(corner)


def test_the_example_reads_images_upright(tmp_path, script):
    exif = Image.Exif()
    exif[274] = 6  # turned by 90 degrees
    Image.new("RGB", (40, 20), (255, 0, 0)).save(tmp_path / "turned.jpg", exif=exif)
    expected = read_image(str(tmp_path / "turned.jpg"), "RGB")
    assert (np.asarray(script("examples/onnx_detect.py").read(tmp_path / "turned.jpg")) == expected).all()


def test_speed_and_ap_of_a_file(exported, trained, shapes, run, capsys):
    common = ["--config-file", trained, "--files", exported[0]]
    assert run("tools/measure_export.py", "speed", *common, "--input", *shapes) == 0
    speeds = [line.split() for line in capsys.readouterr().out.splitlines() if "of the detector's time" in line]
    assert [x[0] for x in speeds] == ["detector", "detector.onnx"]
    folder = shapes[0].parent
    data = [{"name": "shapes_ap", "json": f"{folder}.json", "images": str(folder)}]
    opts = ["--opts", "DATASETS.COCO_JSON", data, "DATASETS.TEST", ["shapes_ap"]]
    assert run("tools/measure_export.py", "ap", *common, *opts) == 0
    aps = [line.split() for line in capsys.readouterr().out.splitlines() if "shapes_ap: AP" in line]
    assert [x[0] for x in aps] == ["detector", "detector.onnx"]
    detector, file = (float(x[3].rstrip(",")) for x in aps)
    assert detector > 20 and abs(file - detector) < 5


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["a.onnx", "--int8"], "give both or none"),
        (["a.onnx", "--calibration", "."], "give both or none"),
        (["a.onnx", "--int8", "--calibration", ".", "--raw"], "leave --raw"),
        (["a.pt2", "--int8", "--calibration", "."], "leave --raw and other formats out"),
        (["a.onnx", "--int8", "--calibration", "missing"], "missing: no such file or folder"),
    ],
)
def test_mistakes(arguments, message, run_clq, trained, capsys):
    assert run_clq("export", trained, "--output", *arguments) == 2
    assert message in capsys.readouterr().err
