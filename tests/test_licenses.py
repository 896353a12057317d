"""docs/licenses.md names every package of requirements.txt, with a license."""

import re


def test_every_required_package_has_a_license(script):
    tool = script("tools/licenses.py")
    rows = dict(re.findall(r"^\| (\S+) +\| (.*?) +\|$", tool.PAGE.read_text(), re.M))
    names = set(tool.required())
    assert {"torch", "numpy", "pb1-detectron2", "colorama"} <= names
    assert names == set(rows) - {"package", "---"}
    assert not [name for name in names if rows[name] in ("", "UNKNOWN")]
