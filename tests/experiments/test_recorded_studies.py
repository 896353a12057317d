"""The runs in docs/results are those of the script beside them."""

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest
from clq.evaluation.matches import Matches, average_precision
from clq.experiments.store import Store
from clq.utils.cli import parse_variant

ROOT = Path(__file__).parents[2]
PYTHON = """#!/usr/bin/env bash
printf '%s\\n' "$@" > "$ARGUMENTS"
"""


@pytest.mark.parametrize("study, store", [("rates", "deeppcb_rates"), ("short", "deeppcb"), ("long", "deeppcb_long")])
def test_every_stored_run_is_one_of_the_script(study, store, tmp_path):
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "ARGUMENTS": str(tmp_path / "arguments")}
    subprocess.run(["docs/results/deeppcb.sh", study], cwd=ROOT, env=environment, check=True)
    arguments = (tmp_path / "arguments").read_text().splitlines()
    assert f"docs/results/{store}" in arguments
    variants, opts = arguments.index("--variants"), arguments.index("--opts")
    given = {v.name: v for v in map(parse_variant, arguments[variants + 1 : opts])}
    settings = {name: shlex.join([v.config_file, *v.opts, *arguments[opts + 1 :]]) for name, v in given.items()}
    rows = json.loads((ROOT / f"docs/results/{store}.json").read_text())["rows"]
    assert {name: row["settings"] for name, row in rows.items()} == {name: settings[name] for name in rows}
    seeds = set(arguments[arguments.index("--seeds") + 1 : variants])
    assert all(set(row["seeds"]) <= seeds for row in rows.values())


@pytest.mark.parametrize("store", ["deeppcb", "deeppcb_long"])
def test_the_matches_give_the_recorded_ap(store):
    """Of each variant's first seed, whose file is there."""
    folder = Store(ROOT / "docs/results" / store)
    for name, row in folder.content()["rows"].items():
        seed = next(iter(row["seeds"]))
        (ap,) = average_precision(Matches.load(str(folder.file(name, int(seed)))))
        assert row["seeds"][seed]["AP"] == pytest.approx(ap, abs=1e-3)
