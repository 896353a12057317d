"""The runs in docs/results are those of the script beside them."""

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest
from clq.evaluation.matches import average_precision
from clq.experiments.ablation import mean_and_spread
from clq.experiments.store import Store
from clq.utils.cli import parse_variant

ROOT = Path(__file__).parents[2]
PYTHON = """#!/usr/bin/env bash
printf '%s\\n' "$@" > "$ARGUMENTS"
"""


STORES = {
    "rates": "deeppcb_rates",
    "short": "deeppcb",
    "long": "deeppcb_long",
    "candidates": "deeppcb_candidates",
    "resnet18": "deeppcb_r18",
}


@pytest.mark.parametrize("study, store", STORES.items())
def test_every_stored_run_is_one_of_the_script(study, store, tmp_path):
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "ARGUMENTS": str(tmp_path / "arguments")}
    subprocess.run(["docs/results/deeppcb.sh", study], cwd=ROOT, env=environment, check=True)
    arguments = (tmp_path / "arguments").read_text().splitlines()
    assert f"docs/results/{store}" in arguments
    variants, opts = arguments.index("--variants"), arguments.index("--opts")
    given = {v.name: v for v in map(parse_variant, arguments[variants + 1 : opts])}
    config, rest = arguments[arguments.index("--config-file") + 1], arguments[opts + 1 :]
    settings = {name: shlex.join([config, v.config_file, *v.opts, *rest]) for name, v in given.items()}
    rows = json.loads((ROOT / f"docs/results/{store}.json").read_text())["rows"]
    assert {name: row["settings"] for name, row in rows.items()} == {name: settings[name] for name in rows}
    seeds = set(arguments[arguments.index("--seeds") + 1 : variants])
    assert all(set(row["seeds"]) <= seeds for row in rows.values())


@pytest.mark.parametrize("store", ["deeppcb", "deeppcb_long", "deeppcb_candidates", "deeppcb_r18"])
def test_the_matches_give_the_recorded_ap(store):
    folder = Store(ROOT / "docs/results" / store)
    rows, runs = folder.content()["rows"], folder.matches()
    assert set(runs) == set(rows) and len(runs) >= 3
    for name, seeds in runs.items():
        for seed, matches in seeds.items():
            assert rows[name]["seeds"][str(seed)]["AP"] == pytest.approx(average_precision(matches)[0], abs=1e-3)


# The tables of docs/results.md by their headings: the store of each column with AP, and whether it lists each seed.
TABLES = {
    "## Circuit boards": ({1: "deeppcb", 3: "deeppcb_long"}, True),
    "### A ResNet-18 from scratch": ({1: "deeppcb_r18"}, True),
    "### Changes of CLQ that were tried": ({1: "deeppcb_candidates"}, False),
}


@pytest.mark.parametrize("heading", TABLES)
def test_the_tables_of_the_document_have_the_recorded_ap(heading):
    columns, each_seed = TABLES[heading]
    table = (ROOT / "docs/results.md").read_text().split(f"\n{heading}\n")[1].split("\n#")[0]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    written = {row[0]: row for row in cells if row[0] != "variant"}
    records = {
        column: json.loads((ROOT / f"docs/results/{x}.json").read_text())["rows"] for column, x in columns.items()
    }
    assert set(written) == set().union(*records.values())
    for name, row in written.items():
        for column, record in records.items():
            aps = [seed["AP"] for _, seed in sorted(record[name]["seeds"].items())] if name in record else []
            each = f" ({', '.join(f'{ap:.1f}' for ap in aps)})" if each_seed else ""
            assert row[column] == (f"{mean_and_spread(aps)}{each}" if aps else "–"), name
