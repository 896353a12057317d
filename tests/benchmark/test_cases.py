"""What is timed of a variant."""

import pytest
import torch
from clq.benchmark.cases import NUM_CANDIDATES, InferenceCase
from clq.benchmark.conditions import BenchmarkVariant, Conditions

CPU = torch.device("cpu")


@pytest.mark.parametrize("arch", ["CLQ", "RetinaNet"])
def test_every_candidate_passes_the_threshold(tiny, arch):
    """This holds for scores with a quality factor too, and for a second sample."""
    retinanet = {
        "NUM_CLASSES": "-1",
        "IN_FEATURES": "['p3', 'p4', 'p5']",
        "TOPK_CANDIDATES_TEST": "5000",
        "NMS_THRESH_TEST": "1.0",
    }
    opts = ["MODEL.META_ARCHITECTURE", arch, "MODEL.CLQ.NMS_THRESH", "1.0", "TEST.DETECTIONS_PER_IMAGE", "5000"]
    opts += [word for key, value in retinanet.items() for word in (f"MODEL.RETINANET.{key}", value)]
    conditions = Conditions(size=(96, 96), batch=1, device=CPU, dtype="float32", train=False)
    case = InferenceCase(BenchmarkVariant(arch, tiny, tuple(opts)).config(CPU), conditions)
    count = min(sum(x.numel() for x in case.crowd[2][0]), NUM_CANDIDATES)
    case.sample()
    with torch.no_grad():
        (found,) = case.model.forward_inference(*case.crowd)
    assert len(found) == count
