import clq
import pytest
from clq.engine import config_checks
from clq.errors import UserError

WEIGHTED = "WeightedTrainingSampler", "WeightedCategoryTrainingSampler"


def config(*opts):
    return clq.setup_cfg(None, ["MODEL.META_ARCHITECTURE", "CLQ", "MODEL.DEVICE", "cpu", *opts])


def test_detectron2s_own_choices_pass():
    for opts in (
        [],
        ["MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone"],
        ["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"],
    ):
        config_checks.check_model(config(*opts))
        config_checks.check_training(config(*opts))


@pytest.mark.parametrize(
    "opts, message",
    [
        (["DATASETS.TILE.SIZE", 64], "cannot be combined with DATASETS.TILE.SIZE"),
        (["MODEL.META_ARCHITECTURE", "RetinaNet"], "RetinaNet models give no candidates"),
    ],
)
def test_candidates_of_models_without_any_are_refused_before_the_training(opts, message):
    config_checks.check_report(config(*opts))
    config_checks.check_report(config("TEST.REPORT_CANDIDATES", 3))
    with pytest.raises(UserError, match=f"TEST.REPORT_CANDIDATES 3: {message}"):
        config_checks.check_report(config("TEST.REPORT_CANDIDATES", 3, *opts))


@pytest.mark.parametrize(
    "weighted, known",
    [
        (None, []),
        (lambda cfg: None, ["WeightedTrainingSampler"]),
        (lambda cfg, enable_category_balance=False: None, list(WEIGHTED)),
    ],
)
def test_samplers_are_those_of_the_installed_detectron2(weighted, known, monkeypatch):
    """0.6; main, at first with one that weighs data sets, later with one that balances classes too."""
    if weighted is None:
        monkeypatch.delattr(config_checks.loader, "_build_weighted_sampler", raising=False)
    else:
        monkeypatch.setattr(config_checks.loader, "_build_weighted_sampler", weighted, raising=False)
    for name in WEIGHTED:
        cfg = config("DATALOADER.SAMPLER_TRAIN", name)
        assert ("TRAIN_REPEAT_FACTOR" in cfg.DATASETS) == (weighted is not None)
        if name in known:
            config_checks.check_training(cfg)
        else:
            with pytest.raises(UserError, match=f"SAMPLER_TRAIN {name}: must be one of TrainingSampler, .*"):
                config_checks.check_training(cfg)


@pytest.mark.parametrize(
    "entry, good",
    [(["a", 2.5], True), (["a", 2], True), (["b", 2.5], False), (["a", 0], False), (["a"], False), ("ab", False)],
)
def test_repeat_factors_are_of_training_sets(entry, good, monkeypatch):
    monkeypatch.setattr(config_checks.loader, "_build_weighted_sampler", lambda cfg: None, raising=False)
    cfg = config("DATASETS.TRAIN", ["a"], "DATASETS.TRAIN_REPEAT_FACTOR", [entry])
    if good:
        config_checks.check_training(cfg)
    else:
        with pytest.raises(UserError, match=r"TRAIN_REPEAT_FACTOR .*: each entry is \[a name in DATASETS.TRAIN, "):
            config_checks.check_training(cfg)


@pytest.mark.parametrize("ratio, good", [(0.5, True), (1.0, True), (0.0, False), (1.5, False)])
def test_a_subset_is_a_part(ratio, good):
    cfg = config("DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler", "DATALOADER.RANDOM_SUBSET_RATIO", ratio)
    if good:
        config_checks.check_training(cfg)
    else:
        with pytest.raises(UserError, match=f"RANDOM_SUBSET_RATIO {ratio}: must be above 0"):
            config_checks.check_training(cfg)


@pytest.mark.parametrize(
    "batch, processes, reference, good",
    [(4, 1, 0, True), (4, 2, 0, True), (5, 2, 0, False), (0, 1, 0, False), (6, 1, 3, True), (8, 1, 3, False)],
)
def test_a_batch_is_shared_evenly(batch, processes, reference, good, monkeypatch):
    """Over the processes there are, or those that the config was written for and is rescaled from."""
    monkeypatch.setattr(config_checks.comm, "get_world_size", lambda: processes)
    cfg = config("SOLVER.IMS_PER_BATCH", batch, "SOLVER.REFERENCE_WORLD_SIZE", reference)
    if good:
        config_checks.check_training(cfg)
    else:
        with pytest.raises(
            UserError, match=f"IMS_PER_BATCH {batch}: .* of the number of processes, {reference or processes}"
        ):
            config_checks.check_training(cfg)


@pytest.mark.parametrize(
    "opts, processes, said",
    [
        (["SOLVER.ACCUMULATE", 4], 1, None),
        (["SOLVER.ACCUMULATE", 4], 2, None),
        (["SOLVER.ACCUMULATE", 4], 4, "SOLVER.ACCUMULATE 4: must divide the 2 images of a step that each process"),
        (["SOLVER.ACCUMULATE", 3], 1, "SOLVER.ACCUMULATE 3: must divide the 8 images"),
        (["SOLVER.ACCUMULATE", 0], 1, "SOLVER.ACCUMULATE 0: must be at least 1"),
        (["SOLVER.ACCUMULATE", 2, "MODEL.META_ARCHITECTURE", "RetinaNet"], 1, "ACCUMULATE 2: RetinaNet .*set it to 1"),
        (["SOLVER.EMA.ENABLED", True], 1, None),
        (["SOLVER.EMA.ENABLED", True, "SOLVER.EMA.DECAY", 1.0], 1, r"SOLVER\.EMA\.DECAY 1\.0: .* below 1"),
    ],
)
def test_parts_and_averages(opts, processes, said, monkeypatch):
    monkeypatch.setattr(config_checks.comm, "get_world_size", lambda: processes)
    cfg = config("SOLVER.IMS_PER_BATCH", 8, *opts)
    if said is None:
        config_checks.check_training(cfg)
    else:
        with pytest.raises(UserError, match=said):
            config_checks.check_training(cfg)


def test_folders(tmp_path):
    config_checks.make_folder("--output", str(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"--output {tmp_path}/file: cannot be created .File exists.; choose another"):
        config_checks.make_folder("--output", str(tmp_path / "file"))
