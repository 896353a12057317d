"""An ablation: variants that exchange parts of one detector, each trained with several seeds on one data set."""

import math
import statistics
from collections.abc import Mapping, Sequence

from detectron2.config import CfgNode

from clq.config import setup_cfg
from clq.errors import UserError
from clq.evaluation.metrics import METRICS
from clq.utils.cli import Variant, parse_variant

# Keys and groups of keys under MODEL.CLQ that choose the parts of a variant. All others, such as the widths, are the
# study's, like its backbone, data and schedule.
CLQ_PARTS = (
    "TOWERS",
    "CONV",
    "HEAD_PER_LEVEL",
    "LEVEL_SCALES",
    "RELU_BEFORE_P7",
    "ASSIGN",
    "BOX",
    "CLS",
    "QUALITY",
    "ALIGN",
    "REFINE",
    "TOPK_COUNTS",
)
# Variants with another meta-architecture than CLQ bring their pyramid too, because some of them start from P2 and some
# make P6 and P7 in another way.
_PYRAMID = "BACKBONE.NAME", "RESNETS.OUT_FEATURES", "FPN.IN_FEATURES"
_ROI = "ROI_HEADS", "ROI_BOX_HEAD", "ROI_BOX_CASCADE_HEAD", "ROI_MASK_HEAD", "MASK_ON"
# Meta-architecture -> keys and groups of keys under MODEL that make up a variant of it.
PARTS = {
    "CLQ": tuple(f"CLQ.{part}" for part in CLQ_PARTS),
    "FCOS": (*_PYRAMID, "CLQ.IN_FEATURES", "CLQ.RELU_BEFORE_P7", "RETINANET"),
    "RetinaNet": (*_PYRAMID, "ANCHOR_GENERATOR", "RETINANET"),
    "GeneralizedRCNN": (*_PYRAMID, "ANCHOR_GENERATOR", "PROPOSAL_GENERATOR", "RPN", *_ROI),
}


def parse_study_variant(text: str) -> Variant:
    """Parses a variant and writes the parts that its config chooses out as overrides, for the config of a study.

    Args:
        text: ``[NAME=][CONFIG.yaml] [KEY VALUE ...]``, see :func:`~clq.utils.cli.parse_variant`.

    Returns:
        A variant without a config file, whose ``opts`` are the parts of the config, followed by the overrides.

    Raises:
        UserError: there is neither a config nor an override, or the config cannot be read.
    """
    variant = parse_variant(text)
    settings = variant_settings(variant.config_file) if variant.config_file else []
    return Variant(variant.name, None, (*settings, *variant.opts))


def variant_settings(config_file: str) -> list[str]:
    """Returns overrides KEY, VALUE, ... of the meta-architecture and the parts that a config chooses.

    Raises:
        UserError: the config cannot be read, or :data:`PARTS` does not have its meta-architecture.
    """
    model = setup_cfg(config_file, ["MODEL.DEVICE", "cpu"]).MODEL
    kind = model.META_ARCHITECTURE
    if kind not in PARTS:
        raise UserError(f"{config_file}: MODEL.META_ARCHITECTURE {kind} is not one of {', '.join(PARTS)}.")
    settings = {"META_ARCHITECTURE": kind, **_parts(model)}
    return [word for key, value in settings.items() for word in (f"MODEL.{key}", str(value))]


def _parts(model: CfgNode) -> dict[str, object]:
    """The keys under MODEL that choose the parts of a detector, with their values."""
    parts = tuple(f"{part}." for part in PARTS[model.META_ARCHITECTURE])
    return {key: value for key, value in _flat(model).items() if f"{key}.".startswith(parts)}


def differences(configs: Mapping[str, CfgNode]) -> dict[str, list[str]]:
    """For each variant but the first, its differences from the first, as ``KEY value (value of the first)``.

    For a variant with another meta-architecture than the first, these are the meta-architecture and the keys that both
    read; the keys of the parts of either are left out.

    Args:
        configs: config of each variant, by name.
    """
    first, *others = configs
    return {name: _differences(configs[name], configs[first]) for name in others}


def _differences(cfg: CfgNode, first: CfgNode) -> list[str]:
    kinds = {cfg.MODEL.META_ARCHITECTURE, first.MODEL.META_ARCHITECTURE}
    own = () if len(kinds) == 1 else tuple(f"MODEL.{part}." for kind in kinds for part in PARTS[kind])
    theirs = _flat(first)
    changed = {k: v for k, v in _flat(cfg).items() if v != theirs[k] and not f"{k}.".startswith(own)}
    short = {key: key.removeprefix("MODEL.").removeprefix("CLQ.") for key in changed}
    return [f"{short[key]} {value} ({theirs[key]})" for key, value in changed.items()]


def _flat(node: CfgNode, prefix: str = "") -> dict[str, object]:
    """The values of a config by their dotted keys."""
    flat: dict[str, object] = {}
    for key, value in node.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else {prefix + key: value})
    return flat


def mean_and_spread(values: Sequence[float], digits: int = 1) -> str:
    """Formats values as ``mean ± standard deviation`` (unbiased).

    A single value is formatted alone, and values among which there is a NaN as a dash.
    """
    if any(map(math.isnan, values)):
        return "–"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def metric_cells(measured: Sequence[Mapping[str, float]]) -> list[str]:
    """Mean and spread of each of :data:`~clq.evaluation.metrics.METRICS` over the runs of a variant."""
    return [mean_and_spread([m[name] for m in measured], 3 if name == "score-IoU" else 1) for name in METRICS]


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Formats a table in Markdown."""
    rows = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in line] for line in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"
