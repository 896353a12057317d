"""The folder of a training: its checkpoints, the newest whole one, and a guard against overwriting them."""

import logging
import os
import re
from pathlib import Path

from clq.checkpoint.storage import DamagedFile, check_file
from clq.errors import UserError

logger = logging.getLogger(__name__)

LAST = "last_checkpoint"  # Detectron2's file with the name of the last checkpoint
BEST = "model_best"
FINAL = "model_final"
FINAL_EMA = "model_final_ema"
_NAME = re.compile(r"model_(?:(\d+)|final)\.pth")


def checkpoints(folder: str) -> list[str]:
    """Names of the checkpoints in a folder from which a training can be resumed, the newest first.

    ``model_final.pth`` comes first, the others follow by their iteration.
    """
    if not os.path.isdir(folder):
        return []
    found = [match for name in os.listdir(folder) if (match := _NAME.fullmatch(name))]
    return [m[0] for m in sorted(found, key=lambda m: float("inf") if m[1] is None else int(m[1]), reverse=True)]


def refuse_overwriting(folder: str) -> None:
    """Checks that a new training may begin in a folder.

    Raises:
        UserError: the folder has checkpoints of a training.
    """
    found = checkpoints(folder)
    if found:
        raise UserError(
            f"OUTPUT_DIR {folder}: holds a training ({found[0]}); continue it with --resume, or choose another folder."
        )


def checkpoint_to_resume(folder: str) -> str | None:
    """The path of the checkpoint to resume: the one that ``last_checkpoint`` names, or the newest one that is whole.

    A damaged checkpoint is skipped with a warning.

    Returns:
        The path, or None where the folder has no checkpoint.

    Raises:
        UserError: ``last_checkpoint`` names a file outside of the folder, or every checkpoint is damaged or missing.
    """
    names = checkpoints(folder)
    last = _last(folder)
    if last is not None:
        names = [last, *(name for name in names if name != last)]
    unusable = []
    for name in names:
        path = os.path.join(folder, name)
        if not os.path.isfile(path):
            logger.warning("%s: is named by %s but does not exist; the checkpoint before it is tried", path, LAST)
            unusable.append(f"{name} does not exist")
            continue
        try:
            check_file(path)
        except DamagedFile as e:
            logger.warning("%s: is damaged (%s); the checkpoint before it is tried", path, e)
            unusable.append(f"{name} is damaged")
            continue
        return path
    if unusable:
        raise UserError(
            f"OUTPUT_DIR {folder}: has no checkpoint to resume from ({', '.join(unusable)}); remove them and "
            f"{LAST} to start anew, or choose another folder."
        )
    return None


def _last(folder: str) -> str | None:
    path = Path(folder, LAST)
    if not path.is_file():
        return None
    name = path.read_text(encoding="utf-8", errors="replace").strip()
    if not name:  # an older version was killed while it wrote the file
        return None
    if os.path.basename(name) != name or name in (os.curdir, os.pardir):
        raise UserError(
            f"{path}: names {name}, which is not a file of its folder; write the name of a checkpoint there."
        )
    return name
