"""The headers of many images: what is read, what is remembered, and what becomes of damaged memory."""

import os

import pytest
from clq.data import headers
from clq.data.headers import Header, read_headers
from clq.utils.cache import cache_folder
from PIL import Image

DAMAGED_FILES = '{"P": [1]}', '{"P": "abcd"}', "3", '{"P": [1, 2, 3, null]}'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


@pytest.fixture
def reads(monkeypatch):
    """The files whose headers are read, not remembered."""
    names, read = [], headers.read_size

    def spy(path, **options):
        names.append(os.path.basename(path))
        return read(path, **options)

    monkeypatch.setattr(headers, "read_size", spy)
    return names


def sizes(folder, *names, limit=100):
    return read_headers(str(folder), [str(folder / name) for name in names], limit)


def save(folder, name, size):
    Image.new("RGB", size).save(folder / name)
    return os.path.getsize(folder / name)


def test_headers_come_in_the_order_of_the_files_with_a_reason_for_each_that_cannot_be_used(folder):
    num_bytes = save(folder, "a.png", (20, 10))
    (folder / "b.png").write_bytes(b"no image")
    (folder / "d").mkdir()
    found = sizes(folder, "b.png", "a.png", "c.png", "d", "e\0.png", "a.png")
    assert found[1] == found[5] == Header(20, 10, num_bytes)
    assert [isinstance(h, str) for h in found] == [True, False, True, True, True, False]
    assert "cannot be opened (No such file" in found[2]
    assert not any("\n" in h for h in found if isinstance(h, str))


def test_an_image_turned_by_exif_has_its_upright_size(folder):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (20, 10)).save(folder / "a.jpg", exif=exif)
    assert sizes(folder, "a.jpg")[0][:2] == (10, 20)


def test_only_new_and_changed_files_are_read_again(folder, reads):
    for name in ("a.png", "b.png", "c.png"):
        save(folder, name, (20, 10))
    first = sizes(folder, "a.png", "b.png", "c.png")
    assert sorted(reads) == ["a.png", "b.png", "c.png"]
    reads.clear()
    assert sizes(folder, "a.png", "b.png", "c.png") == first
    assert reads == []
    save(folder, "b.png", (30, 10))
    status = os.stat(folder / "c.png")
    os.utime(folder / "c.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    save(folder, "d.png", (5, 5))
    assert [h[:2] for h in sizes(folder, "a.png", "b.png", "c.png", "d.png")] == [(20, 10), (30, 10), (20, 10), (5, 5)]
    assert sorted(reads) == ["b.png", "c.png", "d.png"]


def test_what_cannot_be_used_is_not_remembered(folder, reads):
    (folder / "a.png").write_bytes(b"no image")
    sizes(folder, "a.png")
    sizes(folder, "a.png")
    assert reads == ["a.png", "a.png"]


def test_a_lower_limit_on_the_size_holds_for_remembered_files_too(folder):
    save(folder, "a.png", (1000, 1000))
    assert sizes(folder, "a.png")[0][:2] == (1000, 1000)
    assert "INPUT.MAX_MEGAPIXELS 0.5" in sizes(folder, "a.png", limit=0.5)[0]


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"version": "2"}', '{"version": "0", "subject": "F", "findings": {}}']
    + [
        f'{{"version": "2", "subject": "F", "findings": {files}}}'
        for files in ('{"P": [1]}', '{"P": "abcd"}', "3", '{"P": [1, 2, 3, null]}')
    ],
)
def test_damaged_memory_is_ignored_and_written_again(folder, reads, content):
    save(folder, "a.png", (20, 10))
    sizes(folder, "a.png")
    (memory,) = os.listdir(cache_folder("headers"))
    path = os.path.join(cache_folder("headers"), memory)
    with open(path, "w", encoding="utf-8") as f:
        f.write(content.replace('"F"', f'"{folder}"').replace('"P"', f'"{folder / "a.png"}"'))
    reads.clear()
    for _ in range(2):
        assert sizes(folder, "a.png")[0][:2] == (20, 10)
    assert reads == ["a.png"]


def test_where_nothing_can_be_remembered_headers_are_read_each_time(folder, reads, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    save(folder, "a.png", (20, 10))
    with caplog.at_level("INFO", "clq"):
        for _ in range(2):
            assert sizes(folder, "a.png")[0][:2] == (20, 10)
    assert reads == ["a.png", "a.png"]
    assert "cannot be written" in caplog.text
