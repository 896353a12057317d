"""The picture of a training's curves."""

import types

import clq  # noqa: F401  (first: it lets Detectron2 import)
import numpy as np
import pytest
from clq.engine.curves import CurvesHook, draw_curves
from matplotlib.figure import Figure
from PIL import Image

METRICS = """iteration,lr,total_loss,loss_cls,loss_box,bbox/AP,bbox/AP50,bbox/AP-red,eta_seconds
19,0.01,3.0,2.0,1.0,,,,7
39,0.02,2.0,1.5,0.5,10.5,30.0,nan,6
40,,,,,20.5,40.0,20.5,
"""


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    found, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args: (found.append(self), save(self, *args)))
    return found


def test_the_panels_have_the_values_of_the_table(tmp_path, drawn):
    (tmp_path / "metrics.csv").write_text(METRICS)
    draw_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    panels = {axes.get_title(): {x.get_label(): x.get_xydata().tolist() for x in axes.lines} for axes in drawn[0].axes}
    assert panels.keys() == {"loss", "learning rate", "AP"}
    assert panels["loss"].keys() == {"total_loss", "loss_cls", "loss_box"}
    assert panels["loss"]["loss_cls"] == [[19, 2.0], [39, 1.5]]
    assert panels["learning rate"] == {"lr": [[19, 0.01], [39, 0.02]]}
    assert panels["AP"].keys() == {"bbox/AP", "bbox/AP50", "bbox/AP-red"}
    assert panels["AP"]["bbox/AP"] == [[39, 10.5], [40, 20.5]]
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width == 1200 and np.asarray(picture.convert("L")).std() > 10


def test_many_classes_and_panels_without_values_are_not_drawn(tmp_path, drawn):
    names = [f"bbox/AP-{i}" for i in range(20)]
    (tmp_path / "metrics.csv").write_text(f"iteration,lr,bbox/AP,{','.join(names)}\n9,,1.0{',2.0' * 20}\n")
    draw_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    (axes,) = drawn[0].axes
    assert [line.get_label() for line in axes.lines] == ["bbox/AP"]


def test_what_cannot_be_drawn_does_not_end_a_training(tmp_path, caplog):
    hook = CurvesHook(str(tmp_path))
    hook.trainer = types.SimpleNamespace(iter=9, max_iter=9)
    hook.after_train()  # there is nothing to draw
    (tmp_path / "metrics.csv").write_text("iteration,lr\n1,fast\n")
    hook.after_train()
    assert "curves.png: cannot be drawn (could not convert string to float: 'fast')" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_training_that_fails_draws_nothing(tmp_path):
    (tmp_path / "metrics.csv").write_text(METRICS)
    hook = CurvesHook(str(tmp_path))
    hook.trainer = types.SimpleNamespace(iter=8, max_iter=9)
    hook.after_train()
    assert not (tmp_path / "curves.png").exists()
