"""A part that is exchanged for another one in the course of a training."""

import pytest
from clq.modeling.by_iteration import ByIteration
from detectron2.engine.train_loop import TrainerBase
from detectron2.utils.events import EventStorage
from tiny_detectors import build, sample


def before(x):
    return f"before {x}"


def after(x):
    return f"after {x}"


class Training(TrainerBase):
    """Detectron2's loop of iterations, in each of which the part is called."""

    def __init__(self, part):
        super().__init__()
        self.part = part
        self.results = []

    def run_step(self):
        self.results.append(self.part(x=self.iter))


def test_the_part_changes_exactly_at_its_start():
    training = Training(ByIteration(before, after, start=3))
    training.train(0, 5)
    assert training.results == ["before 0", "before 1", "before 2", "after 3", "after 4"]


@pytest.mark.parametrize(
    ("stopped_at", "expected"), [(2, ["before 2", "after 3"]), (3, ["after 3", "after 4"]), (4, ["after 4", "after 5"])]
)
def test_a_resumed_training_goes_on_with_the_part_of_its_iteration(stopped_at, expected):
    """The part is a new one, as after a restart, and knows nothing of the iterations before."""
    training = Training(ByIteration(before, after, start=3))
    training.train(stopped_at, stopped_at + 2)
    assert training.results == expected


@pytest.mark.parametrize(
    ("iteration", "variant"), [(0, "tood_warmup"), (29, "tood_warmup"), (30, "tood"), (99, "tood")]
)
def test_tood_changes_assigner_and_loss_at_the_iteration_that_its_config_sets(iteration, variant):
    """A share of 0.3 of 100 iterations: from iteration 30 on, it is the detector without warm-up."""
    batch = [sample((96, 128), [(20, 10, 70, 60)])]
    switching = build("tood", "MODEL.CLQ.ASSIGN.WARMUP", 0.3, "SOLVER.MAX_ITER", 100)
    with EventStorage(iteration):
        found = switching(batch)
    with EventStorage():
        expected = build(variant)(batch)
        other = build("tood" if variant == "tood_warmup" else "tood_warmup")(batch)
    assert {k: x.item() for k, x in found.items()} == {k: x.item() for k, x in expected.items()}
    assert {k: x.item() for k, x in found.items()} != {k: x.item() for k, x in other.items()}
