"""Exported detectors against the detectors themselves: the same detections, whatever the size of image and batch."""

import json
import sys

import onnx
import pytest
import torch
from clq.errors import UserError
from clq.export.check import check_detections, check_raw
from clq.export.exported import as_inputs
from clq.export.formats import FORMATS, METADATA
from clq.export.graph import DetectorGraph
from tiny_detectors import VARIANTS, build

# None is a multiple of the pyramid's divisor, and none is the size with which graphs are traced.
SIZES = [(96, 131), (70, 45), (33, 200)]
LOW = {name: ["MODEL.CLQ.SCORE_THRESH", 0.05] for name in ("tood", "tood_warmup")}  # whose scores are low
NMS = {"onnx": True, "torch-export": False, "torchscript": False}


def make_images():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (3, *size), generator=generator).float() for size in SIZES]


IMAGES = make_images()
BATCHES = [IMAGES[1:2], IMAGES, IMAGES[:1] + IMAGES[2:], IMAGES[2:]]
# Of torch.export, whose files need two cells in each row and column of the coarsest level.
LARGE = [[torch.nn.functional.pad(x, (80, 80, 110, 110)) for x in batch] for batch in BATCHES]


def lively(variant, *opts):
    """A detector with random weights that detects something, and thresholds at which something is left out."""
    model = build(variant, "MODEL.CLQ.SCORE_THRESH", 0.2, "MODEL.CLQ.NMS_THRESH", 0.3, *opts).eval()
    torch.manual_seed(2)
    for head in getattr(model.head, "heads", [model.head]):
        torch.nn.init.normal_(head.cls_logits.weight, std=0.5)
        torch.nn.init.constant_(head.cls_logits.bias, 0.0)
    return model


def two_levels(variant):
    """:func:`lively` with two levels only, because the time of an export grows with the number of levels."""
    return lively(variant, "MODEL.CLQ.IN_FEATURES", ["p3", "p5"])


@pytest.mark.parametrize("counts", ["pairs", "locations"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_graph_detects_what_its_detector_detects(variant, counts):
    model = lively(variant, *LOW.get(variant, []), "MODEL.CLQ.TOPK_COUNTS", counts, "MODEL.CLQ.TOPK_CANDIDATES", 40)
    agreement = check_detections(DetectorGraph(model), model, BATCHES)
    assert agreement.images == 7
    assert agreement.detections > 20
    assert agreement.borderline == 0


def test_entries_after_the_detections_are_empty():
    model = lively("clq", "TEST.DETECTIONS_PER_IMAGE", 300)
    boxes, scores, labels, counts, cls_scores, ious = DetectorGraph(model)(*as_inputs(IMAGES))
    assert boxes.shape == (3, 300, 4) and scores.shape == labels.shape == cls_scores.shape == ious.shape == (3, 300)
    for i, count in enumerate(counts.tolist()):
        assert 0 < count < 300
        assert scores[i, :count].min() > 0.2
        torch.testing.assert_close(scores[i, :count], cls_scores[i, :count] * ious[i, :count] ** 0.3)
        assert (labels[i, :count] >= 0).all() and (labels[i, count:] == -1).all()
        for rest in (boxes, scores, cls_scores, ious):
            assert not rest[i, count:].any()


@pytest.fixture(scope="module", params=FORMATS)
def exported(request):
    """Format, detector, the content of its file, and what runs it."""
    model = two_levels("clq")
    graph = DetectorGraph(model, onnx=NMS[request.param]).eval()
    content = FORMATS[request.param].write(graph, {"classes": '["a"]'}, 18)
    return request.param, model, content, FORMATS[request.param].read(content)


def test_a_file_detects_what_its_detector_detects(exported):
    name, model, _, runner = exported
    batches = LARGE if name == "torch-export" else BATCHES
    agreement = check_detections(runner, model, batches)
    assert agreement.images == 7
    assert agreement.detections > 20


def test_a_file_finds_nothing_in_black_images(exported):
    _, model, _, runner = exported
    outputs = runner(*as_inputs([torch.zeros(3, 140, 172)]))
    expected = model([{"image": torch.zeros(3, 140, 172)}])[0]["instances"]
    assert outputs[3].tolist() == [len(expected)]


def test_metadata(exported, tmp_path):
    name, _, content, _ = exported
    (path := tmp_path / "file").write_bytes(content)
    if name == "onnx":
        assert {"classes": '["a"]'}.items() <= {p.key: p.value for p in onnx.load(path).metadata_props}.items()
        return
    files = {METADATA: ""}
    load = torch.export.load if name == "torch-export" else torch.jit.load
    load(str(path), **{"extra_files" if name == "torch-export" else "_extra_files": files})
    assert json.loads(files[METADATA]) == {"classes": '["a"]'}


@pytest.fixture(scope="module")
def onnx_with_ties():
    """VFNet whose class scores are all equal, and its ONNX file with DeformConv."""
    model = two_levels("vfnet")
    model.head.cls_logits.register_forward_hook(lambda module, inputs, logits: logits.sign())
    return model, FORMATS["onnx"].write(DetectorGraph(model, alignment="deform_conv", onnx=True).eval(), {}, 22)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="onnxruntime for Python 3.10 has no DeformConv")
def test_equal_scores_keep_the_order_of_the_detector(onnx_with_ties):
    model, content = onnx_with_ties
    expected = model([{"image": IMAGES[0]}])[0]["instances"]
    boxes, scores, labels, counts = FORMATS["onnx"].read(content)(*as_inputs(IMAGES[:1]))
    assert len(expected) == counts.item() > 10
    assert len(scores[0, : len(expected)].unique()) == 1
    assert labels[0, : len(expected)].tolist() == expected.pred_classes.tolist()
    torch.testing.assert_close(boxes[0, : len(expected)], expected.pred_boxes.tensor, rtol=0, atol=0.01)


def test_onnx_with_deformable_convolutions(onnx_with_ties):
    graph = onnx.load_from_string(onnx_with_ties[1]).graph
    assert sum(node.op_type == "DeformConv" for node in graph.node) == 4  # two on each level
    assert not any(node.op_type == "GridSample" for node in graph.node)


def test_onnx_files_say_nothing_of_this_machine(onnx_with_ties):
    assert b"/clq/" not in onnx_with_ties[1] and b"site-packages" not in onnx_with_ties[1]


def test_raw_outputs():
    model = lively("clq_lite")
    graph = DetectorGraph(model, raw=True).eval()
    boxes, scores, cls_scores, ious = graph(*as_inputs(IMAGES[:1]))
    locations = sum(-(-160 // s) * -(-96 // s) for s in (8, 16, 32, 64, 128))  # 96 x 131 pixels, padded to 96 x 160
    assert boxes.shape == (1, locations, 4) and scores.shape == cls_scores.shape == (1, locations, 5)
    assert ious.shape == (1, locations)
    best = model([{"image": IMAGES[0]}])[0]["instances"]
    assert scores.max().item() == pytest.approx(best.scores[0].item())
    assert check_raw(graph, graph, BATCHES).images == 7


def test_pixels_of_the_padding_change_nothing():
    model, (images, sizes) = lively("clq"), as_inputs(IMAGES)
    graph = DetectorGraph(model)
    outside = torch.ones_like(images, dtype=torch.bool)
    for mask, (height, width) in zip(outside, sizes.tolist(), strict=True):
        mask[:, :height, :width] = False
    for before, after in zip(graph(images, sizes), graph(images.masked_fill(outside, 99.0), sizes), strict=True):
        torch.testing.assert_close(before, after, rtol=0, atol=0)


def test_a_graph_leaves_its_detector_as_it_was():
    model = lively("clq")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    backend = model.head.align.backend
    DetectorGraph(model)
    assert model.head.align.backend == backend
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda boxes, scores, *rest: (boxes + 0.02, scores, *rest), "box"),
        (lambda boxes, scores, *rest: (boxes, scores + 2e-4, *rest), "box"),
        (lambda boxes, scores, labels, *rest: (boxes, scores, labels ^ 1, *rest), "class"),
        (lambda boxes, scores, labels, counts, *rest: (boxes, scores, labels, counts - 1, *rest), "not in the file"),
        (lambda *outputs: (*outputs[:5], outputs[5] + 2e-4), "pred_quality by 2.0e-04"),
    ],
)
def test_what_differs_is_refused(change, message):
    model = lively("clq", "TEST.DETECTIONS_PER_IMAGE", 300)
    graph = DetectorGraph(model)
    with pytest.raises(UserError, match=message):
        check_detections(lambda *inputs: change(*graph(*inputs)), model, BATCHES)


