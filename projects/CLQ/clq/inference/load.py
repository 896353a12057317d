"""``clq.load``: a trained detector from the folder of its training, from a file, or from a config and weights."""

import os
import tempfile
from collections.abc import Sequence

from detectron2.config import CfgNode

from clq.checkpoint.detector_info import DetectorInfo, read_info
from clq.checkpoint.folder import BEST, FINAL, checkpoint_to_resume
from clq.checkpoint.storage import SAFETENSORS
from clq.config import setup_cfg
from clq.data.categories import Categories
from clq.data.num_classes import num_classes_group
from clq.errors import UserError
from clq.inference.predictor import Predictor

_WEIGHTS = ".pth", SAFETENSORS, ".pkl"
_CONFIG = "config.yaml"  # Detectron2's copy of the config of a training, in its folder


def load(
    config: str | os.PathLike,
    weights: str | os.PathLike | None = None,
    *,
    device: str | None = None,
    opts: Sequence[object] = (),
) -> Predictor:
    """Loads a trained detector.

    >>> predictor = clq.load("output/sample")  # the folder of a training
    >>> predictor = clq.load("model_final.pth")  # a checkpoint, which knows its config and its classes
    >>> predictor = clq.load("CLQ/clq_R_50_FPN_1x", "clq_r50.pth")  # a config of the project, and weights
    >>> result = predictor("street.jpg")

    Args:
        config: one of the above. Of a folder, ``model_best.pth`` is taken if there is one, then ``model_final.pth``,
            then the newest checkpoint. Checkpoints of older versions, and those of other projects, need a
            ``config.yaml`` beside them or a config.
        weights: file of weights, if ``config`` is not one.
        device: ``cpu``, ``cuda``, ``cuda:1``, ...; that of the config, or the CPU where there is none, if not given.
        opts: config overrides, ``KEY, VALUE, KEY, VALUE, ...``.

    Returns:
        A predictor for images; see :class:`~clq.inference.predictor.Predictor`.

    Raises:
        UserError: something is missing or does not fit together.
    """
    config_file, weights_file, given = _files(os.path.expanduser(os.fspath(config)), weights)
    info = None if weights_file is None else _info(weights_file)
    if config_file is None and info is None:
        raise UserError(
            f"{weights_file}: does not say which detector it belongs to, and there is no {_CONFIG} beside it; give "
            "both: clq.load(config, weights)."
        )
    overrides = [*opts]
    if weights_file is not None:
        overrides += ["MODEL.WEIGHTS", weights_file]
    if device is not None:
        overrides += ["MODEL.DEVICE", device]
    if info is None:
        return Predictor(setup_cfg(config_file, overrides))
    if given:  # a config of the project takes the number of classes from its training set, which is not needed here
        cfg = setup_cfg(config_file, [*overrides, *_num_classes(config_file, overrides, len(info.class_names))])
    else:
        cfg = _parse(info.config, weights_file, overrides)
    return Predictor(cfg, Categories(info.category_ids, info.class_names))


def _files(config: str, weights: str | os.PathLike | None) -> tuple[str | None, str | None, bool]:
    """Finds config and weights.

    Returns:
        The config, None if there is none; the weights, None if the config names them; and whether the config was given
        rather than found beside the weights.
    """
    path = None if weights is None else os.path.expanduser(os.fspath(weights))
    if os.path.isdir(config):
        path = path or _weights_in(config)
    elif config.endswith(_WEIGHTS):
        if path is not None:
            raise UserError(f"{config}: is a file of weights, and {path} is given as well; give a config and weights.")
        path = config
    else:
        return config, path, True
    beside = os.path.join(os.path.dirname(path) if config == path else config, _CONFIG)
    return beside if os.path.isfile(beside) else None, path, False


def _weights_in(folder: str) -> str:
    """The best checkpoint in the folder of a training, or the last one."""
    for name in (BEST, FINAL):
        if os.path.isfile(path := os.path.join(folder, f"{name}.pth")):
            return path
    if (newest := checkpoint_to_resume(folder)) is None:
        raise UserError(f"{folder}: has no checkpoint; give the OUTPUT_DIR of a training, or a file of weights.")
    return newest


def _info(path: str) -> DetectorInfo | None:
    """What a file of weights says about its detector."""
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file; give a checkpoint such as output/model_final.pth.")
    return read_info(path)


def _num_classes(config_file: str | None, opts: Sequence[object], number: int) -> list[object]:
    """Sets the number of classes where the config leaves it to a training set."""
    cfg = setup_cfg(config_file, opts)
    group = num_classes_group(cfg)
    return [f"MODEL.{group}.NUM_CLASSES", number] if cfg.MODEL[group].NUM_CLASSES == -1 else []


def _parse(text: str, source: str | None, opts: Sequence[object]) -> CfgNode:
    """Makes a config of the text in a checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, _CONFIG)
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)
        try:
            return setup_cfg(path, opts)
        except UserError as e:
            raise UserError(str(e).replace(path, f"{source}, in its config")) from e
