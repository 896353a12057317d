"""What was found out about files of the user's and need not be found out again, kept as json in the user's cache.

A cache is no data: one that is damaged, of another version or cannot be written is ignored, which costs time only.
"""

import hashlib
import json
import logging
import os
from typing import Any

from clq.errors import UserError
from clq.utils.files import write_atomically
from clq.utils.memory import garbage_collection_paused

logger = logging.getLogger(__name__)


def cache_folder(kind: str) -> str:
    """The folder of a kind of findings: in ``clq`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``."""
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "clq", kind)


def recall(kind: str, subject: str, version: str) -> Any:
    """What :func:`remember` kept last, or None.

    Args:
        kind: kind of findings, a name for a folder.
        subject: what they are about, such as an absolute path.
        version: of the findings' form and of how they are made.
    """
    path = _file(kind, subject)
    try:
        with garbage_collection_paused(), open(path, encoding="utf-8") as f:
            content = json.load(f)
        if content["version"] == version and content["subject"] == subject:
            return content["findings"]
    except FileNotFoundError:
        pass
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as e:
        logger.info("%s: cannot be used (%s) and is written again", path, e)
    return None


def remember(kind: str, subject: str, version: str, findings: object) -> None:
    """Keeps findings, values that json can hold, for :func:`recall`."""
    path = _file(kind, subject)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with write_atomically(path, "w") as f:
            json.dump({"version": version, "subject": subject, "findings": findings}, f)
    except (OSError, UserError, ValueError) as e:
        logger.info("%s: cannot be written (%s); the next start takes as long as this one", path, e)


def _file(kind: str, subject: str) -> str:
    digest = hashlib.sha256(subject.encode(errors="surrogateescape")).hexdigest()[:32]
    return os.path.join(cache_folder(kind), f"{digest}.json")
