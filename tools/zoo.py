#!/usr/bin/env python3
"""Write MODEL_ZOO.md: every config with its published AP, and every result recorded in docs/results.

tools/zoo.py            rewrites MODEL_ZOO.md
tools/zoo.py --check    exits with status 2 if MODEL_ZOO.md does not match the configs and results

A record has the keys "data", "schedule" and "machine", which describe a study in words, and "rows", which holds the
results.json of tools/ablate.py. Speed and size are shown if all variants of the record have them.
"""

import argparse
import math
from pathlib import Path

import clq
from clq.errors import UserError
from clq.evaluation.metrics import METRICS
from clq.experiments.ablation import markdown_table, metric_cells
from clq.utils.cli import run_cli
from clq.utils.files import read_json

ROOT = Path(__file__).parents[1]
ZOO = ROOT / "MODEL_ZOO.md"
# AP in the CLQ paper, and the table that reports it.
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
# AP on COCO of the models that the authors of each method released, from the README of their repository; on test-dev
# unless stated otherwise.
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
# Repository of the authors of each folder's method, and the commit at which its README was read.
SOURCES = {
    "ATSS": ("sfzhang15/ATSS", "0f66e2812e4fcbb267fa2cf0aab012ee3ec981ac"),
    "GFL": ("implus/GFocal", "c44d6da61fd8bce08ccc8d7d55587c3e955abb6b"),
    "GFLV2": ("implus/GFocalV2", "bfcc2b9fbbcad714cff59dacc8fb1111ce381cda"),
    "NANODET": ("RangiLyu/nanodet", "be9b4a9"),
    "TOOD": ("fcjian/TOOD", "080a16acc2b66109cc116f47a08940a2a5cbbe42"),
    "VFNET": ("hyz-xmaster/VarifocalNet", "03059ef85af4d45b7bcfa32a51c8daa50e579443"),
}
HEADER = """# Model zoo

`tools/zoo.py` generates this page from `configs/` and `docs/results/`. No checkpoint is published yet.

## COCO

**None of these detectors has been trained on COCO here**, because COCO was not available. Others published all AP in
this table:

- *CLQ paper* is the AP that the [CLQ paper](https://arxiv.org/abs/2309.13269) reports. Its Tables 2 and 3 are
  ablations.
- *authors* is the AP that the authors of a method report for the models they released, on test-dev (NanoDet's on
  val2017), in the README of {}.
  These figures replace those of the CLQ paper's Table 4, which could not be looked up
  here and may differ. GFLv2's authors state that they trained the released models anew (their paper reports 46.2 for
  ResNet-101), and they train ResNet-50 at 1x at several scales, whereas our config uses one. ATSS's authors draw the
  short side from 640 to 800 at 2x.
- A dash means that no figure was found. ATSS's and TOOD's authors list no ResNet-50 at 2x, and GFL's and GFLv2's list
  no ResNeXt-101-64x4d (GFL's ResNeXt-101-32x4d has 46.0).

`configs/ATSS`, `GFL`, `GFLV2`, `VFNET` and `TOOD` have ResNet-50 at 1x and at multi-scale 2x, and ResNet-101 and
ResNeXt-101-64x4d at multi-scale 2x. GFLv2 also has three deformable backbones. `configs/CLQ/clq_lite_320.yaml` and
`clq_lite_416.yaml` are NanoDet with CLQ's quality branch and score (1.0 M parameters). `configs/comparison` has
Detectron2's own RetinaNet, FCOS, Faster, Mask and Cascade R-CNN on the same input, backbone and schedule; Mask R-CNN
needs segmentations and is evaluated on boxes. [docs/weights.md](docs/weights.md#imagenet-weights) describes the
ImageNet weights that the configs start from, which affect the AP of ResNeXt-101-64x4d.

"""


def make_header() -> str:
    links = [f"[{name}](https://github.com/{name}/blob/{commit}/README.md)" for name, commit in SOURCES.values()]
    return HEADER.format(", ".join(links[:-1]) + " and " + links[-1])


def published(name: str) -> list[str]:
    """AP that others published for a config: the two cells of the table."""
    paper = "{} ({})".format(*PAPER[name]) if name in PAPER else "–"
    return [paper, str(AUTHORS.get(name, "–"))]


def coco_table() -> str:
    for name in (*PAPER, *AUTHORS):
        if not (ROOT / "configs" / f"{name}.yaml").is_file():
            raise UserError(f"configs/{name}.yaml: no such file, but tools/zoo.py has its published AP.")
    lines = []
    for path in sorted(ROOT.glob("configs/*/*.yaml")):
        name = str(path.relative_to(ROOT / "configs").with_suffix(""))
        if name.startswith(("sample/", "finetune/")) or "/mmdet_" in name:  # these configs have no published AP
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
        UserError: the record lacks a key, or one of its values has a wrong type.
    """
    lines = []
    try:
        record = read_json(path)
        variants = record["rows"]
        first = next(iter(variants.values()))
        speed = [key for key in first if all(key in result for result in variants.values())]
        speed = [key for key in speed if key not in ("seeds", "settings")]
        for name, result in variants.items():
            measured = [{k: math.nan if v is None else v for k, v in s.items()} for s in result["seeds"].values()]
            lines.append([name, str(len(measured)), *metric_cells(measured), *(f"{result[key]:.1f}" for key in speed)])
        table = markdown_table(["variant", "seeds", *METRICS, *speed], lines)
        return f"## {record['data']}\n\n{record['schedule']} {record['machine']}\n\n{table}"
    except (AttributeError, KeyError, OverflowError, StopIteration, TypeError, ValueError) as e:
        why = f"{type(e).__name__} {' '.join(str(e).split())}"
        raise UserError(f"{path}: is no record of a study ({why}); see tools/zoo.py --help.") from e


def make_zoo() -> str:
    studies = [study(path) for path in sorted(ROOT.glob("docs/results/*.json"))]
    footnote = (
        "Every figure is the mean ± standard deviation over seeds. AR is taken at the largest number of detections per "
        "image that count. score-IoU is Spearman's rank correlation of final score and IoU over all detections.\n"
    )
    return "\n".join([make_header() + coco_table(), *studies, footnote])


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; report whether MODEL_ZOO.md is up to date")
    check = parser.parse_args(argv).check
    zoo = make_zoo()
    if not check:
        ZOO.write_text(zoo)
    elif not ZOO.is_file() or ZOO.read_text() != zoo:
        raise UserError("MODEL_ZOO.md does not match configs and docs/results; run tools/zoo.py.")
    return 0


if __name__ == "__main__":
    run_cli(main)
