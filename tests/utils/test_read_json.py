"""A json file of somebody else is read, or refused in one line that says what it is instead."""

import gzip
import json
import math
import os
import pickle

import clq
import pytest
from clq.errors import UserError
from clq.utils.files import JsonLimit, read_json


@pytest.fixture
def refusal(tmp_path):
    """Writes bytes to a file and returns what is said about it."""

    def say(content: bytes, **options) -> str:
        path = tmp_path / "a.json"
        path.write_bytes(content)
        with pytest.raises(UserError) as e:
            read_json(path, **options)
        assert str(e.value).startswith(f"{path}: ") and "\n" not in str(e.value)
        return str(e.value)

    return say


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_utf_8_is_read_with_and_without_a_byte_order_mark(mark, tmp_path):
    (tmp_path / "a.json").write_bytes(mark + '{"name": "Straße", "x": [1, 2.5, null]}'.encode())
    assert read_json(tmp_path / "a.json") == {"name": "Straße", "x": [1, 2.5, None]}


def test_nan_and_infinity_stay_floats_for_whoever_checks_the_values(tmp_path):
    (tmp_path / "a.json").write_text("[NaN, Infinity, -Infinity, 1e999]")
    nan, *rest = read_json(tmp_path / "a.json")
    assert math.isnan(nan) and rest == [math.inf, -math.inf, math.inf]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"{", "is not valid json (Expecting property name"),
        (b"\xef\xbb\xbf{", "is not valid json"),
        ('{"a": "ä"}'.encode("latin-1"), "'utf-8' codec can't decode"),
        ('{"a": 1}'.encode("utf-16"), "looks like text in UTF-16"),
        (b'<?xml version="1.0"?><annotation/>', "looks like XML"),
        (b"<!doctype html>", "a web page"),
        (b"images:\n- {id: 1}\n", "looks like yaml"),
        (b"---\na: 1\n", "looks like yaml"),
        (pickle.dumps({"a": 1}), "looks like a pickle of Python, which is never loaded"),
        (gzip.compress(b"{}", mtime=0), "a compressed archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b'{"a": 1}\n{"a": 2}\n', "JSON Lines"),
        (b"[" * 100_000 + b"]" * 100_000, "nest too deeply"),
        (b'{"a": ' * 100_000, "nest too deeply"),
        (b"[" + b"9" * 5000 + b"]", "Exceeds the limit"),
        (b'{"images": [1], "b": 2, "images": []}', "the key 'images' is twice in one object"),
    ],
)
def test_what_is_no_usable_json_is_refused(content, words, refusal):
    assert words in refusal(content)


def test_a_pickle_is_not_loaded(tmp_path, refusal):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    refusal(pickle.dumps(Payload()))
    assert not (tmp_path / "made").exists()


def test_a_file_larger_than_the_limit_is_refused_before_it_is_read(tmp_path, refusal):
    assert "has 2 MiB, more than DATASETS.MAX_JSON_MIB 1" in refusal(b'"' + b"a" * (2 << 20) + b'"', max_mib=1)
    with open(tmp_path / "sparse.json", "wb") as f:
        f.truncate(1 << 42)  # 4 TiB, of which nothing is on the disk
    with pytest.raises(UserError, match=r"more than DATASETS\.MAX_JSON_MIB 2048"):
        read_json(tmp_path / "sparse.json")


def test_the_limit_is_that_of_the_config(tmp_path, monkeypatch):
    monkeypatch.setattr(JsonLimit, "max_mib", JsonLimit.max_mib)  # restored after the test
    (tmp_path / "a.json").write_text(json.dumps("a" * 3000))
    clq.setup_cfg(None, ["MODEL.DEVICE", "cpu", "DATASETS.MAX_JSON_MIB", 0.002])
    with pytest.raises(UserError, match=r"more than DATASETS\.MAX_JSON_MIB 0\.002; raise that"):
        read_json(tmp_path / "a.json")
    clq.setup_cfg(None, ["MODEL.DEVICE", "cpu"])
    assert len(read_json(tmp_path / "a.json")) == 3000
    with pytest.raises(UserError, match=r"DATASETS\.MAX_JSON_MIB 0"):
        clq.setup_cfg(None, ["MODEL.DEVICE", "cpu", "DATASETS.MAX_JSON_MIB", 0.0])


def test_folders_and_pipes_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "pipe.json", "no regular file"), ("a\0b", "null")):
        with pytest.raises(UserError, match=rf"cannot be read \(.*{reason}"):
            read_json(path)
