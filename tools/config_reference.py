#!/usr/bin/env python3
"""Write docs/CONFIG.md, the reference of all config keys that this project adds to Detectron2's.

tools/config_reference.py            rewrites docs/CONFIG.md from the table of keys in clq/config
tools/config_reference.py --check    exits with status 2 if the file differs from the table
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from clq.config.key import Key, OneOf
from clq.config.table import SECTIONS
from clq.errors import UserError
from clq.utils.cli import run_cli

REFERENCE = Path(__file__).parents[1] / "docs/CONFIG.md"
HEADER = """# Config keys

These are the keys that this project adds to Detectron2's
[own](https://detectron2.readthedocs.io/en/latest/modules/config.html). A config file sets them as nested groups, and a
command line sets them as `KEY VALUE` pairs. `make config-docs` writes this page from the table of keys in
`projects/CLQ/clq/config`; edit the table, not the page.
"""


def reference() -> str:
    """The whole page as Markdown."""
    return "\n".join([HEADER, *(line for title, keys in SECTIONS.items() for line in _section(title, keys))])


def _section(title: str, keys: tuple[Key, ...]) -> list[str]:
    rows = [f"| `{key.path}` | {_code(key.default)} | {_cell(key.meaning)} | {_values(key)} |" for key in keys]
    return [f"## {title}", "", "| key | default | meaning | values |", "|---|---|---|---|", *rows, ""]


def _values(key: Key) -> str:
    """What a key accepts: each choice with its meaning, or a range, or a type."""
    if isinstance(key.values, OneOf):
        choices = [f"{_code(name)}: {_cell(meaning)}" for name, meaning in key.values.meanings.items()]
        earlier = [f"{_code(old)}: The earlier name of {_code(new)}." for old, new in key.values.renamed.items()]
        return "<br>".join(choices + earlier)
    if key.values is None:
        return {bool: "`True` or `False`", str: "text"}.get(type(key.default), "a list")
    return _cell(key.values.describe())


def _code(value: object) -> str:
    return f"`{_cell(value)}`" if value != "" else '`""`'


def _cell(value: object) -> str:
    return str(value).replace("|", r"\|").replace("*", r"\*").replace("<", r"\<")


def main(argv: list[str] | None = None) -> None:
    """Writes or checks the page."""
    keep_up_to_date(REFERENCE, reference, "the table of config keys", __doc__, argv)


def keep_up_to_date(
    path: Path, page: Callable[[], str], source: str, description: str | None, argv: list[str] | None
) -> None:
    """Writes a page that is generated, or checks it with ``--check``.

    Args:
        path: file of the page.
        page: makes its text.
        source: what it is generated from, for the message.
        description: of the tool.
        argv: arguments of the tool.

    Raises:
        UserError: the page is checked and not up to date.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is not up to date")
    args = parser.parse_args(argv)
    if not args.check:
        path.write_text(page())
    elif not path.is_file() or path.read_text() != page():
        raise UserError(f"{path.name}: differs from {source}; run make config-docs.")


if __name__ == "__main__":
    run_cli(main)
