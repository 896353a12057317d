"""The one way to make a config: defaults, then a file, then overrides."""

import logging
from collections.abc import Callable, Sequence

import torch
from detectron2.config import CfgNode, get_cfg

from clq.config.merge import merge_file, merge_opts
from clq.config.plain import check_plain
from clq.config.table import add_clq_config, check_keys, replace_renamed
from clq.errors import UserError
from clq.utils.files import JsonLimit

logger = logging.getLogger(__name__)

_finishers: list[Callable[[CfgNode], None]] = []


def finish_configs_with(finisher: Callable[[CfgNode], None]) -> None:
    """Makes :func:`setup_cfg` call a function with each config before it returns it.

    This is how ``clq/__init__.py`` connects the config with the data sets that it declares, which this package, one
    that all others import, cannot import itself.

    Args:
        finisher: function that may change the config in place, and may raise UserError.
    """
    _finishers.append(finisher)


def limit_json(cfg: CfgNode) -> None:
    """Applies ``DATASETS.MAX_JSON_MIB`` to what this process reads from now on.

    Raises:
        UserError: the key has a value that it does not accept.
    """
    check_keys(cfg, "DATASETS.MAX_JSON_MIB")
    JsonLimit.max_mib = cfg.DATASETS.MAX_JSON_MIB


def setup_cfg(config_file: str | None, opts: Sequence[object] = ()) -> CfgNode:
    """Makes a config from Detectron2's defaults, the project's keys, a file, and overrides, in this order.

    Nothing in the file is executed; tags such as ``!!python/object`` are refused. A config that asks for CUDA on a
    machine without CUDA is moved to the CPU, with a warning in the log. Data sets in ``DATASETS.COCO_JSON``
    and ``DATASETS.SETS`` are registered with Detectron2, and their paths become absolute.

    Args:
        config_file: path of a yaml file, whose ``_BASE_`` is followed, or None for the defaults.
        opts: overrides ``KEY VALUE KEY VALUE ...``. A value may be text, as from a command line, or the value itself.

    Raises:
        UserError: the file does not exist or is not plain yaml, a key is unknown, a value is of the wrong type, empty
            or not plain, or the device does not exist.
    """
    cfg = get_cfg()
    add_clq_config(cfg)
    if config_file:
        merge_file(cfg, config_file)
    merge_opts(cfg, list(opts))
    check_plain(cfg)
    for sentence in replace_renamed(cfg):
        logger.warning("%s", sentence)
    cfg.MODEL.DEVICE = _available_device(cfg.MODEL.DEVICE)
    for finisher in _finishers:
        finisher(cfg)
    return cfg


def _available_device(name: str) -> str:
    """The device for ``MODEL.DEVICE`` on this machine: the CPU for a GPU if there is none."""
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as e:
        raise UserError(f"MODEL.DEVICE {name}: no such device; use cuda, cuda:0, cuda:1, ... or cpu.") from e
    if device.type != "cuda":
        return name
    if not torch.cuda.is_available():
        logger.warning("MODEL.DEVICE %s: this machine has no CUDA device; the CPU is used.", name)
        return "cpu"
    if (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"MODEL.DEVICE {name}: this machine has {torch.cuda.device_count()} GPU(s), counted from 0.")
    return name
