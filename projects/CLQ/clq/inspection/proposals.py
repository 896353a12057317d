"""Proposes levels, anchors and image size for a data set, and computes what each of them would change.

Every setting is a list of config overrides. It is tried on the config itself, so what is proposed can be built.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from detectron2.config import CfgNode

from clq.errors import UserError
from clq.inspection.positives import Pyramid, build_pyramid, count_positives
from clq.inspection.training_images import Resizing, SizedImage, short_side

# With five levels, ATSS gives most objects 9 positives (the paper's 0.2 * k * L, and the median of COCO, BCCD and
# DeepPCB). An object with fewer than 4 has less than half of that, and not even the 2 x 2 locations around its centre.
FEW = 4
GOAL = 0.01  # share of objects with few positives that is good enough to look for a cheaper setting
GAIN = 0.75  # otherwise, the part of what can be gained at all that the proposal has to reach
TOLERANCE = 0.005  # difference between shares that does not matter
MAX_COST = (
    5.0  # number of locations that a proposal may have, relative to the config: a finer level has 4 times as many
)
LARGER = 1.25, 1.5, 2.0  # factors on the size of images
SCALES = 4.0, 5.0, 6.0, 8.0
_MORE_IN_RANGE = 0.1  # share of objects that a change of the anchors must bring into their range to be proposed
# Features of the bottom-up network for p2 to p5, and the coarsest levels that the pyramid can end with.
_FAMILIES = {
    "build_dense_resnet_fpn_backbone": (("res2", "res3", "res4", "res5"), (5, 6, 7)),
    "build_dense_res2net_fpn_backbone": (("res2", "res3", "res4", "res5"), (5, 6, 7)),
    "build_shufflenet_pan_backbone": (("stem", "stage2", "stage3", "stage4"), (5,)),
}

Overrides = dict[str, object]  # values by their config key


@dataclass(frozen=True)
class Setting:
    """A setting of a detector and what it does to the objects of a sample.

    Attributes:
        overrides: config keys that differ from the config, with their values.
        pyramid: levels and anchors.
        images: sample at the size of the network's input.
        size: size of the input in words, such as "short side 800".
    """

    overrides: Overrides
    pyramid: Pyramid
    images: Sequence[SizedImage]
    size: str

    @cached_property
    def counts(self) -> np.ndarray:
        """(T,) number of positives of each object."""
        return count_positives(self.pyramid, self.images)

    @cached_property
    def sizes(self) -> np.ndarray:
        """(T,) square root of the area of each object, in pixels of the input."""
        boxes = np.concatenate([image.boxes for image in self.images])
        return np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))

    @property
    def few(self) -> float:
        """Share of the objects with fewer than ``FEW`` positives."""
        return float((self.counts < FEW).mean())

    @property
    def none(self) -> float:
        """Share of the objects without a positive."""
        return float((self.counts == 0).mean())

    @property
    def in_range(self) -> float:
        """Share of the objects whose size is within a factor of the square root of 2 of that of an anchor."""
        anchors, root = np.array(self.pyramid.anchors), 2**0.5
        ratio = self.sizes[:, None] / anchors
        return float(((ratio >= 1 / root) & (ratio <= root)).any(axis=1).mean())

    @cached_property
    def num_locations(self) -> int:
        """Number of locations over all images."""
        return self.pyramid.num_locations(self.images)

    @property
    def num_pixels(self) -> int:
        """Number of pixels of the input over all images."""
        return sum(image.size[0] * image.size[1] for image in self.images)

    def cost(self, other: "Setting") -> float:
        """About the time relative to that of another setting, if the pixels and the locations each take half of it.

        Backbone and pyramid work on the pixels and the head on the locations; with ResNet-50 they do as much.
        """
        return (self.num_pixels / other.num_pixels + self.num_locations / other.num_locations) / 2


class Search:
    """Settings around that of a config, on one sample of its training images.

    Args:
        cfg: config of the training, of the meta-architecture CLQ.
        records: sample of the records.
    """

    def __init__(self, cfg: CfgNode, records: Sequence[dict]):
        self.cfg = cfg
        self._records = records
        self._images: dict[str, list[SizedImage]] = {}  # by size
        self._pyramids: dict[tuple[str, ...], Pyramid] = {}  # by levels; to build one takes as long as to count
        self.now = self.setting({})
        if not self.now.images:
            raise UserError("DATASETS.TRAIN: no image has an object; add some.")

    def setting(self, overrides: Overrides) -> Setting:
        """The config with some other values.

        Raises:
            UserError: the detector cannot be built with them.
        """
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.merge_from_list([x for pair in overrides.items() for x in pair])
        size = size_in_words(cfg)
        if size not in self._images:
            sized = map(Resizing(cfg).sized, self._records)
            self._images[size] = [image for image in sized if image is not None]
        levels = tuple(cfg.MODEL.CLQ.IN_FEATURES)
        if levels not in self._pyramids:
            self._pyramids[levels] = build_pyramid(cfg)
        pyramid = replace(self._pyramids[levels], anchor_scale=cfg.MODEL.CLQ.ANCHOR_SCALE)
        return Setting(overrides, pyramid, self._images[size], size)

    def run(self) -> tuple[Setting, list[Setting]]:
        """The proposed setting, which is ``now`` where nothing is better, and what it was chosen from.

        If few objects have few positives, the proposal is the cheapest setting that keeps it so: images are then not
        enlarged beyond their own size, and a level may be left out. Otherwise it is the cheapest one that reaches this,
        or most of what can be gained, with other anchors, larger images or a finer level. Anchors that fit the sizes of
        the objects are chosen last.
        """
        good = self.now.few <= GOAL
        candidates = [self.now, *([] if good else self._anchors({})), *self._levels_and_sizes(good)]
        candidates = [s for s in candidates if s.cost(self.now) <= MAX_COST]
        enough = max(GOAL, self.now.few - GAIN * (self.now.few - min(s.few for s in candidates)))
        best = min((s for s in candidates if s.few <= enough), key=lambda s: (s.cost(self.now), s.few))
        if best.cost(self.now) > 0.9 and self.now.few <= enough:
            best = self.now
        return self._with_anchors(best), self._pareto(candidates)

    def _levels_and_sizes(self, good: bool) -> Iterator[Setting]:
        """Other levels and sizes at the anchors of the config: smaller sizes if it is good already, else larger."""
        levels = [{}, *self._levels(coarser=good)]
        for size in [{}, *self._sizes(good)]:
            for overrides in levels:
                if size or overrides:
                    yield self.setting({**overrides, **size})

    def _levels(self, coarser: bool) -> list[Overrides]:
        """Overrides for a pyramid that begins at p2 or p3, each with the coarsest level that serves most objects.

        Args:
            coarser: whether the finest level must be coarser than that of the config.
        """
        now, cfg = list(self.now.pyramid.levels), self.cfg
        if cfg.MODEL.BACKBONE.NAME not in _FAMILIES:
            return []
        features, ends = _FAMILIES[cfg.MODEL.BACKBONE.NAME]
        found = []
        for first in (2, 3):
            if coarser and f"p{first}" <= now[0]:
                continue
            settings = []
            for last in ends:
                overrides = self._level_overrides(first, last, features)
                with contextlib.suppress(UserError):  # other keys of the config do not go with these levels
                    settings.append(self.now if overrides["MODEL.CLQ.IN_FEATURES"] == now else self.setting(overrides))
            if not settings:
                continue
            best = min(settings, key=lambda s: (round(s.few / TOLERANCE), s is not self.now, s.num_locations))
            if best is not self.now:
                found.append(best.overrides)
        return found

    def _level_overrides(self, first: int, last: int, features: Sequence[str]) -> Overrides:
        used = list(features[first - 2 :])
        overrides: Overrides = {"MODEL.CLQ.IN_FEATURES": [f"p{i}" for i in range(first, last + 1)]}
        if used != list(self.cfg.MODEL.FPN.IN_FEATURES):
            overrides["MODEL.FPN.IN_FEATURES"] = used
            if features[0].startswith("res"):
                overrides["MODEL.RESNETS.OUT_FEATURES"] = used
        return overrides

    def _sizes(self, good: bool) -> list[Overrides]:
        if not self.cfg.INPUT.LETTERBOX.ENABLED and not short_side(self.cfg):  # images are not resized
            return []
        if not good:
            return [self._size_overrides(factor) for factor in LARGER]
        scale = float(np.median([image.scale for image in self.now.images]))
        return [self._size_overrides(1 / scale)] if scale > 1.1 else []

    def _size_overrides(self, factor: float) -> Overrides:
        """Overrides that multiply the size of images by a factor; sides are rounded to multiples of 32 pixels."""

        def scaled(side: int) -> int:
            return max(32, round(side * factor / 32) * 32)

        i = self.cfg.INPUT
        if i.LETTERBOX.ENABLED:
            return {"INPUT.LETTERBOX.SIZE": [scaled(side) for side in i.LETTERBOX.SIZE]}
        longest = round(i.MAX_SIZE_TRAIN * scaled(short_side(self.cfg)) / short_side(self.cfg))
        return {
            "INPUT.MIN_SIZE_TRAIN": tuple(scaled(side) for side in i.MIN_SIZE_TRAIN),
            "INPUT.MAX_SIZE_TRAIN": longest,
            "INPUT.MIN_SIZE_TEST": scaled(i.MIN_SIZE_TEST) if i.MIN_SIZE_TEST else 0,
            "INPUT.MAX_SIZE_TEST": round(i.MAX_SIZE_TEST * longest / i.MAX_SIZE_TRAIN),
        }

    def _anchors(self, overrides: Overrides) -> list[Setting]:
        """A setting with each of the scales that the config does not have."""
        scales = [scale for scale in SCALES if scale != self.now.pyramid.anchor_scale]
        return [self.setting({**overrides, "MODEL.CLQ.ANCHOR_SCALE": scale}) for scale in scales]

    def _pareto(self, settings: Sequence[Setting]) -> list[Setting]:
        """The settings of which no other one is cheaper and has fewer objects with few positives, cheapest first."""
        found: list[Setting] = []
        for setting in sorted(settings, key=lambda s: (s.cost(self.now), s.few)):
            if not found or setting.few < found[-1].few - TOLERANCE:
                found.append(setting)
        return found

    def _with_anchors(self, best: Setting) -> Setting:
        """The setting with the scale that has most objects in the range of its anchors, if these are many more."""
        settings = self._anchors(best.overrides)
        lowest = min(s.few for s in [best, *settings])
        settings = [s for s in settings if s.few <= max(lowest + TOLERANCE, best.few)]
        better = max(settings, key=lambda s: (round(s.in_range, 2), s.pyramid.anchor_scale), default=best)
        return better if better.in_range > best.in_range + _MORE_IN_RANGE else best


def size_in_words(cfg: CfgNode) -> str:
    """The size of the network's input at the middle of training, such as "short side 800"."""
    if cfg.INPUT.LETTERBOX.ENABLED:
        return "frame {} x {}".format(*cfg.INPUT.LETTERBOX.SIZE)
    return f"short side {short_side(cfg)}" if short_side(cfg) else "not resized"
