"""Builds the augmentations of training and testing from the config keys under ``INPUT``."""

from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.detection_utils import build_augmentation

from clq.config import check_keys
from clq.data.colors import RandomColor, RandomFloatColor
from clq.data.transforms import Letterbox, RandomQuarterTurns, RandomZoomCrop, Zoom
from clq.errors import UserError, blamed_on


def build_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """Builds the augmentations of training: first the geometric ones, then the changes of colour.

    All geometric augmentations together interpolate the original pixels only once. That interpolation is Detectron2's
    own unless ``INPUT.AUG.SCALE``, ``INPUT.AUG.CROP`` or ``INPUT.LETTERBOX`` is set.

    Raises:
        UserError: a value under ``INPUT`` is out of range, or ``INPUT.LETTERBOX`` conflicts with another key.
    """
    check_keys(cfg, "INPUT.AUG")
    check_letterbox(cfg)
    _check_channels(cfg.INPUT.AUG, cfg.INPUT.FORMAT)
    augmentations = [_build_letterbox(cfg)] if cfg.INPUT.LETTERBOX.ENABLED else _build_resizing(cfg)
    return augmentations + build_color_augmentations(cfg)


def build_color_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """Builds the augmentations of training that change colours."""
    aug = cfg.INPUT.AUG
    augmentations: list[T.Augmentation] = []
    if aug.COLOR:
        augmentations.append(RandomColor(aug.COLOR, cfg.INPUT.FORMAT))
    if aug.BRIGHTNESS or tuple(aug.CONTRAST) != (1, 1) or tuple(aug.SATURATION) != (1, 1):
        augmentations.append(
            RandomFloatColor(
                brightness=aug.BRIGHTNESS,
                contrast=tuple(aug.CONTRAST),
                saturation=tuple(aug.SATURATION),
                prob=aug.COLOR_PROB,
                channels=cfg.INPUT.FORMAT,
            )
        )
    return augmentations


def _build_zoom(aug: CfgNode) -> Zoom:
    return Zoom(scale=tuple(aug.SCALE), sampling=aug.SCALE_SAMPLING, prob=aug.SCALE_PROB)


def _build_letterbox(cfg: CfgNode) -> Letterbox:
    aug = cfg.INPUT.AUG
    return Letterbox(
        tuple(cfg.INPUT.LETTERBOX.SIZE),
        zoom=_build_zoom(aug),
        flip_prob=0.5 if cfg.INPUT.RANDOM_FLIP == "horizontal" else 0.0,
        shift=aug.SHIFT,
        shift_prob=aug.SHIFT_PROB,
    )


def _build_resizing(cfg: CfgNode) -> list[T.Augmentation]:
    """The geometric augmentations without a letterbox."""
    aug = cfg.INPUT.AUG
    crop, resize, flip, exact = _build_geometry(cfg)
    if aug.CROP or tuple(aug.SCALE) != (1, 1):
        zoom = RandomZoomCrop(resize, zoom=_build_zoom(aug), size=tuple(aug.CROP) or None)
        return [*crop, *flip, *exact, zoom]  # flipped before it is padded, so the padding stays right and below
    return [*crop, resize, *flip, *exact]


def _build_geometry(
    cfg: CfgNode,
) -> tuple[list[T.Augmentation], T.ResizeShortestEdge, list[T.Augmentation], list[T.Augmentation]]:
    """Detectron2's crop, resizing and flip, and the turns and flips of this project. All but the resizing are exact."""
    with blamed_on("INPUT.MIN_SIZE_TRAIN, MIN_SIZE_TRAIN_SAMPLING, RANDOM_FLIP and CROP"):
        resize, *flip = build_augmentation(cfg, is_train=True)
        crop = [T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE)] if cfg.INPUT.CROP.ENABLED else []
    exact = [RandomQuarterTurns()] if cfg.INPUT.AUG.ROTATE90 else []  # these move pixels without interpolation
    if cfg.INPUT.AUG.FLIP_VERTICAL:
        exact.append(T.RandomFlip(horizontal=False, vertical=True))
    return crop, resize, flip, exact


def build_tile_augmentations(cfg: CfgNode) -> tuple[list[T.Augmentation], T.ResizeShortestEdge]:
    """Builds what happens to each image of a mosaic.

    Returns:
        The augmentations before the resizing, which move pixels without interpolation; and Detectron2's resizing, which
        ``INPUT.LETTERBOX`` replaces.
    """
    crop, resize, flip, exact = _build_geometry(cfg)
    return [*crop, *flip, *exact], resize


def build_test_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """Builds what evaluation and prediction do to images: Detectron2's resizing, or the letterbox.

    Raises:
        UserError: see :func:`check_letterbox`.
    """
    check_letterbox(cfg)
    if cfg.INPUT.LETTERBOX.ENABLED:
        return [Letterbox(tuple(cfg.INPUT.LETTERBOX.SIZE))]
    return build_augmentation(cfg, is_train=False)


def check_letterbox(cfg: CfgNode) -> None:
    """Checks ``INPUT.LETTERBOX`` and the keys that cannot be combined with it.

    Raises:
        UserError: the letterbox is enabled and has no valid size, or another key conflicts with it; or a key that
            needs the letterbox is set without it.
    """
    check_keys(cfg, "INPUT.LETTERBOX")
    box, i = cfg.INPUT.LETTERBOX, cfg.INPUT
    if not box.ENABLED:
        if i.AUG.SHIFT:
            raise UserError(
                f"INPUT.AUG.SHIFT {i.AUG.SHIFT}: needs INPUT.LETTERBOX.ENABLED True; otherwise set it to 0.0."
            )
        return
    kind = cfg.MODEL.META_ARCHITECTURE
    if kind != "CLQ":  # Detectron2's models map boxes back to the image by scaling only
        raise UserError(f"INPUT.LETTERBOX.ENABLED True: {kind} models do not support it; set it to False.")
    others = {
        "TEST.AUG.ENABLED": cfg.TEST.AUG.ENABLED,
        "INPUT.CROP.ENABLED": i.CROP.ENABLED,
        "INPUT.AUG.CROP": len(i.AUG.CROP) > 0,
        "INPUT.AUG.ROTATE90": i.AUG.ROTATE90,
        "INPUT.AUG.FLIP_VERTICAL": i.AUG.FLIP_VERTICAL,
    }
    if i.RANDOM_FLIP not in ("horizontal", "none"):
        raise UserError(f"INPUT.RANDOM_FLIP {i.RANDOM_FLIP}: with INPUT.LETTERBOX it must be horizontal or none.")
    if clash := [key for key, is_set in others.items() if is_set]:
        raise UserError(f"INPUT.LETTERBOX.ENABLED True: cannot be combined with {clash[0]}; unset one of the two.")


def _check_channels(aug: CfgNode, image_format: str) -> None:
    """Checks that the images have the channels that changes of colour and saturation need."""
    for key, off in (("COLOR", 0), ("SATURATION", [1.0, 1.0])):
        if aug[key] != off and image_format not in ("RGB", "BGR"):
            value = list(aug[key]) if key == "SATURATION" else aug[key]
            raise UserError(
                f"INPUT.AUG.{key} {value}: needs INPUT.FORMAT RGB or BGR; set it to {off} for {image_format}."
            )
