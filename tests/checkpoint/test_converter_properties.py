"""Checkpoints of MMDetection and NanoDet with missing, misshapen, foreign or odd entries: converted or refused."""

import hypothesis
import pytest
import torch
from clq.checkpoint.mmdet import convert_checkpoint
from clq.checkpoint.nanodet import convert_nanodet_checkpoint
from fuzzing import ODD_VALUES, accepting_or_refusing, damaged_tree, few_examples
from hypothesis import strategies as st
from mmdet_models import CLASSES, clq_head, detector, gfl_head, tood_head
from mmdet_texts import config_text
from nanodet_models import nanodet_weights

ODD_TENSORS = st.sampled_from(
    [
        *(torch.zeros(shape) for shape in ((), (0,), (3,), (1, 2, 3, 4), (0, 32, 3, 3), (32, 32, 3, 3), (64,))),
        torch.tensor(float("nan")),
        torch.ones(32).half(),
        torch.ones(32).long(),
        torch.zeros(2, 3).to_sparse(),
    ]
)


def mmdet(head, kind, version):
    key = "config" if version == "2.x" else "cfg"
    meta = {"CLASSES": ("a",) * CLASSES, key: config_text(kind, CLASSES, version)}
    return {"meta": meta, "state_dict": detector(head=head)}


@pytest.fixture(scope="module")
def originals():
    """Functions and undamaged checkpoints by the name of the source."""
    torch.manual_seed(0)
    return {
        "ATSS": (convert_checkpoint, mmdet(None, "ATSSHead", "2.x")),
        "GFLv2": (convert_checkpoint, mmdet(gfl_head(CLASSES + 1), "GFocalHead", "3.x")),
        "CLQ": (convert_checkpoint, mmdet(clq_head(CLASSES + 1), "CLQ_Head_align_iou_pred", "2.x")),
        "TOOD": (convert_checkpoint, mmdet(tood_head(), "TOODHead", "3.x")),
        "NanoDet": (convert_nanodet_checkpoint, {"state_dict": nanodet_weights(convs=1)}),
    }


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return str(tmp_path_factory.mktemp("converters") / "a.pth")


@pytest.mark.fuzz
@few_examples
@hypothesis.given(data=st.data())
@pytest.mark.parametrize("name", ["ATSS", "GFLv2", "CLQ", "TOOD", "NanoDet"])
def test_a_damaged_checkpoint(originals, path, name, data):
    convert, original = originals[name]
    torch.save(data.draw(damaged_tree(original, ODD_TENSORS | ODD_VALUES)), path)
    with accepting_or_refusing():
        converted = convert(path)
        assert all(x.isfinite().all() for x in converted.weights.values())


@pytest.mark.parametrize("name", ["ATSS", "GFLv2", "CLQ", "TOOD", "NanoDet"])
def test_the_order_of_the_entries_changes_nothing(originals, path, name):
    convert, original = originals[name]
    torch.save(original, path)
    expected = convert(path)
    torch.save({**original, "state_dict": dict(sorted(original["state_dict"].items(), reverse=True))}, path)
    found = convert(path)
    assert (found.configs, found.keys) == (expected.configs, expected.keys)
    assert found.weights.keys() == expected.weights.keys()
    assert all(torch.equal(found.weights[key], x) for key, x in expected.weights.items())
