"""Training batches that can be computed again: each one follows from the seed and its iteration.

Detectron2's loader begins with other images after a resume, and its augmentations draw from the state that a worker
process happens to be in. Here a batch is a function of the seed, the iteration, the data set, the batch size, the
number of processes and the rank. A resumed training therefore continues with the batches that it would have seen,
although nothing about the loader is saved. The number of workers and what they have loaded ahead have no influence.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, build_detection_train_loader
from detectron2.utils import comm
from torch import Generator
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from clq.data.images import ImageError
from clq.data.left_out import Reporter, left_out_images
from clq.data.mixing_mapper import MixingMapper
from clq.data.tiling import tile_records
from clq.errors import UserError
from clq.utils.random_states import random_states, set_random_states

# The second entry of a key of random states, after the seed. It tells the uses of random numbers apart.
SAMPLE, STEP, SAMPLER = 0, 1, 2
_MOST_IN_A_ROW = 20  # images that cannot be used, until the fault is taken to be of the disk and not of the images


class TrainLoader:
    """An infinite iterable of batches, each a list of what the mapper returns.

    The indices come from a sampler of Detectron2's and keep its order. They are numbered by their position in the
    stream that all processes share, and grouped into batches before any image is read. The mapper then runs with
    random states that are set from the seed and the position of its sample.

    Attributes:
        seed: seed of the order and of the augmentations; the same in all processes.
        start: iteration of the first batch of an iterator. The iterator reads it, like the seed, when its first batch
            is asked for. To reach it, indices are drawn and dropped; no image is read.
        worker_init_fn: function called with the number of a worker when it starts, or None.
        digest: digest of the image files in their order, to recognise the data set by.
    """

    def __init__(
        self,
        records: Sequence[dict] | Any,
        mapper: Callable[[dict], dict],
        build_sampler: Callable[[int, Dataset], Iterable[int]],
        *,
        seed: int,
        batch_size: int,
        group_by_shape: bool,
        num_workers: int = 0,
        on_left_out: Callable[[str, str], None] | None = None,
    ):
        """Initializes the loader.

        Args:
            records: records in Detectron2's format.
            mapper: turns a record into the input of the model.
            build_sampler: returns the infinite indices of this process for a seed and the data set, which holds the
                records. Numpy's random state, from which Detectron2's samplers draw, is set from the seed.
            seed: as the attribute.
            batch_size: number of images in a batch of this process.
            group_by_shape: whether a batch holds only images that are wider than high, or none of them. An image
                without a size in its record counts as one that is not wider.
            num_workers: number of processes that load images; 0 loads them in this one.
            on_left_out: called in this process with the path of an image that cannot be used and the reason, each time
                that another image takes its place. Without it, the mapper's error ends the iteration.
        """
        entries = [records[i] for i in range(len(records))]
        wide = (group_by_shape and r.get("width", 0) > r.get("height", 0) for r in entries)
        self._groups = bytes(wide)  # one byte per record, 0 or 1
        self.digest = hashlib.sha256("\n".join(str(r.get("file_name")) for r in entries).encode()).hexdigest()
        # As in Detectron2: the records are kept in one block of bytes, which worker processes share.
        self._dataset: Any = DatasetFromList(records, copy=False) if isinstance(records, list) else records
        self._mapper = mapper
        self._build_sampler = build_sampler
        self._batch_size = batch_size
        self._num_workers = num_workers
        self._on_left_out = on_left_out
        self.seed = seed
        self.start = 0
        self.worker_init_fn: Callable[[int], None] | None = None

    def __iter__(self) -> Iterator[list[dict]]:
        # A generator: its body runs when the first batch is asked for. Detectron2 0.6 calls iter() before the trainer
        # has loaded the checkpoint that sets seed and start.
        batches = itertools.islice(self._batches(), self.start, None)
        loader = DataLoader(
            _Samples(self._dataset, self._mapper, self.seed, self._groups if self._on_left_out else None),
            batch_size=None,  # workers load single images, as in Detectron2, and the batches are put together here
            sampler=itertools.chain.from_iterable(batches),
            num_workers=self._num_workers,
            collate_fn=_unchanged,
            worker_init_fn=self.worker_init_fn,
            generator=Generator(),  # or the loader would draw from the default generator, which the model uses
        )
        samples = map(self._report, loader)
        while True:
            yield list(itertools.islice(samples, self._batch_size))

    def _report(self, sample: tuple[dict, list[tuple[str, str]]]) -> dict:
        mapped, left_out = sample
        for path, reason in left_out:
            assert self._on_left_out is not None
            self._on_left_out(path, reason)
        return mapped

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        """All batches of this process from iteration 0 on, as (position, index) pairs."""
        with random_states(self.seed, SAMPLER):
            indices = iter(self._build_sampler(self.seed, self._dataset))
        positions = itertools.count(comm.get_rank(), comm.get_world_size())
        return group_samples(zip(positions, indices, strict=False), self._groups, self._batch_size)


def group_samples(
    samples: Iterable[tuple[int, int]], groups: bytes, batch_size: int
) -> Iterator[list[tuple[int, int]]]:
    """Collects samples of one group into batches, as Detectron2's ``AspectRatioGroupedDataset`` does with images.

    Args:
        samples: (position, index) pairs.
        groups: group of each index, 0 or 1.
        batch_size: number of samples in a batch.

    Yields:
        The next batch that is complete.
    """
    waiting: tuple[list[tuple[int, int]], ...] = ([], [])
    for sample in samples:
        batch = waiting[groups[sample[1]]]
        batch.append(sample)
        if len(batch) == batch_size:
            yield batch[:]
            batch.clear()


class _Samples(Dataset):
    """Maps the record of an index with the random states of its position.

    Args:
        dataset: the records.
        mapper: of the loader.
        seed: of the loader.
        groups: group of each record, if an image that cannot be used is to be replaced by another one of its group.
            The index of the replacement is drawn with the states of the position, and thus follows from the seed and
            the position, too.
    """

    def __init__(self, dataset: Any, mapper: Callable[[dict], dict], seed: int, groups: bytes | None):
        self._dataset = dataset
        self._mapper = mapper
        self._seed = seed
        self._groups = groups

    def __getitem__(self, sample: tuple[int, int]) -> tuple[dict, list[tuple[str, str]]]:
        """Returns what the mapper returns, and (path, reason) of each image that it could not use."""
        position, index = sample
        key = self._seed, SAMPLE, position
        if get_worker_info() is not None:  # nothing else runs in a worker, so its states need not be restored
            set_random_states(*key)
            return self._map(index, position)
        with random_states(*key):
            return self._map(index, position)

    def _map(self, index: int, position: int) -> tuple[dict, list[tuple[str, str]]]:
        left_out: list[tuple[str, str]] = []
        while True:
            record = self._dataset[index]
            try:
                if isinstance(self._mapper, MixingMapper):
                    return self._mapper.mix(record, self._draw, position), left_out
                return self._mapper(record), left_out
            except ImageError as e:
                if self._groups is None:
                    raise
                left_out.append((getattr(e, "file_name", record["file_name"]), str(e)))
                if len(left_out) == _MOST_IN_A_ROW:
                    raise UserError(f"{len(left_out)} images in a row cannot be used; the last of them: {e}") from e
                groups = np.frombuffer(self._groups, dtype=np.uint8)
                index = int(np.random.choice(np.flatnonzero(groups == groups[index])))

    def _draw(self) -> dict:
        """The record of a random image, which another one is mixed with."""
        return self._dataset[np.random.randint(len(self._dataset))]


def _unchanged(sample: Any) -> Any:
    return sample


def build_train_loader(cfg: CfgNode, mapper: Callable[[dict], dict]) -> TrainLoader:
    """Builds the loader of ``DATASETS.TRAIN``, with the sampler of ``DATALOADER.SAMPLER_TRAIN``.

    With ``SEED`` -1 a seed is drawn. With ``DATASETS.ON_ERROR`` ``skip``, images that a check has left out are not
    loaded, and those that cannot be used are replaced and added to ``left_out.jsonl`` in ``OUTPUT_DIR``.

    Raises:
        UserError: a data set has no indices.
    """
    parts = _parts(cfg, mapper)

    def build_sampler(seed: int, dataset: Dataset) -> Iterable[int]:
        seeded = cfg.clone()
        seeded.defrost()
        seeded.SEED = seed  # some samplers of Detectron2 main read it
        return build_detection_train_loader.from_config(seeded, mapper=mapper, dataset=dataset)["sampler"]

    return TrainLoader(
        parts["dataset"],
        mapper,
        build_sampler,
        seed=cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed(),
        batch_size=parts["total_batch_size"] // comm.get_world_size(),
        group_by_shape=parts["aspect_ratio_grouping"],
        num_workers=parts["num_workers"],
        on_left_out=Reporter(cfg) if cfg.DATASETS.ON_ERROR == "skip" else None,
    )


def count_images(cfg: CfgNode) -> int:
    """The number of training images, or of their tiles, that a loader of :func:`build_train_loader` draws from.

    Raises:
        UserError: see :func:`build_train_loader`.
    """
    images = len(_parts(cfg, _unchanged)["dataset"])
    if cfg.DATALOADER.SAMPLER_TRAIN == "RandomSubsetTrainingSampler":
        return int(images * cfg.DATALOADER.RANDOM_SUBSET_RATIO)
    return images


def _parts(cfg: CfgNode, mapper: Callable[[dict], dict]) -> dict[str, Any]:
    """The parts of Detectron2's loader, without the images that a check has left out."""
    later = object()  # the sampler: it is not built yet, because a resumed training may set another seed
    parts = build_detection_train_loader.from_config(cfg, mapper=mapper, sampler=later)
    if isinstance(parts["dataset"], IterableDataset):
        raise UserError(
            f"DATASETS.TRAIN {', '.join(cfg.DATASETS.TRAIN)}: is an iterable data set; register a list of records."
        )
    if isinstance(parts["dataset"], list):
        gone = set().union(*map(left_out_images, cfg.DATASETS.TRAIN))
        parts["dataset"] = [r for r in parts["dataset"] if (r["file_name"], r.get("image_id")) not in gone]
        if cfg.DATASETS.TILE.SIZE:
            parts["dataset"] = tile_records(parts["dataset"], cfg)
    return parts
