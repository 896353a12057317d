from clq.experiments.bootstrap import Difference, VarianceParts
from clq.experiments.forest_plot import draw_forest
from matplotlib.image import imread

PARTS = VarianceParts(0.1, 10, 1)


def test_every_variant_gets_a_line(tmp_path):
    lines = {"GFL": Difference(0.8, 0.2, 1.4, 5, PARTS), "A & B": Difference(-0.1, -0.9, 0.7, 5, PARTS)}
    draw_forest(lines, "ATSS", tmp_path / "two.png")
    draw_forest({**lines, "third": Difference(0.0, 0.0, 0.0, 1, None)}, "ATSS", tmp_path / "three.png")
    two, three = imread(tmp_path / "two.png"), imread(tmp_path / "three.png")
    assert two.shape[1] == three.shape[1] and two.shape[0] < three.shape[0]
    blue, grey = (two[..., :3] - [31 / 255, 119 / 255, 180 / 255]), (two[..., :3] - [0.45, 0.45, 0.45])
    assert (abs(blue).max(-1) < 0.01).any() and (abs(grey).max(-1) < 0.01).any()  # one is clear of 0, the other is not
