"""The configs that come with the project, by name: ``CLQ/clq_R_50_FPN_1x``."""

import builtins
import difflib
from pathlib import Path

from clq.errors import UserError

FOLDER = Path(__file__).parent / "config_files"  # in the repository a link to configs/
_SUFFIX = ".yaml"


def list() -> builtins.list[str]:
    """Names of the configs, sorted. Bases that other configs extend are not among them."""
    files = sorted(FOLDER.resolve().rglob(f"*{_SUFFIX}"))
    names = (file.relative_to(FOLDER.resolve()).with_suffix("").as_posix() for file in files)
    return [name for name in names if not name.split("/")[-1].startswith("Base")]


def path(name: str) -> str:
    """The file of a config.

    Args:
        name: name of a config, with or without ``.yaml`` and ``configs/`` before it.

    Raises:
        UserError: there is no such config; the message suggests similar names.
    """
    if (file := find(name)) is not None:
        return file
    near = difflib.get_close_matches(_plain(name), list(), n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "clq.configs.list() names those that exist."
    raise UserError(f"{name}: no such config file, and no config of the project has this name; {hint}")


def find(name: str) -> str | None:
    """The file of a config, as :func:`path`, or None if there is no such config."""
    wanted = Path(f"{_plain(name)}{_SUFFIX}")
    if ".." in wanted.parts or wanted.is_absolute() or not (FOLDER / wanted).is_file():
        return None
    return str(FOLDER / wanted)


def _plain(name: str) -> str:
    return name.removesuffix(_SUFFIX).removeprefix("configs/")