def test_a_tie_between_overlapping_boxes_is_no_difference():
    model = lively("gfl", "TEST.DETECTIONS_PER_IMAGE", 300)
    boxes, scores, labels, counts = DetectorGraph(model)(*as_inputs(IMAGES[:1]))

    def moved(pixels, score):  # the first box is another one, which overlaps it
        def run(*inputs):
            first = boxes.clone()
            first[0, 0, :2] += pixels
            return first, scores + score * (torch.arange(300) == 0), labels, counts

        return run

    assert check_detections(moved(1.0, 1e-5), model, [IMAGES[:1]]).borderline == 2
    for pixels, score in ((1.0, 2e-4), (1000.0, 1e-5)):
        with pytest.raises(UserError, match="only in the file"):
            check_detections(moved(pixels, score), model, [IMAGES[:1]])


def test_raw_outputs_that_differ_are_refused():
    graph = DetectorGraph(lively("gfl"), raw=True)
    with pytest.raises(UserError, match=r"boxes by 2\.0e-02 px"):
        check_raw(lambda *inputs: (graph(*inputs)[0] + 0.02, graph(*inputs)[1]), graph, BATCHES)


@pytest.mark.parametrize("place", range(4))
def test_raw_outputs_that_are_no_numbers_are_refused(place):
    graph = DetectorGraph(lively("clq"), raw=True)

    def run(*inputs):
        return tuple(x * torch.nan if i == place else x for i, x in enumerate(graph(*inputs)))

    with pytest.raises(UserError, match=r"differs from the detector: .*nan"):
        check_raw(run, graph, BATCHES)


def test_an_iou_that_is_no_number_is_refused():
    model = lively("clq")
    graph = DetectorGraph(model)
    with pytest.raises(UserError, match="pred_quality by nan"):
        check_detections(lambda *inputs: (*graph(*inputs)[:5], graph(*inputs)[5] * torch.nan), model, BATCHES)


def test_a_file_that_onnxruntime_cannot_run_is_one_line():
    with pytest.raises(UserError, match=r"onnxruntime .* cannot run the file"):
        FORMATS["onnx"].read(b"no model")
