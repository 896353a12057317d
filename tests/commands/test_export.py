"""clq export, through its command line. Most tests write TorchScript, which takes the least time."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import clq
import onnxruntime
import pytest
import torch
from clq.commands import export
from clq.errors import UserError
from clq.export import formats
from detectron2.modeling.meta_arch import RetinaNet


@pytest.fixture
def shapes(tiny):
    """Folder of the validation images, 96 x 96 pixels."""
    return Path(tiny).parent / "shapes_val"


def refused(capsys):
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and error.startswith("clq export: ")
    return error


def test_onnx_of_a_training(trained, shapes, run_clq, tmp_path, capsys):
    file = tmp_path / "detector.onnx"
    assert run_clq("export", trained, "--output", file, "--images", shapes, "--max-images", 3) == 0
    written, compared = capsys.readouterr().out.splitlines()
    assert written.startswith(f"{file}: onnx, ")
    assert compared.startswith("compared on 5 images, ")  # three alone, and two in a batch
    session = onnxruntime.InferenceSession(file)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == ["blue", "red"]
    assert json.loads(metadata["resize"]) == {"mode": "none"}
    assert json.loads(metadata["mean"]) == [123.675, 116.28, 103.53]
    assert metadata["channels"] == "RGB" and metadata["alignment"] == "grid_sample"
    assert [x.name for x in session.get_inputs()] == ["images", "sizes"]
    names = ["boxes", "scores", "labels", "counts", "cls_scores", "predicted_iou"]
    assert [x.name for x in session.get_outputs()] == names


def test_raw_torchscript_by_its_ending(trained, run_clq, tmp_path, capsys):
    file = tmp_path / "detector.pt"
    assert run_clq("export", "--config-file", trained, "--raw", "--output", file) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("compared on synthetic 5 images, ")
    extra = {formats.METADATA: ""}
    boxes, scores, cls_scores, ious = torch.jit.load(file, _extra_files=extra)(
        torch.zeros(2, 3, 50, 64), torch.full((2, 2), 50)
    )
    assert json.loads(extra[formats.METADATA])["raw"] == "true"
    locations = 8 * 8 + 4 * 4 + 2 * 2  # 50 x 64 pixels, padded to 64 x 64
    assert boxes.shape == (2, locations, 4) and scores.shape == cls_scores.shape == (2, locations, 2)
    assert ious.shape == (2, locations)


def test_a_file_that_differs_is_not_kept(trained, shapes, run_clq, tmp_path, capsys, monkeypatch):
    def finds_nothing(images, sizes):
        n = len(images)
        labels = torch.full((n, 100), -1)
        return torch.zeros(n, 100, 4), torch.zeros(n, 100), labels, torch.zeros(n, dtype=torch.int64)

    broken = formats.FORMATS["torchscript"]._replace(read=lambda content: finds_nothing)
    monkeypatch.setitem(formats.FORMATS, "torchscript", broken)
    (tmp_path / "detector.pt").write_text("as it was")
    assert run_clq("export", trained, "--output", tmp_path / "detector.pt", "--images", shapes) == 2
    assert "differs from the detector on an image of 96 x 96: not in the file: box" in refused(capsys)
    assert [x.name for x in tmp_path.iterdir()] == ["detector.pt"]
    assert (tmp_path / "detector.pt").read_text() == "as it was"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere/a.onnx"], "there is no folder nowhere; create it"),
        (["a.onnx", "--images", "missing"], "missing: no such file or folder"),
        (["a.onnx", "--opts", "INPUT.MIN_SIZE_TEST", "(0, 96)"], "INPUT.MIN_SIZE_TEST"),
    ],
)
def test_mistakes(arguments, message, trained, run_clq, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_clq("export", trained, "--output", *arguments) == 2
    assert message in refused(capsys)
    assert not list(tmp_path.iterdir())


def test_a_model_of_detectron2_is_refused(run_clq, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(clq, "load", lambda *args, **options: SimpleNamespace(model=RetinaNet.__new__(RetinaNet)))
    assert run_clq("export", "a detector", "--output", tmp_path / "a.onnx") == 2
    assert "RetinaNet: cannot be exported" in refused(capsys)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "give one detector"),
        (["a", "--config-file", "b"], "give one detector"),
        (["a", "--opset", "17"], "choose one from 18 to 23"),
        (["a", "--alignment", "deform_conv", "--opset", "18"], "choose one from 19 to 23"),
    ],
)
def test_mistakes_in_the_arguments(arguments, message, run_clq, capsys):
    assert run_clq("export", *arguments, "--output", "a.onnx") == 2
    assert message in capsys.readouterr().err


def test_a_deformable_backbone_needs_an_opset_that_has_its_convolution(trained, run_clq, tmp_path, capsys, monkeypatch):
    written = []

    def write(graph, metadata, opset):
        written.append(opset)
        raise UserError("written")

    monkeypatch.setitem(formats.FORMATS, "onnx", formats.FORMATS["onnx"]._replace(write=write))
    arguments = "export", trained, "--output", tmp_path / "a.onnx"
    assert run_clq(*arguments) == 2
    monkeypatch.setattr(export, "TorchvisionDeformConv", torch.nn.Conv2d)  # as if its convolutions were deformable
    assert run_clq(*arguments) == 2
    assert written == [18, 19]
    assert run_clq(*arguments, "--opset", 18) == 2
    assert "--opset 18: has no deformable convolution" in capsys.readouterr().err
    assert written == [18, 19]


def test_without_onnxruntime(trained, run_clq, tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    assert run_clq("export", trained, "--output", tmp_path / "a.onnx") == 2
    assert "ONNX needs onnxruntime; run pip install onnxruntime" in refused(capsys)
