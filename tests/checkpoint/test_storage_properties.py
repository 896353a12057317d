"""Damaged and hostile files of weights: they are read or refused, nothing in them executes, no other error escapes."""

import collections
import io
import os
import pickle
import shutil

import hypothesis
import numpy as np
import pytest
import safetensors.torch
import torch
from clq.checkpoint.checkpointer import Checkpointer
from clq.checkpoint.storage import save_safetensors, save_torch
from fuzzing import ODD_VALUES, accepting_or_refusing, damaged_bytes, damaged_tree
from hypothesis import strategies as st
from torch import nn

WEIGHTS = {"0.weight": torch.arange(54.0).view(2, 3, 3, 3), "0.bias": torch.ones(2), "1.scale": torch.ones(2).half()}
ARRAYS = {name: x.numpy() for name, x in WEIGHTS.items()}
OF_TORCHVISION = {"conv1.weight": torch.ones(2, 3, 7, 7), "bn1.weight": torch.ones(2), "fc.bias": torch.ones(2)}


class Model(nn.Sequential):
    """A convolution and a vector."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 2, 3), nn.Module())
        self[1].scale = nn.Parameter(torch.ones(2))


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, path, call=os.mkdir):
        self.call, self.path = call, str(path)

    def __reduce__(self):
        return self.call, (self.path,)


class Files:
    """A folder, and contents of files by the ending of their names; not shown with every failure."""

    def __init__(self, folder, originals):
        self.folder, self.originals = folder, originals


def torch_bytes(content, **kwargs):
    buffer = io.BytesIO()
    torch.save(content, buffer, **kwargs)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def files(folder):
    """Undamaged and hostile files by the ending of their names."""
    ran = folder / "ran"
    save_torch({"model": WEIGHTS, "iteration": 7}, str(folder / "new.pth"))
    save_safetensors(WEIGHTS, str(folder / "new.safetensors"))
    tree = {"model": collections.OrderedDict(ARRAYS, n=np.float32(2)), "__author__": "x", "matching_heuristics": True}
    blobs = {"blobs": {**ARRAYS, "0.weight_momentum": ARRAYS["0.bias"]}}
    hostile = {"model": ARRAYS, "x": Payload(ran), "y": Payload(f"import os; os.mkdir({str(ran)!r})", exec)}
    objects = {"model": {"0.weight": np.array([1, "a", None], dtype=object)}}
    pickles = [pickle.dumps(x, protocol=p) for x in (tree, blobs, hostile, objects) for p in (0, 2, 4, 5)]
    return Files(
        folder,
        {
            ".pth": [
                (folder / "new.pth").read_bytes(),
                torch_bytes(WEIGHTS, _use_new_zipfile_serialization=False),
                torch_bytes({"model": OF_TORCHVISION}),
                torch_bytes(hostile),
                torch_bytes(hostile, _use_new_zipfile_serialization=False),
                pickles[0],
            ],
            ".pkl": pickles,
            ".safetensors": [(folder / "new.safetensors").read_bytes(), safetensors.torch.save(WEIGHTS)],
        },
    )


def load(folder, ending, content, strict):
    """Loads a file of this content into a model, whose weights must then be finite; nothing may have executed."""
    path, ran = folder / f"a{ending}", folder / "ran"
    path.write_bytes(content)
    model = Model()
    with accepting_or_refusing():
        Checkpointer(model, str(folder), strict=strict, max_gib=0.05).load(str(path))
        assert all(x.isfinite().all() for x in model.state_dict().values())
    if ran.exists():
        shutil.rmtree(ran)
        raise AssertionError("the payload has run")


@pytest.mark.fuzz
@hypothesis.given(data=st.data(), strict=st.booleans())
def test_a_damaged_torch_file(files, data, strict):
    load(files.folder, ".pth", data.draw(damaged_bytes(files.originals[".pth"])), strict)


@pytest.mark.fuzz
@hypothesis.given(data=st.data(), strict=st.booleans())
def test_a_damaged_pickle(files, data, strict):
    load(files.folder, ".pkl", data.draw(damaged_bytes(files.originals[".pkl"])), strict)


@pytest.mark.fuzz
@hypothesis.given(data=st.data(), strict=st.booleans())
def test_a_damaged_safetensors_file(files, data, strict):
    load(files.folder, ".safetensors", data.draw(damaged_bytes(files.originals[".safetensors"])), strict)


ODD_WEIGHTS = ODD_VALUES | st.sampled_from(
    [
        *(
            np.zeros(shape, dtype)
            for shape in ((), (0,), (2, 3, 3, 3))
            for dtype in ("f4", "f8", "i8", "?", "c8", "u2")
        ),
        *(np.array(x) for x in ("text", b"bytes", np.nan, [np.inf] * 2)),
        np.array(["2020-01-01"], dtype="M8[D]"),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f4")]),
        np.array([None, []], dtype=object),
    ]
)
ODD_TENSORS = ODD_VALUES | st.sampled_from(
    [
        *(
            torch.zeros(shape, dtype=dtype)
            for shape in ((), (0,), (2,))
            for dtype in (torch.bool, torch.int8, torch.cfloat)
        ),
        torch.zeros(2, 3, 3, 3).to_sparse(),
        torch.zeros(2, device="meta"),
        torch.tensor([1.0, float("nan")]),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8),
    ]
)


@pytest.mark.fuzz
@hypothesis.given(data=st.data(), strict=st.booleans(), pickled=st.booleans())
def test_odd_content_of_a_whole_file(folder, data, strict, pickled):
    """Files that are read without an error, but hold anything where weights should be."""
    weights = ARRAYS if pickled else data.draw(st.sampled_from([WEIGHTS, OF_TORCHVISION]))
    author = {"__author__": "x"} if pickled or data.draw(st.booleans()) else {}
    original = {"model": weights, "iteration": 1, "matching_heuristics": data.draw(st.booleans()), **author}
    if data.draw(st.booleans()):
        original = {"state_dict": original.pop("model"), **original}
    tree = data.draw(damaged_tree(original, ODD_WEIGHTS if pickled else ODD_TENSORS))
    content = pickle.dumps(tree) if pickled else torch_bytes(tree)
    load(folder, ".pkl" if pickled else ".pth", content, strict)
