"""Reading and writing files of weights: nothing in a file executes, and no damaged file is read or written."""

import hashlib
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from clq.checkpoint.pickles import BrokenPickle, ForbiddenName, read_arrays
from clq.errors import UserError, reason_of
from clq.utils.files import write_atomically

SAFETENSORS = ".safetensors"
_GIB = 1 << 30
_DIGEST = "sha256"  # key in the metadata of a safetensors file that this project wrote
# What Python's zipfile raises for a damaged file.
_ZIP_ERRORS = zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, struct.error, zlib.error


class DamagedFile(Exception):
    """A file is not what was written: cut off, or with a changed byte. The message gives the reason."""


class ForbiddenObjects(UserError):
    """A file holds Python objects besides weights, or calls functions."""


def save_torch(data: Mapping[str, Any], path: str) -> None:
    """Writes a file for :func:`torch.load`, under its name only when it is whole.

    torch stores a CRC-32 of each record in the file, which :func:`read_weights` verifies.

    Args:
        data: nested containers of tensors and plain values.
        path: file to write.

    Raises:
        UserError: the file cannot be written.
    """
    with write_atomically(path) as f:
        try:
            torch.save(data, f)
        except RuntimeError as e:  # torch's writer hides the error of the operating system
            raise OSError(0, reason_of(e)) from e


def save_safetensors(weights: Mapping[str, Tensor], path: str, metadata: Mapping[str, str] | None = None) -> None:
    """Writes weights as a safetensors file with a checksum, under its name only when it is whole.

    Args:
        weights: state dict; its tensors may share memory.
        path: file to write.
        metadata: texts to store beside the weights.

    Raises:
        UserError: the file cannot be written.
    """
    tensors = {name: x.detach().cpu().contiguous().clone() for name, x in weights.items()}
    content = safetensors.torch.save(tensors, {**(metadata or {}), "format": "pt", _DIGEST: _digest(tensors)})
    with write_atomically(path) as f:
        f.write(content)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        x = tensors[name].contiguous()
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}\n".encode())
        digest.update(x.reshape(-1).view(torch.uint8).numpy().tobytes() if x.numel() else b"")
    return digest.hexdigest()


def read_weights(path: str, source: str, max_gib: float = 16.0) -> Any:
    """Reads a file of weights onto the CPU; nothing in it executes.

    The format follows from the content and the name: safetensors, a pickle of numpy arrays as in Detectron2's model
    zoo (``.pkl``), or what :func:`torch.save` wrote.

    Args:
        path: local file.
        source: name of the file in messages, as the user gave it.
        max_gib: upper bound on the size of the content, in GiB.

    Returns:
        The content: for safetensors and torch a dict of tensors or of such dicts, for a pickle containers of arrays.

    Raises:
        DamagedFile: the file is cut off or has a changed byte.
        UserError: the file cannot be read, is too large, or holds something else than weights.
    """
    try:
        size = os.path.getsize(path)
        _check_size(source, size, max_gib)
        if path.endswith(SAFETENSORS):
            return _read_safetensors(path, source)
        if path.endswith(".pkl"):
            return _read_pickle(path, source)
        return _read_torch(path, source, max_gib)
    except OSError as e:
        raise UserError(f"{source}: cannot be read ({e.strerror or e}); give another file as MODEL.WEIGHTS.") from e


def check_file(path: str) -> None:
    """Verifies the checksums of a checkpoint that :func:`save_torch` wrote, without loading it.

    Raises:
        DamagedFile: the file is cut off or has a changed byte.
    """
    if not _is_zip(path):
        raise DamagedFile("its end is missing, or it is no checkpoint")
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except _ZIP_ERRORS as e:
        raise DamagedFile(reason_of(e)) from e
    if damaged is not None:
        raise DamagedFile(f"the checksum of its record {damaged} is wrong")


def _check_size(source: str, size: int, max_gib: float) -> None:
    if size > max_gib * _GIB:
        raise UserError(
            f"{source}: its content has {size / _GIB:.1f} GiB, more than MODEL.MAX_WEIGHTS_GIB {max_gib:g}; raise that "
            "if you trust the file."
        )


def _read_torch(path: str, source: str, max_gib: float) -> Any:
    if _is_zip(path):
        try:
            with zipfile.ZipFile(path) as file:
                content = sum(record.file_size for record in file.infolist())
        except _ZIP_ERRORS as e:
            raise DamagedFile(reason_of(e)) from e
        _check_size(source, content, max_gib)
        if content > os.path.getsize(path):
            raise UserError(
                f"{source}: is compressed, so that it takes more memory than its size shows, and torch.save does not "
                "compress; save it again with torch.save."
            )
        check_file(path)
    elif _starts_like_a_zip(path):
        raise DamagedFile("its end is missing")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        if "Unsupported global" in str(e) or "Unsupported class" in str(e):
            raise ForbiddenObjects(
                f"{source}: holds Python objects besides weights, which could execute code; give a state_dict saved by "
                "torch.save as MODEL.WEIGHTS."
            ) from e
        raise DamagedFile(reason_of(e)) from e
    except Exception as e:  # reading bytes that are no checkpoint can raise anything
        raise DamagedFile(reason_of(e)) from e
    # A tensor can repeat its data, as after expand(), and take any memory when it is copied.
    _check_size(source, sum(x.numel() * x.element_size() for x in _tensors(loaded)), max_gib)
    return loaded


def _tensors(content: object) -> Iterator[Tensor]:
    """All tensors in nested containers, each once; a container of a file may hold itself."""
    pending, seen = [content], set()
    while pending:
        found = pending.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, Tensor):
            yield found
        elif isinstance(found, (Mapping, list, tuple)):
            pending += found.values() if isinstance(found, Mapping) else found


def _is_zip(path: str) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except _ZIP_ERRORS as e:  # a damaged end
        raise DamagedFile(reason_of(e)) from e


def _starts_like_a_zip(path: str) -> bool:
    with open(path, "rb") as f:
        return f.read(4) == b"PK\x03\x04"


def _read_safetensors(path: str, source: str) -> dict[str, Tensor]:
    try:
        tensors = safetensors.torch.load_file(path)
        with safetensors.safe_open(path, framework="pt") as f:
            metadata = f.metadata() or {}
    except (safetensors.SafetensorError, ValueError) as e:
        raise DamagedFile(reason_of(e)) from e
    if _DIGEST in metadata and metadata[_DIGEST] != _digest(tensors):
        raise DamagedFile("its checksum is wrong")
    return tensors


def _read_pickle(path: str, source: str) -> Any:
    with open(path, "rb") as f:
        content = f.read()
    try:
        return read_arrays(content)
    except ForbiddenName as e:
        raise ForbiddenObjects(
            f"{source}: a pickle that calls {e}, which could execute code; only numpy arrays and plain containers are "
            "read. Convert it to .safetensors or .pth where you trust it."
        ) from e
    except BrokenPickle as e:
        raise DamagedFile(str(e)) from e
