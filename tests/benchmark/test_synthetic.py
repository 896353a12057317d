"""Generated boxes and candidates."""

import clq  # noqa: F401  (first: it lets Detectron2 import)
import torch
from clq.benchmark.synthetic import make_candidates, random_boxes


def test_boxes_are_inside_the_image():
    torch.manual_seed(0)
    boxes = random_boxes(500, 120, 300)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= torch.tensor([300, 120])).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_as_many_candidates_as_asked_for_score_at_least_one_half():
    levels = [torch.zeros(1, 3, 4, 5), torch.zeros(1, 3, 2, 2).to(memory_format=torch.channels_last)]
    make_candidates(levels, 50)
    scores = torch.cat([level.flatten() for level in levels]).sigmoid()
    assert ((scores >= 0.5) & (scores < 0.983)).sum() == 50 and (scores < 1e-8).sum() == 72 - 50
    make_candidates(levels, 100)
    assert all((level >= 0).all() for level in levels)
