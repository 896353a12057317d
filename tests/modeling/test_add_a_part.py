"""The examples of docs/add_a_part.md work as they are written there, alone and in a detector."""

import re
from pathlib import Path

import clq
import pytest
import torch
from clq.config import KEYS
from clq.modeling import build as builders
from clq.modeling.assign.base import AssignmentInputs
from clq.modeling.box_coding import DeltaCoder
from clq.modeling.scoring import ScoreRule
from clq.modeling.structures import FlatPredictions
from detectron2.utils.events import EventStorage
from tiny_detectors import build, sample

TEXT = (Path(__file__).parents[2] / "docs/add_a_part.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.M | re.S)


def example(name):
    """The class of this name, from the example that defines it, and the two lines that register it."""
    ((i, code),) = ((i, code) for i, (_, code) in enumerate(BLOCKS) if f"class {name}" in code)
    namespace = {}
    exec(code, namespace)
    maker, meaning = BLOCKS[i + 1][1].splitlines()
    return namespace, maker, meaning


def test_assigner_takes_the_nearest_locations():
    """Four anchors along a line, the last on padding: the two nearest to a centre at 25 are those at 20 and 10."""
    centers = torch.tensor([10.0, 20, 60, 28])
    inputs = AssignmentInputs(
        grid_sizes=[(1, 4)],
        strides=[8],
        anchors=torch.stack((centers - 4, torch.zeros(4), centers + 4, torch.full((4,), 8.0)), dim=1),
        location_strides=torch.full((4,), 8.0),
        valid_sizes=torch.tensor([[[1, 3]]]),
        valid=torch.tensor([[True, True, True, False]]),
        gt_boxes=[torch.tensor([[20.0, 0, 30, 8]])],
        gt_classes=[torch.tensor([0])],
        predictions=FlatPredictions(torch.zeros(1, 4, 1), torch.zeros(1, 4, 4), None),
        coder=DeltaCoder(),
        score=ScoreRule(),
    )
    assignment = example("NearestAssigner")[0]["NearestAssigner"](2)(inputs)
    assert assignment.matched_idxs.tolist() == [[0, 0, -1, -1]]
    assert assignment.max_positives == 2


def test_coder_gives_the_anchor_for_zeros_and_never_turns_a_box_over():
    coder = example("SoftplusCoder")[0]["SoftplusCoder"]()
    anchor = torch.tensor([10.0, 20, 30, 60])
    assert coder.decode(torch.zeros(4), anchor, 8).tolist() == pytest.approx(anchor.tolist())
    # softplus(log 3) is log 4, two times log 2: sides two half anchors from the centre (20, 40).
    twice = coder.decode(torch.log(torch.full((4,), 3.0)), anchor, 8)
    assert twice.tolist() == pytest.approx([0.0, 0, 40, 80], abs=1e-4)
    x1, y1, x2, y2 = coder.decode(torch.randn(1000, 4, generator=torch.manual_seed(0)) * 50, anchor, 8).unbind(-1)
    assert (x1 <= x2).all() and (y1 <= y2).all()


def test_quality_learns_the_giou_of_the_box():
    quality = example("GIoUQuality")[0]["GIoUQuality"]()
    boxes = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 16]])
    assert quality.target(boxes, boxes[[0, 0]], boxes).tolist() == pytest.approx([1.0, 0.75])  # GIoU 1 and 1/2
    assert quality.joint
    assert quality.branch(DeltaCoder(), 8, 6)(torch.zeros(1, 6, 4, 4)).shape == (1, 1, 4, 4)


@pytest.mark.parametrize(
    ("name", "key"),
    [("NearestAssigner", "ASSIGN.NAME"), ("SoftplusCoder", "BOX.CODING"), ("GIoUQuality", "QUALITY.NAME")],
)
def test_a_detector_trains_and_detects_with_a_part_that_is_registered_by_the_two_lines(name, key, monkeypatch):
    namespace, maker, meaning = example(name)
    c = clq.setup_cfg(None).MODEL.CLQ
    makers, meanings = eval(f"dict({maker})", {**namespace, "c": c}), eval(f"{{{meaning}}}")
    choose = builders._choose

    def with_example(slot, chosen, **others):
        return choose(slot, chosen, **others, **(makers if slot == key else {}))

    monkeypatch.setattr(builders, "_choose", with_example)
    (part,) = makers
    monkeypatch.setitem(KEYS[f"MODEL.CLQ.{key}"].values.meanings, part, meanings[part])

    model = build("clq", f"MODEL.CLQ.{key}", part, "MODEL.CLQ.SCORE_THRESH", 0.0)
    parts = model.assigner, model.coder, model.head.quality_pred, model.loss.quality_target
    assert namespace[name] in map(type, parts) or namespace[name].target in parts
    item = sample((96, 128), [[8, 8, 72, 80], [40, 20, 120, 90]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    totals = []
    with EventStorage():
        for _ in range(15):
            losses = model([item])
            totals.append(sum(losses.values()))
            optimizer.zero_grad()
            totals[-1].backward()
            optimizer.step()
    assert all(loss.isfinite() for loss in totals) and totals[-1] < totals[0]
    with torch.no_grad():
        found = model.eval()([sample((96, 128))])[0]["instances"]
    assert len(found) and found.scores.isfinite().all()


def test_a_part_is_tried_without_registering_it():
    namespace, _, _ = example("NearestAssigner")
    ((_, code),) = ((kind, code) for kind, code in BLOCKS if "from_config" in code)
    exec(code, namespace)
    assert type(namespace["model"].assigner) is namespace["NearestAssigner"]
