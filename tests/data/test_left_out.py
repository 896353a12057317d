"""The file that lists what is left out."""

import json

from clq.data.formats.findings import LeftOut
from clq.data.left_out import write_left_out


def test_each_entry_is_a_line_and_none_is_written_twice(tmp_path, caplog):
    first, second = LeftOut("pets", "a.png", 3, "odd"), LeftOut("pets", "b.png", None, "damaged\nfile")
    write_left_out(str(tmp_path), [first])
    write_left_out(str(tmp_path), [first, second, second])
    lines = (tmp_path / "left_out.jsonl").read_text().splitlines()
    assert [LeftOut(**json.loads(line)) for line in lines] == [first, second]
    write_left_out(str(tmp_path / "nowhere"), [first])
    assert "cannot be written" in caplog.text


def test_nothing_left_out_leaves_no_file(tmp_path):
    write_left_out(str(tmp_path), [])
    assert not list(tmp_path.iterdir())
