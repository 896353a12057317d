import itertools
import random

import clq
import numpy as np
import pytest
import torch
from clq.data.images import ImageError
from clq.data.loader import TrainLoader, build_train_loader, group_samples
from clq.errors import UserError
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from torch.utils.data import IterableDataset

SIZES = [(20, 10), (10, 20), (10, 10)]  # of which the first is wider than high
RECORDS = [
    {"file_name": f"{i}.png", "image_id": i, "width": SIZES[i % 3][0], "height": SIZES[i % 3][1]} for i in range(10)
]


def draw(record):
    """A mapper: the id of the image, and a number of each generator that augmentations draw from."""
    return record["image_id"], random.random(), np.random.uniform(), float(torch.rand(()))


def make(seed=1, group_by_shape=True, num_workers=0, batch_size=3, mapper=draw, **options):
    def sampler(seed, dataset):
        return TrainingSampler(len(dataset), seed=seed)

    options = {**options, "seed": seed, "group_by_shape": group_by_shape, "num_workers": num_workers}
    return TrainLoader(RECORDS, mapper, sampler, batch_size=batch_size, **options)


def first(loader, count=8, start=0):
    loader.start = start
    return list(itertools.islice(loader, count))


def test_a_batch_is_complete_when_enough_samples_of_its_group_have_come():
    samples = [(0, 4), (1, 2), (2, 3), (3, 2), (4, 0), (5, 1)]
    groups = bytes([0, 1, 1, 0, 0])  # of the indices 0 to 4
    batches = group_samples(samples, groups, 2)
    assert list(batches) == [[(0, 4), (2, 3)], [(1, 2), (3, 2)]]


def test_batches_are_those_that_detectron2_groups():
    indices = itertools.islice(TrainingSampler(len(RECORDS), seed=1), 200)
    expected = [[r["image_id"] for r in b] for b in AspectRatioGroupedDataset([RECORDS[i] for i in indices], 3)]
    found = [[sample[0] for sample in batch] for batch in first(make(), 60)]
    assert found == expected[:60]
    for batch in found:
        assert len({RECORDS[i]["width"] > RECORDS[i]["height"] for i in batch}) == 1


def test_without_grouping_batches_hold_the_samplers_order():
    indices = list(itertools.islice(TrainingSampler(len(RECORDS), seed=1), 24))
    found = [sample[0] for batch in first(make(group_by_shape=False)) for sample in batch]
    assert found == indices


def test_a_loader_that_starts_later_continues_whatever_was_drawn_before():
    expected = first(make())
    random.seed(7), np.random.seed(7), torch.manual_seed(7)
    assert first(make(), 5, start=3) == expected[3:]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_do_not_change_the_batches(num_workers):
    assert first(make(num_workers=num_workers), 5, start=3) == first(make())[3:]


DAMAGED = {0, 4, 5}


def draw_unless_damaged(record):
    if record["image_id"] in DAMAGED:
        raise ImageError(f"image {record['file_name']}: is damaged.")
    return draw(record)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damaged_images_are_replaced_by_others_of_their_group_as_the_seed_says(num_workers):
    reported = []
    options = {"mapper": draw_unless_damaged, "on_left_out": lambda *what: reported.append(what)}
    found = first(make(num_workers=num_workers, **options), 40)
    for batch, whole in zip(found, first(make(), 40), strict=True):
        for (image_id, *numbers), (expected, *expected_numbers) in zip(batch, whole, strict=True):
            assert image_id not in DAMAGED
            assert (RECORDS[image_id]["width"] > RECORDS[image_id]["height"]) == (
                RECORDS[expected]["width"] > RECORDS[expected]["height"]
            )
            if expected not in DAMAGED:  # images that are not damaged are not affected
                assert (image_id, numbers) == (expected, expected_numbers)
    assert set(reported) == {(f"{i}.png", f"image {i}.png: is damaged.") for i in DAMAGED}
    replaced = {image_id for batch in found for image_id, *_ in batch}
    assert replaced == set(range(10)) - DAMAGED
    assert first(make(**options), 10, start=25) == found[25:33] + found[33:35]


