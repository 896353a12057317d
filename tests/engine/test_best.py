"""The best checkpoint, and the early end of a training."""

import logging
import re
import types

import clq
import pytest
import torch
from clq.engine.best import BestCheckpoint, EndedEarly, best_metric
from clq.errors import UserError
from detectron2.engine import HookBase, TrainerBase
from detectron2.engine.hooks import EvalHook
from torch import nn

NAN = float("nan")


class Saver:
    """A checkpointer that remembers what it is asked to save."""

    save_dir, detector = "", None

    def __init__(self):
        self.saved = []

    def save(self, name, iteration):
        self.saved.append((name, iteration))


class Counting(TrainerBase):
    """A training whose steps do nothing, and whose evaluation after iteration i is ``values[i]``."""

    def __init__(self, values, patience, period=1):
        super().__init__()
        self.evaluated, self.waited = [], 0
        self.saver = Saver()
        self.best = BestCheckpoint(period, self.saver, patience=patience)

        def evaluate():
            self.evaluated.append(self.iter)
            return {"bbox": {"AP": values[self.iter]}} if self.iter < len(values) else None

        self.register_hooks([EvalHook(period, evaluate), self.best])

    def run_step(self):
        pass

    def run(self, start, end):
        try:
            self.train(start, end)
        except EndedEarly:
            return True
        return False


def test_patience_counts_evaluations_without_a_better_one(caplog):
    """By hand: 3 is the best until 4, which two evaluations do not exceed; an equal one is not better."""
    made = Counting([1.0, 3.0, 2.0, 4.0, 4.0, 3.9, 9.0], patience=2)
    assert made.run(0, 7)
    assert made.saver.saved == [("model_best", 0), ("model_best", 1), ("model_best", 3), ("model_final", 5)]
    assert (made.iter, made.max_iter, made.waited) == (6, 6, 2)
    (line,) = [r.getMessage() for r in caplog.records if r.name == "clq.engine.best"]
    assert line == (
        "The training ends early, after iteration 5: 2 evaluations were not better than the best bbox/AP, 4.00 after "
        "iteration 3 (SOLVER.PATIENCE)"
    )


def test_a_training_without_detections_waits_for_the_first(caplog):
    made = Counting([NAN, NAN, NAN, 0.0, 0.0, NAN], patience=2)
    assert made.run(0, 8)
    assert made.iter == 6


def test_without_patience_a_training_does_not_end():
    made = Counting([5.0, 4.0, 3.0, 2.0], patience=0)
    assert not made.run(0, 4)
    assert made.iter == 4 and made.saver.saved == [("model_best", 0)]


class Snapshots(HookBase):
    """Keeps the state of the best value in each iteration, as a checkpoint does."""

    def __init__(self, best, folder):
        self.best, self.folder = best, folder

    def after_step(self):
        torch.save(self.best.state_dict(), self.folder / f"{self.trainer.iter}.pth")


@pytest.mark.parametrize("place", [0, 3], ids=["before the evaluation", "after it"])
@pytest.mark.parametrize("iteration", range(5))
def test_a_resumed_training_ends_where_an_uninterrupted_one_does(iteration, place, tmp_path):
    values = [1.0, 3.0, 2.0, 4.0, 4.0, 3.9, 9.0]
    first = Counting(values, patience=2)
    first.register_hooks([Snapshots(first.best, tmp_path)])
    first._hooks.insert(place, first._hooks.pop())
    assert first.run(0, 7)
    resumed = Counting(values, patience=2)
    resumed.best.load_state_dict(torch.load(tmp_path / f"{iteration}.pth", weights_only=True))
    assert resumed.run(iteration + 1, 7)
    assert resumed.iter == first.iter == 6
    assert resumed.best.state_dict() == first.best.state_dict()
    assert (resumed.best.best_metric, resumed.best.best_iter) == (4.0, 3)


def test_the_evaluation_of_a_resumed_checkpoint_is_repeated_only_where_there_was_one():
    for start, repeated in ((4, [3]), (5, [])):
        made = Counting([1.0] * 9, patience=0, period=2)
        made.best.load_state_dict({"best_metric": 2.0, "best_iter": 1, "counted": 2, "waited": 0})
        made.run(start, 6)
        assert made.evaluated[:-1] == repeated  # the last is that of the end


def test_a_training_that_was_killed_after_its_early_end_ends_again():
    made = Counting([1.0] * 9, patience=3)
    made.best.load_state_dict({"best_metric": 2.0, "best_iter": 1, "counted": 5, "waited": 3})
    assert made.run(5, 9)
    assert made.iter == 5


def test_all_ranks_end_with_the_main_process(monkeypatch):
    """The others have no metric."""
    monkeypatch.setattr("clq.engine.best.comm.is_main_process", lambda: False)
    monkeypatch.setattr("clq.engine.best.comm.all_gather", lambda waited: [int(other.iter >= 2) * 2, waited])
    other = Counting([], patience=2)
    assert other.run(0, 9)
    assert other.iter == 3


def test_the_best_average_is_saved_alone(tmp_path):
    average = nn.Linear(2, 1)
    checkpointer = types.SimpleNamespace(save_dir=str(tmp_path), detector=None)
    hook = BestCheckpoint(1, checkpointer, "EMA/bbox/AP", average=average)
    hook._checkpointer.save("model_best", iteration=4)
    saved = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert saved.keys() == {"model", "iteration"} and saved["iteration"] == 4
    assert all(torch.equal(x, saved["model"][name]) for name, x in average.state_dict().items())


@pytest.mark.parametrize(
    "metric, sets, expected",
    [
        ("bbox/AP", ["a"], "bbox/AP"),
        ("bbox/AP-red/blue", ["a"], "bbox/AP-red/blue"),
        ("a/bbox/AP50", ["a"], "bbox/AP50"),
        ("bbox/AP", ["a", "b"], "a/bbox/AP"),
        ("b/bbox/AP", ["a", "b"], "b/bbox/AP"),
        ("EMA/bbox/AP", ["a"], "EMA/bbox/AP"),
        ("EMA/bbox/AP", ["a", "b"], "EMA/a/bbox/AP"),
        ("EMA/b/bbox/APl", ["a", "b"], "EMA/b/bbox/APl"),
    ],
)
def test_the_metric_has_the_name_that_the_storage_has(metric, sets, expected):
    opts = ["DATASETS.TEST", sets, "TEST.BEST_METRIC", metric, "SOLVER.EMA.ENABLED", True]
    assert best_metric(clq.setup_cfg(None, ["MODEL.DEVICE", "cpu", *opts])) == expected


@pytest.mark.parametrize("metric", ["AP", "bbox/AP5", "c/bbox/AP", "segm/AP", "EMA/bbox/AP"])
def test_an_unknown_metric_is_refused(metric):
    opts = ["DATASETS.TEST", ["a", "b"], "TEST.BEST_METRIC", metric]
    with pytest.raises(UserError, match=rf"^TEST\.BEST_METRIC {re.escape(metric)}: "):
        best_metric(clq.setup_cfg(None, ["MODEL.DEVICE", "cpu", *opts]))


@pytest.fixture(autouse=True)
def messages(caplog):
    caplog.set_level(logging.INFO, logger="clq")
