"""The parts that a config names are built with the settings of their keys."""

import clq
import pytest
from clq.modeling.assign.atss import ATSSAssigner
from clq.modeling.assign.max_iou import MaxIoUAssigner
from clq.modeling.assign.simota import SimOTAAssigner
from clq.modeling.assign.task_aligned import TaskAlignedAssigner
from clq.modeling.build import build_assigner, build_coder, build_loss, build_quality, build_selector
from clq.modeling.by_iteration import ByIteration
from clq.modeling.scoring import ScoreRule
from detectron2.utils.events import EventStorage


def config(**settings):
    """The default config with settings under ``MODEL.CLQ``, whose keys are written with ``__`` for a dot."""
    opts = [x for key, value in settings.items() for x in (f"MODEL.CLQ.{key.replace('__', '.')}", value)]
    return clq.setup_cfg(None, [*opts, "SOLVER.MAX_ITER", 200])


def test_atss_has_the_settings_of_its_keys():
    assigner = build_assigner(config(ASSIGN__NAME="atss", TOPK=5, ANCHOR_SCALE=6.0, ANCHOR_OFFSET=0.5))
    assert type(assigner) is ATSSAssigner
    assert (assigner.topk, assigner.anchor_scale, assigner.center_offset) == (5, 6.0, 0.5)


def test_simota_has_the_settings_of_its_keys():
    keys = {"ASSIGN__SIMOTA_RADIUS": 1.5, "ASSIGN__SIMOTA_CANDIDATES": 7, "ASSIGN__SIMOTA_IOU_WEIGHT": 2.0}
    assigner = build_assigner(config(ASSIGN__NAME="simota", **keys))
    assert type(assigner) is SimOTAAssigner
    assert (assigner.radius, assigner.candidates, assigner.iou_weight) == (1.5, 7, 2.0)


def test_max_iou_has_the_settings_of_its_keys():
    keys = {"ASSIGN__MAX_IOU_THRESHOLDS": [0.3, 0.6], "ASSIGN__MAX_IOU_LOW_QUALITY": False}
    assigner = build_assigner(config(ASSIGN__NAME="max_iou", **keys))
    assert type(assigner) is MaxIoUAssigner
    assert (assigner.lower, assigner.upper, assigner.low_quality_matches) == (0.3, 0.6, False)


TASK = {"ASSIGN__NAME": "task", "ASSIGN__TASK_TOPK": 4, "ASSIGN__TASK_ALPHA": 0.5, "ASSIGN__TASK_BETA": 2.0}


def test_task_aligned_assignment_follows_atss_after_its_share_of_the_training():
    assigner = build_assigner(config(**TASK, ASSIGN__WARMUP=0.1))
    assert type(assigner) is ByIteration
    assert (type(assigner.before), type(assigner.after), assigner.start) == (ATSSAssigner, TaskAlignedAssigner, 20)
    assert (assigner.after.topk, assigner.after.alpha, assigner.after.beta) == (4, 0.5, 2.0)


def test_without_warmup_there_is_one_assigner_and_one_loss():
    cfg = config(**TASK, ASSIGN__WARMUP=0.0, CLS__LOSS="qfl")
    assert type(build_assigner(cfg)) is TaskAlignedAssigner
    assert type(build_loss(cfg, build_coder(cfg), None, ScoreRule())) is not ByIteration


def test_assigner_and_loss_of_task_aligned_training_change_together():
    """The first loss is ATSS's, with a target of 1; the second one learns the alignment metric."""
    cfg = config(**TASK, ASSIGN__WARMUP=0.25, CLS__LOSS="qfl", BOX__WEIGHT_BY="score", QUALITY__NAME="task")
    assigner = build_assigner(cfg)
    loss = build_loss(cfg, build_coder(cfg), build_quality(cfg), ScoreRule())
    for iteration, soft_target in ((0, False), (49, False), (50, True), (199, True)):
        with EventStorage(iteration):
            assert loss.current.soft_target == soft_target
            assert type(assigner.current) is (TaskAlignedAssigner if soft_target else ATSSAssigner)


@pytest.mark.parametrize(("counts", "locations"), [("pairs", False), ("locations", True)])
def test_the_selector_has_the_settings_of_its_keys(counts, locations):
    keys = {"SCORE_THRESH": 0.1, "TOPK_CANDIDATES": 50, "NMS_THRESH": 0.4, "TOPK_COUNTS": counts}
    cfg = config(**keys)
    cfg.TEST.DETECTIONS_PER_IMAGE = 30
    selector = build_selector(cfg, build_coder(cfg), ScoreRule(0.3))
    limits = selector.score_thresh, selector.topk_candidates, selector.nms_thresh, selector.max_detections
    assert limits == (0.1, 50, 0.4, 30)
    assert selector.count_locations == locations
    assert selector.score == ScoreRule(0.3)
