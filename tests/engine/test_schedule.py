"""The length of a training in epochs, and steps that are fractions of it."""

import logging

import clq
import pytest
import torch
from clq.data.left_out import leave_out
from clq.engine.schedule import check_schedule, resolve_epochs, scale_to_workers
from clq.engine.trainer import Trainer
from clq.errors import UserError

EPOCHS = ["SOLVER.EPOCHS", 12, "SOLVER.STEPS", "(0.5, 0.75)"]


def config(tiny, *opts):
    return clq.setup_cfg(tiny, ["MODEL.DEVICE", "cpu", *opts])


def lengths(cfg):
    return cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD, cfg.SOLVER.CHECKPOINT_PERIOD


def test_epochs_become_iterations(tiny):
    """By hand: 16 images are 4 batches of 4, or 4 batches of 5, the last of which has images of the next epoch."""
    for batch in (4, 5):
        cfg = config(tiny, *EPOCHS, "TEST.EVAL_EPOCHS", 2, "SOLVER.CHECKPOINT_EPOCHS", 3, "SOLVER.IMS_PER_BATCH", batch)
        resolve_epochs(cfg)
        assert lengths(cfg) == (48, 8, 12)
        before = cfg.dump()
        resolve_epochs(cfg)  # as a training of the saved config does
        assert cfg.dump() == before
    cfg = config(tiny, *EPOCHS, "TEST.EVAL_EPOCHS", 0, "SOLVER.IMS_PER_BATCH", 64)
    resolve_epochs(cfg)
    assert lengths(cfg) == (12, 0, 1)
    cfg = config(tiny)
    before = cfg.dump()
    resolve_epochs(cfg)
    assert cfg.dump() == before


def test_an_epoch_has_the_images_that_the_loader_draws_from(tiny):
    cfg = config(tiny, *EPOCHS, "SOLVER.IMS_PER_BATCH", 1)
    records = Trainer.build_train_loader(cfg)._dataset
    leave_out("shapes_train", [(r["file_name"], r["image_id"]) for r in records][:3])
    try:
        resolve_epochs(cfg)
        assert cfg.SOLVER.MAX_ITER == 12 * 13
    finally:
        leave_out("shapes_train", [])
    subset = ["DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler", "DATALOADER.RANDOM_SUBSET_RATIO", 0.5]
    cfg = config(tiny, *EPOCHS, *subset)
    resolve_epochs(cfg)
    assert cfg.SOLVER.MAX_ITER == 12 * 2


@pytest.mark.parametrize("workers, expected", [(1, (48, 4, 4)), (2, (24, 2, 2)), (3, (24, 2, 2)), (32, (12, 1, 1))])
def test_epochs_stay_epochs_with_any_number_of_workers(tiny, workers, expected):
    """Batches of 4 images for each worker: 16 images are 4, 2, 1 1/3 and 1/8 of them."""
    cfg = config(tiny, *EPOCHS, "SOLVER.REFERENCE_WORLD_SIZE", 1)
    cfg.freeze()
    scaled = scale_to_workers(cfg, workers)
    assert lengths(scaled) == expected and scaled.is_frozen()
    assert scaled.SOLVER.STEPS == (0.5, 0.75)
    assert 4 * workers == scaled.SOLVER.IMS_PER_BATCH
    assert lengths(cfg) == (60, 0, 5000)  # not changed


def rates(cfg):
    """The learning rate of each step, relative to the highest."""
    cfg = scale_to_workers(cfg, 1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, found = Trainer.build_lr_scheduler(cfg, optimizer), []
    for _ in range(cfg.SOLVER.MAX_ITER):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("length", [["SOLVER.EPOCHS", 5], ["SOLVER.MAX_ITER", 20]])
def test_steps_may_be_fractions(tiny, length):
    found = rates(config(tiny, *length, "SOLVER.STEPS", "(0.5, 0.75)", "SOLVER.WARMUP_ITERS", 0))
    assert found == pytest.approx([1.0] * 10 + [0.1] * 5 + [0.01] * 5)


def test_the_warm_up_of_a_small_set_takes_a_tenth_of_the_training(tiny, caplog):
    warmup = ["SOLVER.WARMUP_ITERS", 500, "SOLVER.WARMUP_FACTOR", 0.5]
    found = rates(config(tiny, "SOLVER.EPOCHS", 10, "SOLVER.STEPS", "()", *warmup))
    assert found == pytest.approx([0.5, 0.625, 0.75, 0.875] + [1.0] * 36)  # 40 iterations
    text = (
        "SOLVER.EPOCHS 10: 40 iterations of 4 images; warm-up of 4, steps at [], evaluation every 4, checkpoint every 4"
    )
    assert text in caplog.text


@pytest.mark.parametrize(
    "opts, message",
    [
        (["SOLVER.STEPS", "(10, 0.5)"], r"SOLVER\.STEPS \[10, 0\.5\]: must be numbers of iterations, or ascending"),
        (["SOLVER.STEPS", "(0.9, 0.5)"], r"SOLVER\.STEPS \[0\.9, 0\.5\]: must be .* ascending fractions"),
        (["SOLVER.STEPS", "('a',)"], r"SOLVER\.STEPS \['a'\]: must be numbers of iterations"),
        (
            ["SOLVER.EPOCHS", 12, "SOLVER.STEPS", "(60000, 80000)", "SOLVER.MAX_ITER", 90000],
            r"STEPS \[60000, 80000\]: with SOLVER\.EPOCHS .* such as \[0\.667, 0\.889\]\.",
        ),
        (["SOLVER.PATIENCE", 3], r"PATIENCE 3: needs evaluations .*; set TEST\.EVAL_PERIOD and DATASETS\.TEST"),
        (["SOLVER.PATIENCE", 3, "TEST.EVAL_PERIOD", 5, "DATASETS.TEST", "()"], r"needs evaluations"),
        ([*EPOCHS, "SOLVER.PATIENCE", 3, "TEST.EVAL_EPOCHS", 0], r"needs evaluations .*; set TEST\.EVAL_EPOCHS"),
    ],
)
def test_keys_that_do_not_fit_together_are_refused(tiny, opts, message):
    with pytest.raises(UserError, match=message):
        check_schedule(config(tiny, *opts))


@pytest.mark.parametrize(
    "opts", [[*EPOCHS, "SOLVER.PATIENCE", 3], ["SOLVER.EPOCHS", 3, "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"]]
)
def test_keys_that_fit_together_are_accepted(tiny, opts):
    check_schedule(config(tiny, *opts))


@pytest.fixture(autouse=True)
def messages(caplog):
    caplog.set_level(logging.INFO, logger="clq")
