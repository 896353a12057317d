"""docs/OPTIONS.md has every argument of every command, as the parsers have it."""

import argparse

import pytest
from clq.commands.main import COMMANDS


def test_the_reference_is_what_the_parsers_say(run):
    assert run("tools/command_reference.py", "--check") == 0


def test_the_reference_has_every_option_that_help_shows(script):
    tool = script("tools/command_reference.py")
    for command in COMMANDS:
        section = tool.reference().split(f"## clq {command}\n")[1].split("\n## ")[0]
        options = set(tool.parser_of(command)._option_string_actions) - {"-h", "--help"}
        assert "The arguments are those of" in section or all(f"| `{option}" in section for option in options)


def test_arguments_are_shown_with_their_values_defaults_and_exclusions(script):
    tool = script("tools/command_reference.py")
    parser = argparse.ArgumentParser("clq x")
    parser.add_argument("file", nargs="+", help="file to read")
    parser.add_argument("-s", "--side", type=int, default=3, help="side of a | in pixels (default: %(default)s)")
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--fast", action="store_true", help="do it fast.")
    group.add_argument("--kind", choices=["a", "b"], help="kind of *it*")
    assert tool._table(parser)[2:] == [
        "| `file ...` | File to read |",
        r"| `--side` `SIDE` | Side of a \| in pixels (default: 3) |",
        "| `--fast` | Do it fast |",
        r"| `--kind` `{a,b}` | Kind of \*it\* |",
        "",
        "One of `--fast`, `--kind` is given.",
        "",
    ]


def test_a_reference_that_is_not_up_to_date_is_reported_and_rewritten(script, tmp_path, monkeypatch):
    tool = script("tools/command_reference.py")
    monkeypatch.setattr(tool, "REFERENCE", tmp_path / "OPTIONS.md")
    with pytest.raises(SystemExit, match="2") as exited:
        tool.run_cli(tool.main, ["--check"])
    assert exited.value.code == 2
    tool.main([])
    tool.main(["--check"])
