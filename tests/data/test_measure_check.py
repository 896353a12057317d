"""tools/measure_check.py times the check of a data set that can be used."""

import re


def test_a_simulated_data_set_is_checked_twice(script, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # restored after the test: the tool sets it
    script("tools/measure_check.py").main(["--images", "5"])
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("5 images, a json of ")
    for line, which in zip(said[1:], ("first", "second"), strict=True):
        assert re.fullmatch(rf"the {which} check: \d+\.\d s, \d+\.\d s of processor time", line)
