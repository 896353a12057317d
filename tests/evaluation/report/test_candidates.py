"""What NMS loses, by hand; NMS itself as torchvision does it; and files of candidates."""

import json

import numpy as np
import pytest
import torch
from clq.errors import UserError
from clq.evaluation.report.candidates import Candidates, nms_losses, read_candidates, select
from made_runs import BOX, found, narrow, recorded, run, truth
from torchvision.ops import batched_nms


def test_the_box_that_nms_has_removed_fits_better():
    apart = [300, 0, 100, 100]
    objects = [(0, 0, BOX), (0, 0, apart), (1, 0, BOX)]
    results = [
        found(0, 0, narrow(0.7), 0.9),
        found(0, 0, BOX, 0.8),  # IoU .7 with the first, so it is removed
        found(0, 0, [390, 0, 100, 100], 0.7),  # at the edge of the second cat
        found(0, 0, [380, 0, 100, 100], 0.6),
    ]
    got = nms_losses(Candidates([0], results, 0.6, 100), truth(objects, images=2))
    assert (got["images"], got["candidates"], got["detections"]) == (1, 4, 2)
    assert (got["iou"], got["iou_best_box"]) == pytest.approx((0.7, 1))
    # One of two cats is found: 51 of 101 recalls, at 5 of 10 IoU thresholds; with the better box at all of them.
    assert (got["AP"], got["AP_best_box"]) == pytest.approx((100 * 51 / 101 / 2, 100 * 51 / 101))
    assert (got["objects"], got["lost_objects"], got["alpha"]) == (2, 0, {})


def test_an_object_is_lost_if_its_only_candidate_is_removed_beside_another_object():
    beside = [30, 0, 100, 100]  # IoU 70 / 130 with the first
    results = [found(0, 0, BOX, 0.9), found(0, 0, beside, 0.8)]
    got = nms_losses(Candidates([0], results, 0.5, 100), truth([(0, 0, BOX), (0, 0, [40, 0, 100, 100])]))
    assert got["lost_objects"] == 1
    few = nms_losses(Candidates([0], results, 0.9, 1), truth([(0, 0, BOX), (0, 0, [40, 0, 100, 100])]))
    assert few["detections"] == 1 and few["lost_objects"] == 1


def test_the_sweep_repeats_nms():
    # With α = 0 the wide box wins and removes the exact one; with α = 1 it is the other way round.
    parts = [(narrow(0.7), 0.9, 0.5), (BOX, 0.8, 1.0), ([300, 300, 20, 20], 0.1, 0.3)]
    results = [found(0, 0, b, c * q, cls_score=c, predicted_iou=q) for b, c, q in parts]
    got = nms_losses(Candidates([0], results, 0.6, 100), truth([(0, 0, BOX)]))
    assert got["alpha"][1.0] == pytest.approx(100) and got["alpha"][0.0] == pytest.approx(50) and got["AP"] == 100


@pytest.mark.parametrize("most", [2, 100])
def test_the_selection_as_torchvision(most):
    made = recorded()
    kept, keeper = select(made, made.scores, Candidates([], [], 0.3, most))
    corners = torch.from_numpy(np.concatenate([made.boxes[:, :2], made.boxes[:, :2] + made.boxes[:, 2:]], axis=1))
    group = torch.from_numpy(made.image * 10 + made.label)
    best_first = batched_nms(corners, torch.from_numpy(made.scores), group, 0.3).tolist()
    images = [made.image[d] for d in best_first]
    expected = [d for i, d in enumerate(best_first) if images[:i].count(images[i]) < most]
    assert kept.tolist() == sorted(expected)
    assert (made.scores[keeper] >= made.scores).all() and (keeper[keeper] == keeper).all()


def test_a_file_gives_back_what_was_saved(tmp_path):
    there = truth([(0, 0, BOX)])
    Candidates([0], [found(0, 0, BOX, 0.5)], 0.6, 100).save(str(tmp_path))
    path = tmp_path / "coco_candidates.json"
    assert read_candidates(str(path), there).results == [found(0, 0, BOX, 0.5)]
    content = json.loads(path.read_text())
    for change, message in [
        ({"image_ids": [7]}, "has images that the annotations lack"),
        ({"nms_thresh": "a"}, "holds no candidates"),
        ({"results": [found(0, 5, BOX, 0.5)]}, "detection 1 has an unknown category_id"),
    ]:
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(UserError, match=message):
            read_candidates(str(path), there)
    path.write_text("[]")
    with pytest.raises(UserError, match="holds no candidates"):
        read_candidates(str(path), there)


def test_no_candidates():
    got = nms_losses(Candidates([0], [], 0.6, 100), truth([(0, 0, BOX)]))
    assert got["AP"] == got["candidates"] == 0 and np.isnan(got["iou"])
    assert len(run([], [])) == 0
