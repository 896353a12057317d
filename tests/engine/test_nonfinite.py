"""Steps whose losses, gradients or weights are not finite: what is left out, what is written and what it costs."""

import json
import math

import clq  # noqa: F401  (first: it lets Detectron2 import)
import pytest
import torch
from clq.checkpoint.checkpointer import Checkpointer
from clq.checkpoint.finite import find_nonfinite
from clq.engine.amp import AutocastTrainer
from clq.engine.nonfinite import FiniteWeights, NonFiniteError, NonFinitePolicy
from clq.engine.step import TrainingStep
from clq.errors import UserError
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn


class Line(nn.Module):
    """A weight times the image's first value, with batch normalization's count of steps as a buffer."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0]))
        self.register_buffer("seen", torch.zeros(1))
        self.root = False

    def forward(self, batch):
        x = batch[0]["image"].flatten()[0]
        self.seen += x
        # The root of zero is zero, but its gradient is infinite.
        return {"loss_a": (self.weight * x).sum(), "loss_b": (self.weight * 0).sqrt().sum() if self.root else x * 0}


def batch(value, name="a.jpg"):
    instances = Instances((1, 1), gt_boxes=Boxes(torch.tensor([[0.0, 0.0, 1.0, 1.0]])), gt_classes=torch.tensor([3]))
    return [
        {"file_name": f"/images/{name}", "image_id": 7, "image": torch.full((1, 1, 1), value), "instances": instances}
    ]


def make(values, folder, *, skip=False, limit=2):
    model = Line()
    policy = NonFinitePolicy(skip, limit, str(folder))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    return TrainingStep(model, [batch(v) for v in values], optimizer, policy)


def run(step, steps):
    with EventStorage() as storage:
        for step.iter in range(steps):
            storage.iter = step.iter
            step.run_step()
    return storage


def test_a_step_that_is_finite_is_detectron2s(tmp_path):
    step = make([2.0, 4.0], tmp_path)
    storage = run(step, 2)
    assert step.model.weight.item() == 1 - 0.5 * 2 - 0.5 * 4
    # Losses before each update: 1 * 2, then 0 * 4.
    assert storage.history("total_loss").values() == [(2.0, 0), (0.0, 1)]
    assert storage.latest()["loss_a"][0] == 0.0 and "data_time" in storage.latest()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value, text", [(math.nan, "nan"), (math.inf, "inf")])
def test_a_loss_that_is_not_finite_stops_and_changes_nothing(value, text, tmp_path):
    step = make([1.0, value], tmp_path)
    with pytest.raises(NonFiniteError, match=rf"iteration 1: loss_a is {text}\. .*nonfinite_0000001.json .*\(a.jpg\)"):
        run(step, 2)
    assert step.model.weight.item() == 0.5  # after the first step
    report = json.loads((tmp_path / "nonfinite_0000001.json").read_text())
    (rank,) = report["ranks"]
    assert rank["losses"] == {"loss_a": text, "loss_b": "nan"}  # 0.5 and 0 times the value
    (image,) = rank["images"]
    assert image["file_name"] == "/images/a.jpg" and image["boxes_xyxy"] == [[0, 0, 1, 1]] and image["classes"] == [3]
    assert not image["is_finite"]
    assert report["learning_rates"] == [0.5] and report["gradient_norms"] == {"weight": text}


def test_a_gradient_that_is_not_finite_stops_though_the_loss_is_finite(tmp_path):
    step = make([2.0], tmp_path)
    step.model.root = True
    with pytest.raises(NonFiniteError, match=r"iteration 0: a gradient is"):
        run(step, 1)
    assert step.model.weight.item() == 1.0
    assert json.loads((tmp_path / "nonfinite_0000000.json").read_text())["ranks"][0]["losses"]["loss_a"] == 2.0


def test_skipped_steps_leave_weights_and_buffers_as_they_were(tmp_path, caplog):
    step = make([2.0, math.nan, 4.0, math.nan, math.nan, 1.0], tmp_path, skip=True)
    storage = run(step, 6)
    assert step.model.weight.item() == 1 - 0.5 * (2 + 4 + 1)
    assert step.model.seen.item() == 2 + 4 + 1
    assert [i for _, i in storage.history("total_loss").values()] == [0, 2, 5]
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"nonfinite_{i:07d}.json" for i in (1, 3, 4)]
    assert "iteration 3: loss_a is nan; the step is left out" in caplog.text


def test_no_more_than_so_many_steps_in_a_row_are_skipped(tmp_path):
    step = make([2.0, math.nan, math.nan, math.nan], tmp_path, skip=True)
    with pytest.raises(NonFiniteError, match="iteration 3: loss_a is nan, after 2 steps in a row that were left out"):
        run(step, 4)


def test_a_model_that_reports_it_itself_stops_the_same_way(tmp_path):
    """As Detectron2's proposal generators do."""
    step = make([2.0], tmp_path)

    def fail(_):
        raise FloatingPointError("Predicted boxes contain NaN.\nTraining has diverged.")

    step.model.forward = fail
    with pytest.raises(
        NonFiniteError, match=r"iteration 0: Predicted boxes contain NaN. Training has diverged. .*a.jpg"
    ):
        run(step, 1)


