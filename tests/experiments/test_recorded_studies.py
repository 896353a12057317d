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


@pytest.mark.parametrize("store", ["deeppcb", "deeppcb_long", "deeppcb_candidates"])
def test_the_matches_give_the_recorded_ap(store):
    folder = Store(ROOT / "docs/results" / store)
    rows, runs = folder.content()["rows"], folder.matches()
    assert len(runs) >= 3
    for name, seeds in runs.items():
        for seed, matches in seeds.items():
            assert rows[name]["seeds"][str(seed)]["AP"] == pytest.approx(average_precision(matches)[0], abs=1e-3)


def test_the_table_of_the_document_has_the_recorded_ap():
    table = (ROOT / "docs/results.md").read_text().split("## Circuit boards")[1].split("\n![")[0]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    written = {name: (short, long) for name, short, _, long, _ in cells if name != "variant"}
    rows = [json.loads((ROOT / f"docs/results/{x}.json").read_text())["rows"] for x in ("deeppcb", "deeppcb_long")]
    assert set(written) == set(rows[0]) | set(rows[1])
    for name, texts in written.items():
        for text, recorded in zip(texts, rows, strict=True):
            aps = [seed["AP"] for _, seed in sorted(recorded[name]["seeds"].items())] if name in recorded else []
            each = ", ".join(f"{ap:.1f}" for ap in aps)
            assert text == (f"{mean_and_spread(aps)} ({each})" if aps else "–"), name
