#!/usr/bin/env python3
"""Write MODEL_ZOO.md: every config with what was published of it, and every result recorded in docs/results.

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
from clq.errors import UserError
from clq.evaluation.metrics import METRICS
from clq.experiments.ablation import markdown_table, metric_cells
from clq.utils.cli import run_cli

ROOT = Path(__file__).parents[1]
ZOO = ROOT / "MODEL_ZOO.md"
# AP as the CLQ paper gives it, and the table it is in.
PAPER = {
    "CLQ/clq_R_50_FPN_1x": (41.6, "Table 2"),
    "CLQ/clq_R_50_FPN_2x_ms": (44.2, "Table 4, test-dev"),
    "CLQ/clq_R_101_FPN_2x_ms": (46.2, "Table 4, test-dev"),
    "CLQ/clq_X_101_64x4d_FPN_2x_ms": (47.8, "Table 4, test-dev"),
    "ATSS/atss_R_50_FPN_1x": (39.4, "Table 3"),
    "ablations/atss_qfl_R_50_FPN_1x": (39.8, "Table 3"),
    "ablations/atss_lqe_R_50_FPN_1x": (40.2, "Table 3"),
    "ablations/atss_clq_R_50_FPN_1x": (40.6, "Table 3"),
    "ablations/clq_wo_align_R_50_FPN_1x": (40.4, "Table 2"),
    "ablations/clq_wo_lqe_R_50_FPN_1x": (39.9, "Table 2"),
}
# AP on COCO of the models that each method's authors released, from the README of their repository; on test-dev where
# nothing else is said.
AUTHORS = {
    "ATSS/atss_R_50_FPN_1x": 39.3,
    "ATSS/atss_R_101_FPN_2x_ms": 43.6,
    "ATSS/atss_X_101_64x4d_FPN_2x_ms": 45.6,
    "GFL/gfl_R_50_FPN_1x": 40.3,
    "GFL/gfl_R_50_FPN_2x_ms": 43.1,
    "GFL/gfl_R_101_FPN_2x_ms": 45.0,
    "GFLV2/gflv2_R_50_FPN_1x": 41.1,
    "GFLV2/gflv2_R_50_FPN_2x_ms": 44.4,
    "GFLV2/gflv2_R_101_FPN_2x_ms": 46.0,
    "GFLV2/gflv2_R_101_DCN_FPN_2x_ms": 48.2,
    "GFLV2/gflv2_X_101_32x4d_DCN_FPN_2x_ms": 49.0,
    "GFLV2/gflv2_R2_101_DCN_FPN_2x_ms": 50.5,
    "NANODET/nanodet_m_320": "20.6 (val2017)",
    "NANODET/nanodet_m_416": "23.5 (val2017)",
    "TOOD/tood_R_50_FPN_1x": 42.7,
    "TOOD/tood_R_101_FPN_2x_ms": 46.7,
    "TOOD/tood_X_101_64x4d_FPN_2x_ms": 48.5,
    "VFNET/vfnet_R_50_FPN_1x": 41.6,
    "VFNET/vfnet_R_50_FPN_2x_ms": 44.8,
    "VFNET/vfnet_R_101_FPN_2x_ms": 46.7,
    "VFNET/vfnet_X_101_64x4d_FPN_2x_ms": 48.5,
}
# The README of each folder's authors and the commit it was read at.
SOURCES = {
    "ATSS": ("sfzhang15/ATSS", "0f66e2812e4fcbb267fa2cf0aab012ee3ec981ac"),
    "GFL": ("implus/GFocal", "c44d6da61fd8bce08ccc8d7d55587c3e955abb6b"),
    "GFLV2": ("implus/GFocalV2", "bfcc2b9fbbcad714cff59dacc8fb1111ce381cda"),
    "NANODET": ("RangiLyu/nanodet", "be9b4a9"),
    "TOOD": ("fcjian/TOOD", "080a16acc2b66109cc116f47a08940a2a5cbbe42"),
    "VFNET": ("hyz-xmaster/VarifocalNet", "03059ef85af4d45b7bcfa32a51c8daa50e579443"),
}
HEADER = """# Model zoo

Made by `tools/zoo.py` from `configs/` and `docs/results/`. No checkpoint is published yet.

## COCO

**None of these has been trained here**: COCO was not available. All AP in this table was published by others.

- *CLQ paper*: what the [CLQ paper](https://arxiv.org/abs/2309.13269) reports; Tables 2 and 3 are its ablations.
- *authors*: what a method's own authors report of the models they released, on test-dev (NanoDet's: on val2017), in the
  README of {}.
  These stand in for the figures of the CLQ paper's Table 4, which could not be looked up here and may differ: GFLv2's
  authors say that the models they released are from new trainings (their paper's ResNet-101 has 46.2), and their
  ResNet-50 at 1x is trained at several scales, where our config has one. ATSS's authors
  draw the short side from 640 to 800 at 2x.
- A dash: no figure was found. ATSS's and TOOD's authors list no ResNet-50 at 2x, GFL's and GFLv2's no ResNeXt-101-64x4d
  (GFL's ResNeXt-101-32x4d: 46.0).

ResNeXt-101-64x4d starts from `torchvision://resnext101_64x4d` here, a training of torchvision's newer recipe. Models of
MMDetection, where the code of VFNet, TOOD and CLQ comes from, start from OpenMMLab's own file, `resnext101_64x4d`, so
their AP may not be reached exactly with ours. Inputs are normalised alike. To start from that file, give its address as
`MODEL.WEIGHTS`, or its path once it is downloaded:

```
python train_net.py --config-file configs/VFNET/vfnet_X_101_64x4d_FPN_2x_ms.yaml \\
    MODEL.WEIGHTS https://download.openmmlab.com/pretrain/third_party/resnext101_64x4d-ee2c6f71.pth
```

"""


def make_header() -> str:
    links = [f"[{name}](https://github.com/{name}/blob/{commit}/README.md)" for name, commit in SOURCES.values()]
    return HEADER.format(", ".join(links[:-1]) + " and " + links[-1])


def published(name: str) -> list[str]:
    """The two cells of AP that others published for a config."""
    paper = "{} ({})".format(*PAPER[name]) if name in PAPER else "–"
    return [paper, str(AUTHORS.get(name, "–"))]


def coco_table() -> str:
    for name in (*PAPER, *AUTHORS):
        if not (ROOT / "configs" / f"{name}.yaml").is_file():
            raise UserError(f"configs/{name}.yaml: no such file, though tools/zoo.py has a published figure for it.")
    lines = []
    for path in sorted(ROOT.glob("configs/*/*.yaml")):
        name = str(path.relative_to(ROOT / "configs").with_suffix(""))
        if name.startswith("sample/") or "/mmdet_" in name:  # no training of their own
            continue
        cfg = clq.setup_cfg(str(path), ["MODEL.DEVICE", "cpu"])
        sizes = cfg.INPUT.LETTERBOX.SIZE if cfg.INPUT.LETTERBOX.ENABLED else cfg.INPUT.MIN_SIZE_TRAIN
        lines.append(
            [
                f"[{name}](configs/{name}.yaml)",
                f"{cfg.SOLVER.MAX_ITER // 1000}k x {cfg.SOLVER.IMS_PER_BATCH}",
                ("x" if cfg.INPUT.LETTERBOX.ENABLED else "–").join(map(str, sizes)),
                *published(name),
            ]
        )
    header = ["config", "iterations x images", "short side, or letterbox", "CLQ paper", "authors"]
    return markdown_table(header, lines)


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
    return "\n".join([make_header() + coco_table(), *studies, footnote])


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
