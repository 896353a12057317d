"""Checks that the values of a config are of a kind that the code which reads them expects."""

from detectron2.config import CfgNode, get_cfg

from clq.config.table import add_clq_config
from clq.errors import UserError

_BITS = 64  # of the largest integer, which torch and numpy can hold; Python cannot even write the largest ones
_DEPTH = 10  # deepest nesting of lists and mappings in a value


def check_plain(cfg: CfgNode) -> None:
    """Checks all values of a config, those of Detectron2's own keys included.

    Raises:
        UserError: a value is null where the default is not, has an integer of more than 64 bits, or is nested more
            than ten deep or within itself, as yaml allows.
    """
    defaults = get_cfg()
    add_clq_config(defaults)
    _check_group(cfg, defaults, "")


def _check_group(cfg: CfgNode, defaults: CfgNode, prefix: str) -> None:
    for name, value in cfg.items():
        key, default = f"{prefix}{name}", defaults.get(name)
        if isinstance(value, CfgNode):
            _check_group(value, default if isinstance(default, CfgNode) else CfgNode(), f"{key}.")
        elif value is None and default is not None:
            raise UserError(f"{key} None: must be of type {type(default).__name__}, such as {default!r}.")
        elif fault := _fault(value, _DEPTH):
            raise UserError(f"{key}: {fault}; write a plain value.")


def _fault(value: object, depth: int) -> str | None:
    if isinstance(value, int):
        return f"has an integer of {value.bit_length()} bits" if value.bit_length() > _BITS else None
    if not isinstance(value, (dict, list, tuple)):
        return None
    if not depth:
        return f"is nested more than {_DEPTH} deep"
    parts = [*value, *value.values()] if isinstance(value, dict) else value
    return next((fault for part in parts if (fault := _fault(part, depth - 1))), None)
