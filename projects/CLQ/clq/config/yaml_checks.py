"""What is checked of a config file and its bases before they are loaded: where they are, and how large they become."""

import logging
import os
from collections.abc import Iterator
from typing import Any

import yaml
from detectron2.utils.file_io import PathManager
from fvcore.common.config import BASE_KEY

from clq.configs import find as find_config
from clq.errors import UserError, reason_of
from clq.utils.files import open_regular

logger = logging.getLogger(__name__)

REMOTE = "CLQ_REMOTE_BASE"  # environment variable that allows a _BASE_ on another machine
_MIB = 1 << 20
_MAX_MIB, _MAX_NODES, _MAX_DEPTH, _MAX_FILES = 1, 100_000, 50, 100
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def check_config_files(path: str) -> None:
    """Checks a yaml file and all files that it names as ``_BASE_``, directly or through others.

    A ``_BASE_`` with a scheme, such as ``https://`` or ``detectron2://``, would be fetched. That needs the environment
    variable :data:`REMOTE` to be 1, whatever the file says.

    Args:
        path: name of the file.

    Raises:
        UserError: a base is remote, a file is its own base, or a file is too large, nests too deeply, or grows too
            large by its aliases.
        OSError: a file cannot be read.
        yaml.YAMLError: a file is not plain yaml.
    """
    opened = 0
    pending: list[tuple[str, tuple[str, ...]]] = [(path, (path,))]
    while pending:
        name, chain = pending.pop()
        opened += 1
        if opened > _MAX_FILES:
            raise UserError(f"{path}: has more than {_MAX_FILES} files as _BASE_; merge some of them.")
        for base in _bases(name, path):
            if os.path.normpath(base) in map(os.path.normpath, chain):
                raise UserError(f"{path}: is its own _BASE_, directly or through others; name another file.")
            pending.append((base, (*chain, base)))


def _bases(name: str, source: str) -> list[str]:
    """The paths of the bases of one file, after its content has been checked."""
    loaded = read_yaml(name, _local(name, source))
    bases = loaded.get(BASE_KEY, []) if isinstance(loaded, dict) else []
    return [
        config_named(base, name) or _resolve(base, name) for base in (bases if isinstance(bases, list) else [bases])
    ]


def read_yaml(name: str, path: str | None = None) -> Any:
    """Reads a small file of plain yaml, of which nothing is executed.

    Args:
        name: name of the file, for messages.
        path: its path, if it is not its name.

    Raises:
        UserError: it is too large, nests too deeply, or grows too large by its aliases.
        OSError: it cannot be read.
        yaml.YAMLError: it is not plain yaml.
    """
    with open_regular(path or name) as f:
        content = f.read(_MAX_MIB * _MIB + 1)
    if len(content) > _MAX_MIB * _MIB:
        raise UserError(f"{name}: has more than {_MAX_MIB} MiB, which is no config; name another file.")
    _check_nodes(name, yaml.parse(content, Loader=_Loader))
    return yaml.load(content, Loader=_Loader)


def config_named(base: Any, name: str) -> str | None:
    """The path of a config of the project, if a ``_BASE_`` is its name and not that of a file.

    Args:
        base: what the file says.
        name: path of the file.
    """
    return None if not isinstance(base, str) or os.path.isfile(_resolve(base, name)) else find_config(base)


def _resolve(base: Any, name: str) -> str:
    if not isinstance(base, str):
        raise UserError(f"{name}: {BASE_KEY} {base!r} is not the name of a file; correct it.")
    base = os.path.expanduser(base) if base.startswith("~") else base
    is_absolute = base.startswith(("/", "https://", "http://"))
    return base if is_absolute else os.path.join(os.path.dirname(name), base)


def _local(name: str, source: str) -> str:
    """The path of a file, which is fetched first if its name has a scheme and that is allowed."""
    if "://" not in name:
        return name
    if os.environ.get(REMOTE) != "1":
        raise UserError(
            f"{source}: its {BASE_KEY} {name} is on another machine; download it and name the copy, or set the "
            f"environment variable {REMOTE}=1."
        )
    logger.warning("%s: fetching its %s %s.", source, BASE_KEY, name)
    try:
        return PathManager.get_local_path(name)
    except Exception as e:  # whatever the handler of the scheme raises
        raise UserError(f"{source}: its {BASE_KEY} {name} cannot be fetched ({reason_of(e)}).") from e


def _check_nodes(name: str, events: Iterator[yaml.Event]) -> None:
    """Counts the nodes of a document as if every alias were a copy, which merging makes of it."""
    open_nodes: list[list] = [[None, 0]]  # anchor and number of nodes of each collection that has not ended
    anchors: dict[str, int] = {}
    for event in events:
        size = 0
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append([event.anchor, 1])
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
            anchors[anchor] = size
        elif isinstance(event, yaml.ScalarEvent):
            anchors[event.anchor] = size = 1
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in (anchor for anchor, _ in open_nodes):
                raise UserError(f"{name}: its alias *{event.anchor} contains itself; write the values out.")
            size = anchors.get(event.anchor, 1)
        open_nodes[-1][1] += size
        if open_nodes[-1][1] > _MAX_NODES:
            raise UserError(f"{name}: has more than {_MAX_NODES} values once its aliases are copied; write it again.")
        if len(open_nodes) > _MAX_DEPTH:
            raise UserError(f"{name}: nests deeper than {_MAX_DEPTH} levels; write it again.")
