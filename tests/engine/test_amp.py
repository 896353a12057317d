"""The dtypes that SOLVER.AMP and TEST.AMP choose, and what runs in them."""

import clq
import numpy as np
import pytest
import torch
from clq.engine.amp import autocast_dtype, inference_autocast
from clq.engine.trainer import Trainer
from clq.errors import UserError
from clq.inference.predictor import Predictor
from detectron2.engine import DefaultTrainer


@pytest.mark.parametrize("group", ["SOLVER", "TEST"])
def test_the_dtype_follows_the_config_and_the_device(group):
    def dtype(device="cpu", **amp):
        cfg = clq.setup_cfg(
            None, ["MODEL.DEVICE", "cpu", *(x for k, v in amp.items() for x in (f"{group}.AMP.{k}", v))]
        )
        cfg.MODEL.DEVICE = device  # a device that this machine may not have
        return autocast_dtype(cfg, group)

    assert dtype() is None and dtype("cuda", DTYPE="fp16") is None
    assert dtype(ENABLED=True) == dtype("mps", ENABLED=True) == torch.bfloat16
    assert dtype("cuda:1", ENABLED=True) == torch.float16
    assert dtype("cuda", ENABLED=True, DTYPE="bf16") == torch.bfloat16
    assert dtype(ENABLED=True, DTYPE="fp16") == torch.float16
    with pytest.raises(UserError, match=rf"{group}\.AMP\.DTYPE fp8: must be one of auto, fp16, bf16"):
        dtype(DTYPE="fp8")


@pytest.mark.parametrize(("opts", "expected"), [([], None), (["TEST.AMP.ENABLED", True], torch.bfloat16)])
def test_the_trainer_evaluates_in_the_dtype_of_test_amp(opts, expected, monkeypatch):
    """The precision of the training does not matter."""
    found = []

    def test(cfg, model, evaluators=None):
        found.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)

    monkeypatch.setattr(DefaultTrainer, "test", test)
    Trainer.test(clq.setup_cfg(None, ["MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", True, *opts]), None)
    assert found == [expected] and not torch.is_autocast_enabled("cpu")


def test_detections_in_bfloat16_equal_those_in_float32_except_for_rounding(tiny, trained):
    opts = ["MODEL.WEIGHTS", trained / "model_final.pth", "MODEL.CLQ.SCORE_THRESH", 0.0, "TEST.DETECTIONS_PER_IMAGE", 5]
    image = np.random.default_rng(0).integers(0, 256, (96, 120, 3), dtype=np.uint8)

    def detect(*amp):
        predictor, types = Predictor(clq.setup_cfg(tiny, [*map(str, opts), *amp])), set()
        predictor.model.head.cls_logits.register_forward_hook(lambda _, args, out: types.add(out.dtype))
        found = predictor.detect([image])[0], predictor.detect([image])[0]
        assert torch.equal(found[0].scores, found[1].scores)  # the context is entered a second time
        return found[0], types

    (plain, types), (short, short_types) = detect(), detect("TEST.AMP.ENABLED", True)
    assert (types, short_types) == ({torch.float32}, {torch.bfloat16})
    assert plain.scores.dtype == short.scores.dtype == torch.float32
    assert 0 < (plain.scores - short.scores).abs().max() < 0.02


def test_disabled_autocast_is_disabled_inside_another_autocast():
    with torch.autocast("cpu", torch.bfloat16), inference_autocast(clq.setup_cfg(None, ["MODEL.DEVICE", "cpu"])):
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.float32
