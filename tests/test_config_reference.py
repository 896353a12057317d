import pytest
from clq.config import KEYS


def test_the_reference_is_what_the_table_says(run):
    assert run("tools/config_reference.py", "--check") == 0


def test_the_reference_has_every_key_once(script):
    reference = script("tools/config_reference.py").reference()
    assert {reference.count(f"| `{path}` |") for path in KEYS} == {1}


def test_a_reference_that_is_not_up_to_date_is_reported_and_rewritten(script, tmp_path, monkeypatch):
    tool = script("tools/config_reference.py")
    monkeypatch.setattr(tool, "REFERENCE", tmp_path / "CONFIG.md")
    with pytest.raises(tool.UserError, match="differs from the table of config keys; run make config-docs"):
        tool.main(["--check"])
    tool.main([])
    tool.main(["--check"])
    assert (tmp_path / "CONFIG.md").read_text() == tool.reference()
