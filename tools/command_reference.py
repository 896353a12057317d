#!/usr/bin/env python3
"""Write docs/OPTIONS.md, the reference of all arguments of the command ``clq``.

tools/command_reference.py            rewrites docs/OPTIONS.md from the parsers of the commands
tools/command_reference.py --check    exits with status 2 if the file differs from them
"""

import argparse
import importlib
import re
import sys
from pathlib import Path
from unittest import mock

import clq.library  # noqa: F401  (first: it lets Detectron2 import)
from clq.commands.main import COMMANDS
from clq.utils.cli import run_cli
from config_reference import keep_up_to_date

REFERENCE = Path(__file__).parents[1] / "docs/OPTIONS.md"
HEADER = """# Options of the commands

`make config-docs` writes this page from the parsers of the commands; `clq COMMAND --help` shows the same.
[commands.md](commands.md) describes what the commands are for.
"""


class _Found(Exception):
    """Carries the parser of a command out of its main."""


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of a command: the one whose ``parse_args`` its main calls."""

    def stop(self: argparse.ArgumentParser, *args: object, **kwargs: object) -> None:
        raise _Found(self)

    main = importlib.import_module(COMMANDS[command][0]).main
    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", stop),
        mock.patch.object(sys, "argv", [f"clq {command}"]),
    ):
        try:
            main([])
        except _Found as e:
            return e.args[0]
    raise AssertionError(f"clq {command} has no parser")


def reference() -> str:
    """The whole page as Markdown."""
    lines, known = [HEADER], {}
    for command, (_, what) in COMMANDS.items():
        parser = parser_of(command)
        lines += [f"## clq {command}", ""]
        same = known.setdefault(str(_table(parser)), command)
        if same != command:
            summary = what[0].upper() + what[1:]
            lines += [f"{summary}. The arguments are those of [clq {same}](#clq-{same}).", ""]
        else:
            lines += [_description(parser.description), "", *_table(parser)]
    return "\n".join(lines)


def _description(text: str | None) -> str:
    """A docstring as Markdown: its indented commands become blocks of code."""
    paragraphs = [_cell(p) if not p.startswith("    ") else p for p in (text or "").strip().split("\n\n")]
    fenced = [f"```\n{re.sub('^    ', '', p, flags=re.M)}\n```" if p.startswith("    ") else p for p in paragraphs]
    return "\n\n".join(fenced)


def _table(parser: argparse.ArgumentParser) -> list[str]:
    """The arguments of a command, besides ``--help``, and which of them exclude each other."""
    actions = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    actions.sort(key=lambda action: action.nargs == argparse.REMAINDER)  # which a command line ends with
    if not actions:
        return ["It takes no arguments.", ""]
    groups = parser._mutually_exclusive_groups
    rows = [f"| {_name(action)} | {_meaning(action, parser)} |" for action in actions]
    sentences = [
        f"{'One' if group.required else 'At most one'} of "
        f"{', '.join(f'`{action.option_strings[-1]}`' for action in group._group_actions)} is given."
        for group in groups
    ]
    return ["| argument | meaning |", "|---|---|", *rows, "", *(line for s in sentences for line in (s, ""))]


def _name(action: argparse.Action) -> str:
    """An argument with the name of its value, as its help shows it."""
    value = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
    if action.choices:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    value = {"?": "[{}]", "+": "{} ...", "*": "[{} ...]", argparse.REMAINDER: "KEY VALUE ..."}.get(
        str(action.nargs), "" if action.nargs == 0 else "{}"
    ).format(value)
    return " ".join(f"`{word}`" for word in [*action.option_strings[-1:], value] if word)


def _meaning(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    """The help of an argument, with its default where that is named in it."""
    text = " ".join(((action.help or "") % {**vars(action), "prog": parser.prog}).split())
    required = " (required)" if action.required and action.option_strings else ""
    return _cell(text[:1].upper() + re.sub(r"(?<!\.)\.$", "", text[1:])) + required


def _cell(text: str) -> str:
    return re.sub(r"(?<!`)([|<*])", r"\\\1", text)


def main(argv: list[str] | None = None) -> None:
    """Writes or checks the page."""
    keep_up_to_date(REFERENCE, reference, "the parsers of the commands", __doc__, argv)


if __name__ == "__main__":
    run_cli(main)
