"""Prediction of many images: threads read and resize images ahead of the detector, and results keep their order."""

import os
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.structures import Instances

from clq.data.images import read_image
from clq.errors import UserError
from clq.inference.predictor import Detector, Predictor
from clq.inference.results import Result
from clq.inference.streams import Ahead, group_by_shape

# Batches are made of this many batches' images, among which those of the same shape are put together.
_BATCHES_IN_WINDOW = 4
_MAX_THREADS = 4
_SECONDS_TO_FILL = 0.05  # that the images of a slow source wait for others


@dataclass(frozen=True)
class Source:
    """An image to predict.

    Attributes:
        number: its number, from 0.
        path: path of the image, or of the video that it is a frame of.
        frame: the frame, (H, W, 3) uint8 RGB; None for an image file.
    """

    number: int
    path: str
    frame: np.ndarray | None = None


@dataclass(frozen=True)
class Outcome:
    """What has become of a source: a result, or one line on why there is none."""

    source: Source
    result: Result | None
    error: str = ""


@dataclass(frozen=True)
class Options:
    """How images are predicted.

    Attributes:
        batch_size: number of images, or of tiles, that the model receives at once.
        tile: side of a tile; see :meth:`Predictor.detector`.
        overlap: overlap of tiles; see :meth:`Predictor.detector`.
        keep_images: whether results have their images, for drawing. Otherwise the images are black.
        slow: whether images may come slowly, so that a batch does not wait until it is full.
        live: whether each image is wanted as soon as possible, as from a webcam.
    """

    batch_size: int = 1
    tile: int | None = None
    overlap: float | None = None
    keep_images: bool = True
    slow: bool = False
    live: bool = False


def predict_all(predictor: Predictor, sources: Iterable[Source], options: Options) -> Generator[Outcome, None, None]:
    """Predicts images with a bounded number of them in memory.

    Args:
        predictor: the detector.
        sources: the images. A thread of its own iterates over them.
        options: how they are predicted.

    Yields:
        The outcome of each source, in their order. An image that cannot be used is an outcome, too.

    Raises:
        UserError: an option is out of range.
    """
    detector = predictor.detector(tile=options.tile, overlap=options.overlap, batch_size=options.batch_size)
    alone = options.live or options.batch_size == 1 or detector.tiled
    window = 1 if alone else _BATCHES_IN_WINDOW * options.batch_size
    threads = 1 if options.live else min(_MAX_THREADS, max(1, (os.cpu_count() or 1) - 1))
    ahead = 1 if options.live else max(threads, 2, 0 if alone else options.batch_size)

    def load(source: Source) -> _Loaded:
        return _load(predictor, detector, source, options.keep_images)

    with Ahead(sources, load, threads=threads, ahead=ahead) as loaded:
        while taken := loaded.take(window, _SECONDS_TO_FILL if options.slow else None):
            yield from _detect(predictor, detector, taken, 1 if alone else options.batch_size)


@dataclass
class _Loaded:
    """A source with its image and the input of the model, which are None if the image cannot be used."""

    source: Source
    image: np.ndarray | None = None
    model_input: dict[str, Any] | None = None
    error: str = ""


def _load(predictor: Predictor, detector: Detector, source: Source, keep_image: bool) -> _Loaded:
    """Runs in a thread."""
    try:
        image = source.frame
        if image is None:
            image = read_image(source.path, "RGB", **predictor.read_options)
        model_input = detector.prepare(predictor.of_input(image))
    except UserError as e:
        return _Loaded(source, error=str(e).removeprefix(f"image {source.path}: "))
    if not keep_image:
        image = np.broadcast_to(np.zeros(3, np.uint8), image.shape)  # takes no memory
    return _Loaded(Source(source.number, source.path), image, model_input)


def _detect(predictor: Predictor, detector: Detector, taken: list[_Loaded], batch_size: int) -> list[Outcome]:
    """The outcomes of a window of images, in their order."""
    good = [x for x in taken if x.model_input is not None]
    found: dict[int, Instances] = {}
    multiple = max(getattr(getattr(predictor.model, "backbone", None), "size_divisibility", 1), 1)
    for batch in group_by_shape([_padded_shape(x.model_input, multiple) for x in good], batch_size):
        members = [good[i] for i in batch]
        try:
            instances = detector.detect([x.model_input for x in members])  # type: ignore[misc]
        except UserError as e:  # a tile is too thin; images with tiles are alone
            members[0].error = str(e)
            continue
        found.update(zip((x.source.number for x in members), instances, strict=True))
    outcomes = []
    for x in taken:
        if x.image is None or x.source.number not in found:
            outcomes.append(Outcome(x.source, None, x.error))
        else:
            outcomes.append(Outcome(x.source, predictor.result(x.image, x.source.path, found[x.source.number])))
    return outcomes


def _padded_shape(model_input: dict[str, Any] | None, multiple: int) -> tuple[int, int]:
    """(height, width) of an image that is padded to a multiple of the backbone's divisor."""
    assert model_input is not None
    height, width = (-(-n // multiple) * multiple for n in model_input["image"].shape[-2:])
    return height, width
