#!/usr/bin/env python3
"""Write MODEL_ZOO.md: every config with what its paper reports, and every result recorded in docs/results.

tools/zoo.py            rewrites MODEL_ZOO.md
tools/zoo.py --check    exit status 2 where it is not what the configs and results say

A record is a study's results.json of tools/ablate.py, under "rows", with "data", "schedule" and "machine" in words.
What it measured of speed and size is shown where all its rows have it.
"""

import argparse
import json
import math
from pathlib import Path

import clq
from clq.engine.ablation import markdown_table, metric_cells
from clq.engine.launch import run_cli
from clq.errors import UserError
from clq.evaluation.metrics import METRICS

ROOT = Path(__file__).parents[1]
ZOO = ROOT / "MODEL_ZOO.md"
# AP on COCO test-dev as the CLQ paper gives it; for its ablation (1x) as in its Tables 2 and 3.
PAPER = {
    "CLQ/clq_R_50_FPN_1x": 41.6,
    "CLQ/clq_R_50_FPN_2x_ms": 44.2,
    "CLQ/clq_R_101_FPN_2x_ms": 46.2,
    "CLQ/clq_X_101_64x4d_FPN_2x_ms": 47.8,
    "ATSS/atss_R_50_FPN_1x": 39.4,
    "ablations/atss_clq_R_50_FPN_1x": 40.6,
    "ablations/clq_wo_align_R_50_FPN_1x": 40.4,
    "ablations/clq_wo_lqe_R_50_FPN_1x": 39.9,
}
HEADER = """# Model zoo

Made by `tools/zoo.py` from `configs/` and `docs/results/`. No checkpoint is published yet.

## COCO

**None of these has been trained here**: COCO was not at hand. AP is what the CLQ paper reports for this configuration;
a dash where the config is of another paper or of none.

"""


def coco_table() -> str:
    for name in PAPER:
        if not (ROOT / "configs" / f"{name}.yaml").is_file():
            raise UserError(f"configs/{name}.yaml: no such file, though tools/zoo.py has the paper's figure for it.")
    lines = []
    for path in sorted(ROOT.glob("configs/*/*.yaml")):
        name = str(path.relative_to(ROOT / "configs").with_suffix(""))
        if name.startswith("sample/") or "/mmdet_" in name:  # no training of their own
            continue
        cfg = clq.setup_cfg(str(path), ["MODEL.DEVICE", "cpu"])
        sizes = cfg.INPUT.MIN_SIZE_TRAIN
        lines.append(
            [
                f"[{name}](configs/{name}.yaml)",
                f"{cfg.SOLVER.MAX_ITER // 1000}k x {cfg.SOLVER.IMS_PER_BATCH}",
                "–".join(map(str, sizes)),
                str(PAPER.get(name, "–")),
            ]
        )
    return markdown_table(["config", "iterations x images", "short side", "the paper's AP"], lines)


def study(path: Path) -> str:
    """One recorded study as a section.

    Raises:
        UserError: the record lacks something.
    """
    lines = []
    try:
        record = json.loads(path.read_text())
        rows = record["rows"]
        first = next(iter(rows.values()))
        speed = [key for key in first if key != "seeds" and all(key in row for row in rows.values())]
        for name, row in rows.items():
            measured = [{k: math.nan if v is None else v for k, v in seed.items()} for seed in row["seeds"].values()]
            lines.append([name, str(len(measured)), *metric_cells(measured), *(f"{row[key]:.1f}" for key in speed)])
        table = markdown_table(["row", "seeds", *METRICS, *speed], lines)
        return f"## {record['data']}\n\n{record['schedule']} {record['machine']}\n\n{table}"
    except (AttributeError, KeyError, StopIteration, TypeError, ValueError) as e:
        why = f"{type(e).__name__} {' '.join(str(e).split())}"
        raise UserError(f"{path}: is no record of a study ({why}); see tools/zoo.py --help.") from e


def make_zoo() -> str:
    studies = [study(path) for path in sorted(ROOT.glob("docs/results/*.json"))]
    footnote = (
        "Mean ± standard deviation over seeds. AR at the most detections an image that count; score-IoU: Spearman's "
        "rank correlation of final score and IoU over all detections.\n"
    )
    return "\n".join([HEADER + coco_table(), *studies, footnote])


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args(argv).check
    zoo = make_zoo()
    if not check:
        ZOO.write_text(zoo)
    elif not ZOO.is_file() or ZOO.read_text() != zoo:
        raise UserError("MODEL_ZOO.md is not what configs and docs/results say; run tools/zoo.py.")
    return 0


if __name__ == "__main__":
    run_cli(main)
