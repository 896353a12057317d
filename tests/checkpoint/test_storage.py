"""Files of weights: what is written is read again, what is damaged is noticed, what could execute does not."""

import collections
import io
import os
import pickle
import random
import zipfile

import numpy as np
import pytest
import torch
from clq.checkpoint.storage import DamagedFile, read_weights, save_safetensors, save_torch
from clq.errors import UserError

WEIGHTS = {"a.weight": torch.arange(600.0).view(20, 30), "b": torch.tensor([1, 2]), "c": torch.ones(3).half()}


def read(path, **limits):
    return read_weights(str(path), "the file", **limits)


def same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], x) and found[name].dtype == x.dtype for name, x in expected.items())


@pytest.fixture
def torch_file(tmp_path):
    save_torch({"model": WEIGHTS, "iteration": 7}, str(tmp_path / "a.pth"))
    return tmp_path / "a.pth"


@pytest.fixture
def safetensors_file(tmp_path):
    save_safetensors(WEIGHTS, str(tmp_path / "a.safetensors"))
    return tmp_path / "a.safetensors"


def test_what_is_written_is_read(torch_file, safetensors_file):
    content = read(torch_file)
    assert content["iteration"] == 7
    same(content["model"], WEIGHTS)
    same(read(safetensors_file), WEIGHTS)


def test_weights_that_share_memory_are_written_whole(tmp_path):
    x = torch.arange(12.0)
    save_safetensors({"all": x, "half": x[:6], "turned": x.view(3, 4).T}, str(tmp_path / "a.safetensors"))
    same(read(tmp_path / "a.safetensors"), {"all": x, "half": x[:6], "turned": x.view(3, 4).T})


@pytest.mark.parametrize("name", ["torch_file", "safetensors_file"])
def test_every_cut_and_every_flipped_bit_of_the_data_is_noticed(name, request, tmp_path):
    path = request.getfixturevalue(name)
    whole, rng = path.read_bytes(), random.Random(0)
    damaged = path.with_name("damaged" + path.suffix)
    for cut in (1, 10, len(whole) // 2, len(whole) - 1):
        damaged.write_bytes(whole[:cut])
        with pytest.raises(DamagedFile):
            read(damaged)
    start = whole.index(WEIGHTS["a.weight"].numpy().tobytes())
    for _ in range(40):
        content = bytearray(whole)
        content[start + rng.randrange(2400)] ^= 1 << rng.randrange(8)
        damaged.write_bytes(content)
        with pytest.raises(DamagedFile, match="checksum"):
            read(damaged)
    for _ in range(100):  # anywhere: an error, or the very same content
        content = bytearray(whole)
        content[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        damaged.write_bytes(content)
        try:
            found = read(damaged)
        except (DamagedFile, UserError):
            continue
        same(found.get("model", found), WEIGHTS)


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["a.pkl", "a.pth", "a.pyth", "a.bin", "a.ckpt"])
@pytest.mark.parametrize("write", [pickle.dump, torch.save])
def test_nothing_in_a_file_executes(name, write, tmp_path):
    ran = tmp_path / "ran"
    with open(tmp_path / name, "wb") as f:
        write({"model": {"w": np.zeros(2)}, "x": Payload(ran)}, f)
    with pytest.raises((UserError, DamagedFile)):
        read(tmp_path / name)
    assert not ran.exists()
    with open(tmp_path / name, "rb") as f, pytest.raises(Exception):  # noqa: B017  (the payload would run)
        pickle.load(f) if write is pickle.dump else torch.load(f, weights_only=False)
        raise KeyError
    assert ran.exists()


@pytest.mark.parametrize(
    "call", ["builtins.eval", "os.system", "numpy.load", "torch.load", "numpy.core.multiarray.scalar.x"]
)
def test_a_pickle_that_calls_something_else_is_refused_by_name(call, tmp_path):
    module, name = call.rsplit(".", 1)
    (tmp_path / "a.pkl").write_bytes(f"c{module}\n{name}\n.".encode())
    with pytest.raises(UserError, match=rf"the file: a pickle that calls {module}\.{name}, which could execute code"):
        read(tmp_path / "a.pkl")


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_arrays_are_read(protocol, tmp_path):
    content = {"model": collections.OrderedDict(w=np.arange(6.0).reshape(2, 3), n=np.float32(2)), "__author__": "x"}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    found = read(tmp_path / "a.pkl")
    assert found["__author__"] == "x" and found["model"]["n"] == 2
    assert np.array_equal(found["model"]["w"], content["model"]["w"])


def test_a_file_that_would_grow_is_refused_before_it_is_read(tmp_path):
    """A zip of 2 MiB of zeros, compressed to a few kB."""
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data/0", bytes(2 << 20))
    assert (tmp_path / "a.pth").stat().st_size < 10_000
    with pytest.raises(UserError, match=r"more than MODEL\.MAX_WEIGHTS_GIB 0\.001"):
        read(tmp_path / "a.pth", max_gib=0.001)


def test_a_tensor_that_repeats_its_data_counts_as_if_it_were_copied(tmp_path):
    torch.save({"model": {"w": torch.ones(1).expand(1 << 40)}}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"its content has 4096\.0 GiB, more than MODEL\.MAX_WEIGHTS_GIB 16"):
        read(tmp_path / "a.pth")


def test_lists_that_hold_each_other_are_looked_at_once(tmp_path):
    """As a tree, they would have a branch for each of 2^100 paths, and one without end."""
    content: list = [torch.ones(2)]
    for _ in range(100):
        content = [content, content]
    content.append(content)
    torch.save({"lists": content}, tmp_path / "a.pth")
    assert read(tmp_path / "a.pth").keys() == {"lists"}


def test_a_file_that_is_compressed_is_refused_whatever_the_limit(torch_file, tmp_path):
    with zipfile.ZipFile(torch_file) as whole, zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as file:
        for record in whole.infolist():
            file.writestr(record.filename, whole.read(record))
    with pytest.raises(UserError, match=r"the file: is compressed, .* save it again with torch\.save"):
        read(tmp_path / "b.pth")


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a.pkl"])
def test_a_file_larger_than_the_limit_is_refused(name, tmp_path):
    (tmp_path / name).write_bytes(bytes(2000))
    with pytest.raises(UserError, match="MAX_WEIGHTS_GIB"):
        read(tmp_path / name, max_gib=1e-6)


def test_the_old_format_of_torch_is_read(tmp_path):
    buffer = io.BytesIO()
    torch.save(WEIGHTS, buffer, _use_new_zipfile_serialization=False)
    (tmp_path / "a.pth").write_bytes(buffer.getvalue())
    same(read(tmp_path / "a.pth"), WEIGHTS)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"the file: cannot be read \(No such file or directory\)"):
        read(tmp_path / "gone.pth")
