"""Test images that are training images."""

import os

from clq.data.leakage import find_leaks


def files(folder, **contents):
    """Writes files; returns the size of each by its path."""
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {str(folder / name): len(content) for name, content in contents.items()}


def test_equal_files_are_found_by_path_and_by_content(tmp_path):
    same_end = b"y" * 5000
    train = files(tmp_path, a=b"1", b=b"22", c=b"x" + same_end, d=b"333")
    test = files(tmp_path, e=b"22", f=b"44", g=b"z" + same_end, h=b"x" + same_end)
    dotted = os.path.join(tmp_path, ".", "a")
    leaks = find_leaks(train, {dotted: 1, **test})
    named = [(os.path.basename(ours), os.path.basename(theirs)) for ours, theirs in leaks]
    assert named == [("a", "a"), ("b", "e"), ("c", "h")]


def test_links_are_found_and_nothing_is_read_where_no_size_is_shared(tmp_path):
    train = files(tmp_path, a=b"1")
    os.symlink(tmp_path / "a", tmp_path / "link")
    assert find_leaks(train, {str(tmp_path / "link"): 1}) == [(str(tmp_path / "a"), str(tmp_path / "link"))]
    assert find_leaks({"/nowhere/a": 1}, {"/nowhere/b": 2}) == []


def test_files_that_vanish_after_their_headers_were_read_are_no_leaks(tmp_path):
    train, test = files(tmp_path, a=b"1", b=b"2"), files(tmp_path, c=b"3", d=b"2")
    for name in ("a", "c"):
        (tmp_path / name).unlink()
    assert find_leaks(train, test) == [(str(tmp_path / "b"), str(tmp_path / "d"))]
