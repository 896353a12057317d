import io
import logging
import types

import clq
import pytest
import torch
from clq.engine.resume import ExactResume, is_finished, order_of_images
from torch import nn


def hook(*opts, digest="d", seed=3, model=None, start_iter=0):
    """A hook and its loader, as in a training that begins at an iteration."""
    loader = types.SimpleNamespace(seed=seed, start=0, digest=digest)
    made = ExactResume(model or nn.Identity(), loader, clq.setup_cfg(None, ["MODEL.DEVICE", "cpu", *opts]))
    made.trainer = types.SimpleNamespace(iter=start_iter, start_iter=start_iter, max_iter=10)
    return made, loader


def through_a_file(state):
    """A state as a checkpoint gives it back, without executing anything."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_a_drawn_seed_goes_on(caplog):
    before, _ = hook("SEED", -1, seed=5)
    after, loader = hook("SEED", -1, seed=8, start_iter=4)
    after.load_state_dict(through_a_file(before.state_dict()))
    after.before_train()
    assert (loader.seed, loader.start) == (5, 4)
    assert not caplog.records


def test_another_seed_is_not_used_and_named(caplog):
    before, _ = hook("SEED", 3)
    after, loader = hook("SEED", 4, seed=4)
    after.load_state_dict(through_a_file(before.state_dict()))
    assert loader.seed == 3
    assert "--resume: SEED 4 is not used; the training goes on with its own, 3" in caplog.text


@pytest.mark.parametrize(
    "key, value",
    [
        ("SOLVER.IMS_PER_BATCH", 8),
        ("DATASETS.TRAIN", ("other",)),
        ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"),
        ("DATALOADER.ASPECT_RATIO_GROUPING", False),
    ],
)
def test_a_key_that_changes_the_order_is_named(key, value, caplog):
    before, _ = hook("SEED", 3)
    after, _ = hook("SEED", 3, key, value)
    after.load_state_dict(through_a_file(before.state_dict()))
    (record,) = caplog.records
    assert record.getMessage().startswith(f"--resume: {key} is ")
    assert "sees its images in another order" in record.getMessage()


def test_other_images_and_another_number_of_processes_are_named(caplog, monkeypatch):
    before, _ = hook("SEED", 3)
    monkeypatch.setattr("clq.engine.resume.comm.get_world_size", lambda: 2)
    after, _ = hook("SEED", 3, digest="e")
    after.load_state_dict(through_a_file(before.state_dict()))
    assert "the digest of the image files is e and was d" in caplog.text
    assert "the number of processes is 2 and was 1" in caplog.text


def test_a_checkpoint_of_an_older_version_is_continued_with_a_warning(caplog):
    made, loader = hook("SEED", 3, start_iter=4)
    made.before_train()
    assert loader.start == 4
    assert "older version, which did not save the seed" in caplog.text


def test_random_numbers_of_a_step_follow_from_its_number():
    made, _ = hook()
    drawn = []
    for iteration, others in ((6, 0), (6, 3), (7, 0)):
        torch.rand(others)  # such as an evaluation draws
        made.trainer.iter = iteration
        made.before_step()
        drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[1] != drawn[2]


def test_processes_have_different_random_numbers(monkeypatch):
    made, _ = hook()
    drawn = []
    for rank in range(2):
        monkeypatch.setattr("clq.engine.resume.comm.get_rank", lambda rank=rank: rank)
        made.before_step()
        drawn.append(torch.rand(3).tolist())
    assert drawn[0] != drawn[1]


def test_the_moving_average_in_the_loss_of_detectron2s_models_goes_on():
    model, fresh = nn.Identity(), nn.Identity()
    model.loss_normalizer = 75.6
    before, _ = hook(model=model)
    after, _ = hook(model=fresh)
    after.load_state_dict(through_a_file(before.state_dict()))
    assert fresh.loss_normalizer == 75.6


def test_order_of_images_reads_nested_tuples_as_lists():
    """Checkpoints keep both, but a config from a file has lists where its saved copy has tuples."""
    loader = types.SimpleNamespace(digest="d")
    cfg = clq.setup_cfg(None, ["MODEL.DEVICE", "cpu", "DATASETS.TRAIN", ("a", "b")])
    assert order_of_images(cfg, loader)["DATASETS.TRAIN"] == ["a", "b"]


def test_only_a_training_that_came_to_its_end_is_finished(tmp_path, capsys):
    made, _ = hook("OUTPUT_DIR", str(tmp_path))
    made.trainer.iter = 9  # an error in the last iteration
    made.after_train()
    assert not finished(tmp_path, "SOLVER.MAX_ITER", 10)
    made.trainer.iter = 10
    made.after_train()
    assert capsys.readouterr().out == ""
    assert finished(tmp_path, "SOLVER.MAX_ITER", 10)
    said = capsys.readouterr().out
    assert len(said.splitlines()) == 1 and "finished, after 10 iterations. To go on, raise SOLVER.MAX_ITER" in said
    assert not finished(tmp_path, "SOLVER.MAX_ITER", 11)
    assert not finished(tmp_path, "SOLVER.EPOCHS", 1)  # it may be fewer epochs
    made.before_train()  # goes on
    assert not finished(tmp_path, "SOLVER.MAX_ITER", 10)


def test_a_training_in_epochs_is_finished_after_as_many_epochs(tmp_path, capsys):
    """Whatever their number of iterations: the data are not read."""
    made, _ = hook("OUTPUT_DIR", str(tmp_path), "SOLVER.EPOCHS", 5)
    made.trainer.iter = 10
    made.after_train()
    assert finished(tmp_path, "SOLVER.EPOCHS", 5) and finished(tmp_path, "SOLVER.MAX_ITER", 10)
    assert "finished, after 5 epochs. To go on, raise SOLVER.EPOCHS above 5" in capsys.readouterr().out
    assert not finished(tmp_path, "SOLVER.EPOCHS", 6)


def test_a_training_that_ended_early_is_finished_for_its_patience(tmp_path, capsys):
    opts = ["SOLVER.EPOCHS", 5, "SOLVER.PATIENCE"]
    made, _ = hook("OUTPUT_DIR", str(tmp_path), *opts, 3)
    made.trainer.iter = made.trainer.max_iter = 6
    made.trainer.waited = 3
    made.after_train()
    assert finished(tmp_path, *opts, 3)
    assert "6 iterations and 3 evaluations without a better bbox/AP. To go on, set SOLVER.PATIENCE to 0 or above 3" in (
        capsys.readouterr().out
    )
    assert not finished(tmp_path, *opts, 4) and not finished(tmp_path, *opts, 0)
    assert not finished(tmp_path, "SOLVER.MAX_ITER", 10)


def test_a_number_of_iterations_for_other_processes_is_scaled(tmp_path, monkeypatch):
    (tmp_path / "finished").write_text("5\n")  # as an older version wrote it
    opts = ["SOLVER.MAX_ITER", 10, "SOLVER.REFERENCE_WORLD_SIZE", 1]
    assert not finished(tmp_path, *opts)
    monkeypatch.setattr("clq.engine.resume.comm.get_world_size", lambda: 2)
    assert finished(tmp_path, *opts)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"iterations": "many"}', "null"])
def test_a_marker_that_was_interrupted_does_not_count(text, tmp_path):
    (tmp_path / "finished").write_text(text)
    assert not finished(tmp_path, "SOLVER.MAX_ITER", 1)


def finished(folder, *opts):
    return is_finished(clq.setup_cfg(None, ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(folder), *opts]))


@pytest.fixture(autouse=True)
def warnings_only(caplog):
    """Detectron2's loggers say more at the level INFO."""
    caplog.set_level(logging.WARNING)
