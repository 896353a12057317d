"""Why an image file is not found: what tools and file systems write differently in the name of a file."""

import functools
import os
import unicodedata


def why_missing(folder: str, file_name: str) -> str:
    """Says that an image file does not exist and, if a file has a similar name, what is wrong with the name.

    Args:
        folder: folder of the images.
        file_name: name in the json, relative to the folder.

    Returns:
        The fault in words that follow the path of the file.
    """
    if "\\" in file_name and os.path.isfile(os.path.join(folder, file_name.replace("\\", "/"))):
        return "does not exist, but would with / in place of each \\; correct file_name in the json"
    parent, name = os.path.split(os.path.join(folder, file_name))
    found = _find(parent, name)
    if found is not None and unicodedata.normalize("NFC", found) == unicodedata.normalize("NFC", name):
        return (
            "does not exist, but a file whose name has the same letters in another Unicode form (NFC or NFD) does; "
            "rename it"
        )
    if found is not None:
        return f"does not exist, but {os.path.join(parent, found)} does; correct file_name in the json"
    last = file_name.replace("\\", "/").split("/")[-1]
    if last != file_name and (found := _find(folder, last)) is not None:
        where = os.path.join(folder, found)
        return f"does not exist, but {where} does; correct file_name in the json, or the image folder"
    return "does not exist; file_name in the json is relative to the image folder"


def _find(folder: str, name: str) -> str | None:
    """The name in a folder that differs at most in case and Unicode form."""
    try:
        return _names(folder, os.stat(folder).st_mtime_ns).get(_plain(name))
    except OSError:
        return None


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


@functools.lru_cache(maxsize=4)
def _names(folder: str, modified: int) -> dict[str, str]:
    """The names in a folder by their plain form. The time of modification (ns) makes the cache notice changes."""
    return {_plain(name): name for name in os.listdir(folder)}
