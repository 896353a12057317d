"""Pickles of arrays: what they may hold, and states of arrays and types that numpy itself would accept."""

import pickle
import pickletools
import tracemalloc

import numpy as np
import pytest
from clq.checkpoint.pickles import BrokenPickle, ForbiddenName, read_arrays

ARRAYS = [
    np.arange(6.0).reshape(2, 3),
    np.arange(6, dtype=">f4").reshape(3, 2),
    np.asfortranarray(np.arange(6, dtype="i2").reshape(2, 3)),
    np.array(3.5, dtype="f2"),
    np.zeros((0, 4), dtype="u1"),
    np.array([True, False]),
    np.array([1 + 2j]),
]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("array", ARRAYS, ids=lambda x: f"{x.dtype.str}{x.shape}")
def test_arrays_and_scalars_of_numbers_are_read(array, protocol):
    found = read_arrays(pickle.dumps({"a": array, "b": [array, array.flatten()[:1].sum()]}, protocol=protocol))
    for x in (found["a"], found["b"][0]):
        assert x.dtype.newbyteorder("=") == array.dtype.newbyteorder("=") and x.shape == array.shape
        assert np.array_equal(x, array)
    assert found["b"][1] == array.flatten()[:1].sum()


def test_what_python_2_wrote_is_read():
    """The bytes of such an array are a text in latin1."""
    content = pickle.dumps({"a": np.array([1.5, -2.0], dtype="f4")}, protocol=2)
    state = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    state += b"(I1\n(I2\ntcnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\n"
    state += b"S'" + np.array([1.5, -2.0], "<f4").tobytes().decode("latin1").encode("unicode_escape") + b"'\ntb."
    assert read_arrays(state).tolist() == [1.5, -2.0]
    assert read_arrays(content)["a"].tolist() == [1.5, -2.0]


@pytest.mark.parametrize(
    "value", [np.array([None, "a"], dtype=object), np.array(["a"]), np.array([b"a"]), np.array(["2020"], "M8[Y]")]
)
def test_arrays_of_anything_else_are_refused(value):
    with pytest.raises(BrokenPickle, match="are not weights"):
        read_arrays(pickle.dumps(value))


BEGIN = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
TYPE = b"cnumpy\ndtype\n(S'f4'\nI0\nI1\ntR"


@pytest.mark.parametrize(
    "content, reason",
    [
        (BEGIN + b"(I1000000000\ntS'b'\ntR.", "begins with a size"),
        (BEGIN + b"(I0\ntS'O'\ntR(I1\n(I9\ntcnumpy\ndtype\n(S'O'\ntRI00\n(lNatb.", "'O' are not weights"),
        (BEGIN + b"(I0\ntS'b'\ntR(I1\n(I9\nt" + TYPE + b"I00\n(lNatb.", "has no data"),
        (BEGIN + b"(I0\ntS'b'\ntR(I1\n(I9\nt" + TYPE + b"I00\nS'abc'\ntb.", "size"),
        (BEGIN + b"(I0\ntS'b'\ntR(I1\n(I9\ntS'f4'\nI00\nS'abc'\ntb.", "has no type"),
        (b"cnumpy\ndtype\n(S'V99999999999'\ntR.", "are not weights"),
        (TYPE + b"(I3\nS'?'\nNNNI-1\nI-1\nI0\ntb.", "no order of bytes"),
        (b"c_codecs\nencode\n(Vaa\nVpunycode\ntR.", "encoded in 'punycode'"),
        (b"cnumpy\nndarray\n(I1000000000\ntR.", "not callable"),
        (b"Nr\xff\xff\xff\x0f.", "stores object"),
        (b"Np999999999\n.", "stores object"),
        (b"(lp0\n", "step 3 is none of a pickle"),
    ],
)
def test_states_that_could_harm_are_refused_without_memory(content, reason):
    tracemalloc.start()
    try:
        with pytest.raises(BrokenPickle, match=reason):
            read_arrays(content)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


def test_every_name_that_pickles_of_arrays_call_is_known():
    """numpy's spelling of today, whichever version is installed."""
    for protocol in range(6):
        content = pickle.dumps([np.zeros(2), np.float32(1)], protocol=protocol)
        assert any(op.name in ("GLOBAL", "STACK_GLOBAL") for op, _, _ in pickletools.genops(content))
        read_arrays(content)


@pytest.mark.parametrize("call", ["os.system", "numpy.frombuffer", "numpy.core.multiarray.fromfile", "numpy.dtypes"])
def test_other_names_are_refused(call):
    module, name = call.rsplit(".", 1)
    with pytest.raises(ForbiddenName, match=call):
        read_arrays(f"c{module}\n{name}\n.".encode())
