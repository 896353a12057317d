"""MODEL.CLQ.COMPILE: torch compiles the whole network, and the detector stays the same.

The traced graphs run as they are. To build kernels would take minutes, and they are torch's to test.
"""

import copy

import pytest
import torch
from clq.errors import UserError
from clq.modeling.optimize import compiling
from detectron2.utils.events import EventStorage
from tiny_detectors import build, sample

# One level takes a fifth of the time to trace. The thresholds let an untrained model have detections.
SMALL = "MODEL.CLQ.IN_FEATURES", ["p3"], "MODEL.CLQ.SCORE_THRESH", 0.0, "MODEL.CLQ.NMS_THRESH", 0.99


@pytest.fixture
def graphs(monkeypatch):
    """The graphs traced so far."""
    traced = []

    def backend(graph, inputs):
        traced.append(graph)
        return graph.forward

    own = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, mode: own(function, backend=backend))
    torch._dynamo.reset()
    compiling._compiled.cache_clear()
    yield traced
    torch._dynamo.reset()
    compiling._compiled.cache_clear()


@pytest.mark.parametrize("variant", ["atss", "clq"])
def test_a_compiled_detector_is_the_same_detector(variant, graphs):
    plain, compiled = build(variant, *SMALL), build(variant, *SMALL, "MODEL.CLQ.COMPILE", True)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    batch = [sample((96, 128), [(20, 10, 70, 60), (60, 30, 120, 90)]), sample((96, 128))]
    for model in (plain, compiled):
        with EventStorage():
            sum(model(batch).values()).backward()
    assert len(graphs) == 1  # backbone and head in one piece
    for (name, p), q in zip(compiled.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6, msg=name)

    with torch.no_grad():
        ours, theirs = (model.eval()(batch[:1])[0]["instances"] for model in (compiled, plain))
    assert len(graphs) == 2  # traced again without gradient
    assert len(theirs) == 100
    torch.testing.assert_close(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)
    torch.testing.assert_close(ours.scores, theirs.scores)


def test_a_compiled_detector_takes_its_batch_in_parts(graphs):
    opts = *SMALL, "SOLVER.ACCUMULATE", 2
    plain, compiled = build("atss", *opts), build("atss", *opts, "MODEL.CLQ.COMPILE", True)
    batch = [sample((96, 128), [(20, 10, 70, 60)]), sample((96, 128))]
    for model in (plain, compiled):
        with EventStorage():
            sum(model(batch).values()).backward()
    assert len(graphs) == 1
    for (name, p), q in zip(compiled.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_a_copy_of_a_compiled_detector_has_weights_of_its_own(graphs):
    """The moving average of SOLVER.EMA is such a copy."""
    model = build("atss", *SMALL, "MODEL.CLQ.COMPILE", True).eval()
    batch = [sample((96, 128))]
    with torch.no_grad():
        before = model(batch)[0]["instances"].scores
        other = copy.deepcopy(model)
        other.head.cls_logits.bias += 2.0
        torch.testing.assert_close(model(batch)[0]["instances"].scores, before)
        assert (other(batch)[0]["instances"].scores - before).min() > 0.01
    assert graphs


def test_nothing_is_compiled_by_default(graphs):
    with EventStorage():
        build("atss", *SMALL)([sample((96, 128))])
    assert not graphs


def test_recomputed_stages_and_compiling_are_refused_together():
    with pytest.raises(UserError, match=r"CHECKPOINT_BACKBONE: does not go with MODEL\.CLQ\.COMPILE"):
        build("clq", "MODEL.CLQ.CHECKPOINT_BACKBONE", True, "MODEL.CLQ.COMPILE", True)
