"""Optimizers, their learning rate and their fused kernels."""

import copy
import logging

import pytest
import torch
from clq.engine.amp import build_step
from clq.engine.optimizer import build_optimizer, has_fused_kernels, learning_rate
from clq.errors import UserError
from squares import Squares, batches, config, run
from torch import nn
from torch.utils import _foreach_utils


@pytest.mark.parametrize(
    ("batch", "reference", "rate", "said"),
    [
        (16, 16, 0.01, "0.01 = SOLVER.BASE_LR 0.01 x 16 images per batch / 16"),
        (4, 16, 0.0025, "0.0025 = SOLVER.BASE_LR 0.01 x 4 images"),
        (64, 16, 0.04, "0.04 ="),
        (4, 0, 0.01, "0.01: SOLVER.BASE_LR, not scaled"),
    ],
)
def test_the_learning_rate_grows_with_the_batch_and_is_logged(batch, reference, rate, said, caplog):
    opts = ["SOLVER.BASE_LR", 0.01, "SOLVER.IMS_PER_BATCH", batch, "SOLVER.REFERENCE_BATCH", reference]
    with caplog.at_level(logging.INFO, logger="clq"):
        assert learning_rate(config(*opts)) == pytest.approx(rate)
    assert said in caplog.text


def test_sgd_has_detectron2s_parameter_groups():
    opts = ["SOLVER.BASE_LR", 0.02, "SOLVER.IMS_PER_BATCH", 8, "SOLVER.WEIGHT_DECAY", 0.1, "SOLVER.MOMENTUM", 0.8]
    opts += ["SOLVER.WEIGHT_DECAY_NORM", 0.0, "SOLVER.BIAS_LR_FACTOR", 2.0, "SOLVER.WEIGHT_DECAY_BIAS", 0.3]
    model = Squares()
    optimizer = build_optimizer(config(*opts), model)
    assert type(optimizer) is torch.optim.SGD
    found = {id(p): (g["lr"], g["weight_decay"], g["momentum"]) for g in optimizer.param_groups for p in g["params"]}
    assert found[id(model.linear.weight)] == pytest.approx((0.01, 0.1, 0.8))
    assert found[id(model.linear.bias)] == pytest.approx((0.02, 0.3, 0.8))
    assert found[id(model.norm.weight)] == pytest.approx((0.01, 0.0, 0.8))


def test_adamw_is_built_and_an_unknown_optimizer_is_refused():
    model = Squares()
    model.linear.bias.requires_grad = False  # frozen
    optimizer = build_optimizer(config("SOLVER.OPTIMIZER", "AdamW", "SOLVER.WEIGHT_DECAY", 0.05), model)
    assert type(optimizer) is torch.optim.AdamW
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.05, 0.0}  # norms have no weight decay
    assert sum(len(g["params"]) for g in optimizer.param_groups) == 3
    with pytest.raises(UserError, match=r"SOLVER\.OPTIMIZER Lion: must be one of SGD, AdamW"):
        build_optimizer(config("SOLVER.OPTIMIZER", "Lion"), model)


def test_adamw_takes_the_steps_of_the_plain_implementation_on_channels_last_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1))
    plain = copy.deepcopy(model)
    model.to(memory_format=torch.channels_last)
    opts = [
        "SOLVER.OPTIMIZER",
        "AdamW",
        "SOLVER.BASE_LR",
        0.01,
        "SOLVER.WEIGHT_DECAY",
        0.1,
        "SOLVER.REFERENCE_BATCH",
        0,
    ]
    ours = build_optimizer(config(*opts), model)
    other = torch.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.1, foreach=False)
    start = plain[0].weight.detach().clone()
    for x in torch.randn(5, 2, 3, 6, 6):
        for net, optimizer in ((model, ours), (plain, other)):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    assert (plain[0].weight - start).abs().max() > 0.01


@pytest.mark.parametrize("devices, fused", [(["cuda", "cpu"], True), (["cuda"], False), (None, False)])
def test_adamw_is_fused_only_where_torch_has_the_kernels(devices, fused, monkeypatch):
    """CPUs have the kernels since torch 2.4. A torch without the list has them on CUDA only."""
    name = "_get_fused_kernels_supported_devices"
    if devices is None:
        monkeypatch.delattr(_foreach_utils, name)
    else:
        monkeypatch.setattr(_foreach_utils, name, lambda: devices)
    model = Squares()
    optimizer = build_optimizer(config("SOLVER.OPTIMIZER", "AdamW"), model)
    assert {group["fused"] for group in optimizer.param_groups} == {fused}
    run(build_step(config(), model, batches(), optimizer))


def test_kernels_are_fused_only_if_all_devices_of_a_model_support_it(monkeypatch):
    model = Squares()
    model.norm.to("meta")
    monkeypatch.setattr(_foreach_utils, "_get_fused_kernels_supported_devices", lambda: ["cpu"])
    assert not has_fused_kernels(model)