def test_a_report_that_cannot_be_written_does_not_hide_the_message(tmp_path):
    step = make([math.nan], tmp_path / "gone")
    with pytest.raises(NonFiniteError, match=r"loss_a is nan\. .*cannot be written \(No such file"):
        run(step, 1)


def autocast(values, folder, **kwargs):
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    policy = NonFinitePolicy(folder=str(folder), **kwargs)
    return AutocastTrainer(model, [batch(v) for v in values], optimizer, policy, device="cpu", dtype=torch.float16)


def test_infinities_of_loss_scaling_do_not_stop_a_training(tmp_path):
    """1e35 times the scale of 65,536 is infinite. The scaler halves it until it is not, and no step is a fault."""
    step = autocast([1e35] * 6, tmp_path)
    run(step, 6)
    assert step.grad_scaler.get_scale() == 65536 / 2**5  # 1e35 * 2048 < 3.4e38 <= 1e35 * 4096
    assert not list(tmp_path.iterdir())


def test_gradients_that_no_loss_scale_makes_finite_stop_a_training(tmp_path):
    step = autocast([2.0] * 20, tmp_path)
    step.model.root = True
    with pytest.raises(NonFiniteError, match="iteration 16: a gradient is"):  # 65536 = 2 ** 16
        run(step, 20)
    assert step.model.weight.item() == 1.0


def test_skipping_goes_with_loss_scaling(tmp_path):
    step = autocast([2.0, math.nan, 4.0], tmp_path, skip=True, max_in_a_row=1)
    run(step, 3)
    assert step.model.weight.item() == 1 - 0.5 * (2 + 4)
    assert step.grad_scaler.get_scale() == 65536


def test_a_checkpoint_is_never_of_values_that_are_not_finite(tmp_path):
    model = Line()
    checkpointer = Checkpointer(model, str(tmp_path), save_to_disk=True)
    checkpointer.save("model_0000001", iteration=1)
    model.weight.data.fill_(math.inf)
    with pytest.raises(UserError, match=r"model_0000002.pth: not written, because model.weight is not finite"):
        checkpointer.save("model_0000002", iteration=2)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    assert not (tmp_path / "model_0000002.pth").exists()


def test_weights_are_checked_before_the_iterations_that_write_a_checkpoint(tmp_path):
    """A finite gradient times a huge learning rate is infinite; no loss shows it before the next step."""
    step = make([1e10] * 4, tmp_path)
    hook = FiniteWeights(2, model=step.model.state_dict)
    step._trainer = step  # as DefaultTrainer has its step
    step.register_hooks([hook])
    step.max_iter = 4
    run(step, 1)
    step.model.weight.data.fill_(math.inf)
    step.iter = 0
    hook.after_step()
    step.iter = 1
    with pytest.raises(NonFiniteError, match=r"iteration 1: model\.weight is not finite after the step; no checkpoint"):
        hook.after_step()


@pytest.mark.parametrize(
    "state, name",
    [
        ({"a": torch.tensor([1.0]), "b": [torch.tensor([math.nan])]}, "b.0"),
        ({"a": {"x": torch.tensor([1.0, -math.inf], dtype=torch.float16)}}, "a.x"),
        ({"a": torch.tensor([3]), "b": torch.tensor([]), "c": float("inf"), "d": torch.tensor([3e38, 3e38])}, None),
    ],
)
def test_names_of_tensors_that_are_not_finite(state, name):
    assert find_nonfinite(state) == name
