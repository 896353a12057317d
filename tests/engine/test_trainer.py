"""The trainer: precision of a step, and resuming."""

import pytest
import torch
from clq.engine.amp import AutocastTrainer, build_step
from clq.engine.step import TrainingStep
from clq.engine.trainer import Trainer
from detectron2.engine import SimpleTrainer
from squares import Squares, batches, config, run


@pytest.mark.parametrize("fused", [True, False])
def test_a_training_continues_on_a_machine_with_other_fused_kernels(fused):
    """The state comes from the other kind of kernels. Which kind is used depends on the installed torch only."""
    kinds = {
        kind: build_step(config(), (model := Squares()), batches(), torch.optim.AdamW(model.parameters(), fused=kind))
        for kind in (True, False)
    }
    for step in kinds.values():
        run(step, 2)
    ours = Trainer.__new__(Trainer)  # only the step is needed
    ours._trainer, ours._hooks, ours.cfg = kinds[fused], [], config("SOLVER.OPTIMIZER", "AdamW")
    for group in (g for step in kinds.values() for g in step.optimizer.param_groups):
        group["initial_lr"] = group["lr"]
    theirs = kinds[not fused]
    ours.load_state_dict({"iteration": 1, "_trainer": theirs.state_dict()})
    assert {group["fused"] for group in ours._trainer.optimizer.param_groups} == {fused}
    for step in kinds.values():
        run(step)
    for p, q in zip(ours._trainer.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "expected"), [("auto", torch.bfloat16), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_the_step_runs_in_the_precision_of_the_config(dtype, expected):
    model = Squares()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plain = build_step(config(), model, batches(), optimizer)
    assert type(plain) is TrainingStep
    run(plain)
    assert model.dtype == torch.float32
    step = build_step(config("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", dtype), model, batches(), optimizer)
    run(step)
    assert model.dtype == expected
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_steps_are_those_of_a_plain_loop_under_autocast(dtype):
    model, other = Squares(0.1), Squares(0.1)
    optimizer, plain = (torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9) for m in (model, other))
    run(AutocastTrainer(model, batches(), optimizer, device="cpu", dtype=dtype), 3)
    for x in batches()[:3]:
        with torch.autocast("cpu", dtype):
            losses = other(x)
        plain.zero_grad()
        sum(losses.values()).backward()
        plain.step()
    for p, q, start in zip(model.parameters(), other.parameters(), Squares().parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)
        assert not torch.equal(p, start)


def make_step(dtype, factor=0.1, clip=None):
    opts = ["SOLVER.BASE_LR", 1.0, "SOLVER.MOMENTUM", 0.9, "SOLVER.WEIGHT_DECAY", 0.0]
    if clip:
        opts += ["SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", clip]
    model = Squares(factor)
    optimizer = Trainer.build_optimizer(config(*opts), model)
    return AutocastTrainer(model, batches(), optimizer, device="cpu", dtype=dtype)


def test_gradients_are_clipped_at_their_true_size():
    """Loss scaling makes them 65,536 times larger, so they must be unscaled before they are clipped."""
    step = make_step(torch.float16, clip=0.01)
    before = [p.detach().clone() for p in step.model.parameters()]
    run(step)
    moves = [(p - q).abs().max().item() for p, q in zip(step.model.parameters(), before, strict=True)]
    assert max(moves) == pytest.approx(0.01, rel=1e-3)


def test_an_overflow_skips_the_step_and_halves_the_scale():
    step = make_step(torch.float16, factor=1e36)  # infinite when it is multiplied by the scale
    before = [p.detach().clone() for p in step.model.parameters()]
    scale = step.grad_scaler.get_scale()
    run(step)
    assert all(torch.equal(p, q) for p, q in zip(step.model.parameters(), before, strict=True))
    assert step.grad_scaler.get_scale() == scale / 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_state_is_saved_and_resumed(dtype, tmp_path):
    """Three steps, saved and followed by two more, give the same as five steps without a break."""
    first, whole = make_step(dtype), make_step(dtype)
    for step in (first, whole):
        step.grad_scaler = torch.amp.GradScaler("cpu", init_scale=4096.0, enabled=dtype is torch.float16)
    run(first, 3)
    torch.save((first.state_dict(), first.model.state_dict()), tmp_path / "state.pt")
    run(whole, 5)
    resumed = make_step(dtype)
    state, weights = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.model.load_state_dict(weights)
    resumed.load_state_dict(state)
    assert resumed.iter == 2
    assert resumed.grad_scaler.get_scale() == (4096.0 if dtype is torch.float16 else 1.0)
    run(resumed, 2)
    for p, q in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("saved", ["plain", torch.bfloat16])
def test_a_training_can_be_resumed_in_another_precision(saved):
    """A training in float32 or bfloat16 has no loss scale, so float16 starts with the default scale."""
    step = make_step(torch.bfloat16)
    if saved == "plain":
        step = SimpleTrainer(step.model, batches(), step.optimizer)
    run(step, 2)
    resumed = make_step(torch.float16)
    scale = resumed.grad_scaler.get_scale()
    resumed.load_state_dict(step.state_dict())
    assert resumed.grad_scaler.get_scale() == scale > 1
    run(resumed)
