"""Detectors with 8-bit integers: what is quantized, and how they are compared with the detectors they were made of."""

import pytest
import torch
from clq.errors import UserError
from clq.export.graph import DetectorGraph
from clq.export.quantization import _quantized_nodes, check_quantized
from onnx import TensorProto, helper
from tiny_detectors import build


def test_the_network_is_quantized_between_its_convolutions():
    """A residual network with a normalization, an alignment whose offsets are predicted, and a decode."""
    weights = ["stem", "a", "b", "tower", "head.align.offsets.weight", "head.align.weight", "head.cls_logits.weight"]
    nodes = [  # operator, inputs, output
        ("Sub", ["images", "mean"], "pixels"),
        ("Conv", ["pixels", "stem"], "1"),
        ("Relu", ["1"], "2"),
        ("MaxPool", ["2"], "3"),
        ("Conv", ["3", "a"], "4"),
        ("Add", ["4", "3"], "5"),
        ("InstanceNormalization", ["5", "scale", "bias"], "6"),
        ("Relu", ["6"], "7"),
        ("Conv", ["7", "b"], "8"),
        ("Concat", ["height", "width"], "shape"),
        ("Reshape", ["8", "shape"], "9"),
        ("Conv", ["9", "head.align.offsets.weight"], "10"),
        ("Add", ["10", "grid"], "11"),
        ("GridSample", ["9", "11"], "12"),
        ("Reshape", ["head.align.weight", "shape"], "matrix"),
        ("MatMul", ["matrix", "12"], "13"),
        ("Relu", ["13"], "14"),
        ("Conv", ["14", "tower"], "15"),
        ("Conv", ["15", "head.cls_logits.weight"], "16"),
        ("Concat", ["16", "16"], "17"),
        ("MatMul", ["17", "15"], "18"),
    ]
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, [output], name=output) for kind, inputs, output in nodes],
        "network",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("18", TensorProto.FLOAT, None)],
        [helper.make_tensor(name, TensorProto.FLOAT, [1], [1.0]) for name in weights],
    )
    assert _quantized_nodes(graph) == ["1", "2", "3", "4", "5", "8", "13", "14", "15"]


def test_the_begin_of_a_shufflenet_is_not_quantized():
    names = [f"model.backbone.bottom_up.{x}.weight" for x in ("conv1.0", "stage2.0.branch1.0", "stage2.1.branch2.0")]
    nodes = [helper.make_node("Conv", [str(i), name], [str(i + 1)], name=name) for i, name in enumerate(names)]
    weights = [helper.make_tensor(name, TensorProto.FLOAT, [1], [1.0]) for name in names]
    assert _quantized_nodes(helper.make_graph(nodes, "network", [], [], weights)) == names[2:]


@pytest.fixture(scope="module")
def detector():
    model = build("clq_lite", "MODEL.CLQ.SCORE_THRESH", 0.2).eval()
    torch.manual_seed(2)
    for head in model.head.heads:
        torch.nn.init.normal_(head.cls_logits.weight, std=0.5)
        torch.nn.init.constant_(head.cls_logits.bias, 0.0)
    return model


IMAGES = [
    torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(1)) for size in [(96, 131), (70, 45)]
]


def test_a_detector_is_as_close_as_can_be_to_itself(detector):
    closeness = check_quantized(DetectorGraph(detector), detector, IMAGES)
    assert closeness.images == 2 and closeness.expected == len(closeness.ious) == 20
    assert min(closeness.ious) > 0.9999 and max(closeness.scores) < 1e-5
    assert str(closeness).startswith("2 images: 100% of the 10 best detections of each are found again")


def test_boxes_elsewhere_and_other_classes_are_not_found_again(detector):
    graph = DetectorGraph(detector)

    def changed(images, sizes, *, shift, turn):
        boxes, scores, labels, *rest = graph(images, sizes)
        return boxes + shift, scores, labels + turn, *rest

    for change in ({"shift": 500, "turn": 0}, {"shift": 0, "turn": 5}):
        with pytest.raises(UserError, match=r"--int8: 2 images: .* found again.*--calibration"):
            check_quantized(lambda *inputs, change=change: changed(*inputs, **change), detector, IMAGES)
