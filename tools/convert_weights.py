#!/usr/bin/env python3
"""Convert a detector's weights from another code base: the same as ``clq convert``."""

from clq.commands.convert import main
from clq.utils.cli import run_cli

if __name__ == "__main__":
    run_cli(main)