def test_if_no_image_can_be_used_the_loader_ends():
    def refuse(record):
        raise ImageError(f"image {record['file_name']}: is gone.")

    reported = []
    with pytest.raises(UserError, match=r"20 images in a row cannot be used; the last of them: image \d.png: is gone"):
        first(make(mapper=refuse, on_left_out=lambda *what: reported.append(what)))


def test_without_a_policy_a_damaged_image_is_an_error():
    with pytest.raises(ImageError, match="is damaged"):
        first(make(mapper=draw_unless_damaged))


def test_seed_and_start_may_be_set_after_iter():
    """Detectron2 0.6 calls iter() before a checkpoint is loaded."""
    loader = make(seed=5)
    batches = iter(loader)
    loader.seed, loader.start = 1, 2
    assert next(batches) == first(make())[2]


def test_no_two_samples_have_the_same_random_numbers():
    batches = first(make(), 20)
    drawn = [sample[1:] for batch in batches for sample in batch]
    assert len({numbers[0] for numbers in drawn}) == len({numbers[1] for numbers in drawn}) == len(drawn)
    assert first(make(seed=2), 20) != batches


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_states_of_the_process_stay_as_they_are(num_workers):
    torch.manual_seed(0)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    first(make(num_workers=num_workers), 2)
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_processes_share_one_stream_of_samples(monkeypatch):
    """With batches of one image and no grouping, two processes take turns in what one process sees."""
    expected = [batch[0] for batch in first(make(group_by_shape=False, batch_size=1), 8)]
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    found = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        found.append([batch[0] for batch in first(make(group_by_shape=False, batch_size=1), 4)])
    assert [sample for pair in zip(*found, strict=True) for sample in pair] == expected


def test_records_without_a_size_can_be_grouped():
    loader = TrainLoader(
        [{"image_id": i} for i in range(3)], draw, lambda *_: itertools.cycle([0, 1, 2]), seed=1, batch_size=2,
        group_by_shape=True,
    )  # fmt: skip
    assert [sample[0] for batch in first(loader, 3) for sample in batch] == [0, 1, 2, 0, 1, 2]


def test_the_digest_tells_data_sets_apart():
    assert make().digest == make(seed=2).digest
    others = TrainLoader(RECORDS[::-1], draw, lambda *_: [], seed=1, batch_size=1, group_by_shape=False)
    assert others.digest != make().digest


def config(*opts):
    records = [{**r, "annotations": [{"category_id": r["image_id"] % 2, "iscrowd": 0}]} for r in RECORDS]
    DatasetCatalog.register("loader_test", lambda: records)
    MetadataCatalog.get("loader_test").thing_classes = ["a", "b"]
    return clq.setup_cfg(None, ["MODEL.DEVICE", "cpu", "DATASETS.TRAIN", ("loader_test",), *opts])


@pytest.mark.parametrize(
    "opts",
    [
        ["DATALOADER.SAMPLER_TRAIN", "TrainingSampler"],
        ["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "DATALOADER.REPEAT_THRESHOLD", 1.0],
        ["DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler", "DATALOADER.RANDOM_SUBSET_RATIO", 0.5],
    ],
    ids=lambda opts: opts[1],
)
def test_every_sampler_of_a_config_follows_from_the_seed(opts):
    cfg = config("SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0, *opts)
    assert cfg.SEED == -1
    np.random.seed(0)
    one = build_train_loader(cfg, draw)
    np.random.seed(1)
    other = build_train_loader(cfg, draw)
    assert one.seed != other.seed  # drawn
    expected = first(one, 12)
    assert {len(batch) for batch in expected} == {2}
    other.seed = one.seed
    np.random.seed(2)
    assert first(other, 9, start=3) == expected[3:]


def test_seed_of_a_config():
    assert build_train_loader(config("SEED", 6), draw).seed == 6


def test_an_iterable_data_set_is_one_line(monkeypatch):
    class Stream(IterableDataset):
        def __iter__(self):
            yield RECORDS[0]

    cfg = config()
    monkeypatch.setattr("detectron2.data.build.get_detection_dataset_dicts", lambda *a, **k: Stream())
    with pytest.raises(UserError, match=r"DATASETS\.TRAIN loader_test: is an iterable data set; register a list"):
        build_train_loader(cfg, draw)
