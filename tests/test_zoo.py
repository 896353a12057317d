import json

import pytest
from clq.errors import UserError
from clq.evaluation.metrics import METRICS

SEED = dict.fromkeys(METRICS, 1.0)
RECORD = {
    "data": "Cells",
    "schedule": "600 iterations.",
    "machine": "A laptop.",
    "rows": {"a|b": {"seeds": {"1": SEED}}},
}


def test_the_zoo_is_what_configs_and_results_say(run):
    assert run("tools/zoo.py", "--check") == 0


def test_every_published_figure_has_its_source(script):
    zoo = script("tools/zoo.py")
    rows = {line.split("]")[0][3:]: line for line in zoo.coco_table().splitlines()[2:]}
    by_hand = {  # a few, from the paper and the authors' pages
        "CLQ/clq_R_101_FPN_2x_ms": "46.2 (Table 4, test-dev) | –",
        "ablations/atss_qfl_R_50_FPN_1x": "39.8 (Table 3) | –",
        "ablations/atss_lqe_R_50_FPN_1x": "40.2 (Table 3) | –",
        "ATSS/atss_R_101_FPN_2x_ms": "– | 43.6",
        "GFLV2/gflv2_R_50_FPN_2x_ms": "– | 44.4",
        "VFNET/vfnet_R_50_FPN_1x": "– | 41.6",
        "NANODET/nanodet_m_320": "– | 20.6 (val2017)",
    }
    assert {name: rows[name].endswith(f"| {cells} |") for name, cells in by_hand.items()} == dict.fromkeys(
        by_hand, True
    )
    for name, (ap, table) in zoo.PAPER.items():
        assert f"| {ap} ({table}) |" in rows[name]
    for name, ap in zoo.AUTHORS.items():
        repository, commit = zoo.SOURCES[name.split("/")[0]]
        assert rows[name].endswith(f"| {ap} |")
        assert f"https://github.com/{repository}/blob/{commit}/README.md" in zoo.make_header()
    others = [row for name, row in rows.items() if name not in (*zoo.PAPER, *zoo.AUTHORS)]
    assert others and all(row.endswith("| – | – |") for row in others)


@pytest.fixture
def study(tmp_path, script):
    """The section that tools/zoo.py makes of a record; its path is in ``study.path``."""

    def study(record):
        study.path.write_text(json.dumps(record))
        return script("tools/zoo.py").study(study.path)

    study.path = tmp_path / "cells.json"
    return study


def test_speed_is_shown_where_all_rows_have_it(study):
    rows = {"x": {"seeds": {"1": SEED}, "images/s": 12.34, "params (M)": 0.9}, "y": {"seeds": {"1": SEED}}}
    assert "images/s" not in study({**RECORD, "rows": rows})
    rows["y"]["images/s"] = 5
    *_, header, _, x, y = study({**RECORD, "rows": rows}).splitlines()
    assert header.endswith("| images/s |") and "params" not in header
    assert x.endswith(" 12.3 |") and y.endswith(" 5.0 |")


def test_a_name_does_not_break_the_table(study):
    assert study(RECORD).splitlines()[-1].startswith(r"| a\|b | 1 | 1.0 |")


@pytest.mark.parametrize(
    "rows", [{}, {"x": {}}, {"x": {"seeds": {}}}, {"x": {"seeds": {"1": {"AP": 1.0}}}}, ["x"], {"x": {"seeds": [1]}}]
)
def test_what_is_no_record_is_named(rows, study):
    with pytest.raises(UserError, match=f"{study.path}: is no record of a study"):
        study({**RECORD, "rows": rows})
