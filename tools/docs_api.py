"""The pages of the site that describe the Python API; tools/docs_site.py adds them, mkdocstrings fills them."""

from collections.abc import Iterator
from typing import NamedTuple


class ApiPage(NamedTuple):
    """A page of the reference.

    Attributes:
        title: heading of the page.
        text: what it is about.
        names: dotted names of what it describes, each a module, or an object with the name that users import.
    """

    title: str
    text: str
    names: tuple[str, ...]


PAGES = {
    "api/clq.md": ApiPage(
        "The package clq",
        "These names are stable. `import clq` offers all of them, and registers the meta-architectures and backbones "
        "with Detectron2.",
        (
            *(f"clq.{name}" for name in ("load", "setup_cfg", "add_clq_config", "UserError", "CLQ", "FCOS")),
            *(f"clq.{name}" for name in ("match_atss", "joint_score", "LogScore", "DeltaCoder", "DistributionCoder")),
            *(f"clq.{name}" for name in ("quality_focal_loss", "distribution_focal_loss", "convert_mmdet")),
            *(f"clq.build_{name}_backbone" for name in ("dense_resnet_fpn", "shufflenet_pan")),
            "clq.configs",
        ),
    ),
    "api/inference.md": ApiPage(
        "Predictors and results",
        "What `clq.load` returns, and what that returns for an image.",
        ("clq.inference.predictor", "clq.inference.results"),
    ),
    "api/structures.md": ApiPage(
        "Tensors between the parts",
        "What a head gives, what a location learns, and how its score is formed.",
        ("clq.modeling.structures", "clq.modeling.scoring"),
    ),
    "api/assigners.md": ApiPage(
        "Assigners",
        "An assigner decides which ground truth each location is trained towards.",
        tuple(f"clq.modeling.assign.{name}" for name in ("base", "atss", "max_iou", "simota", "task_aligned")),
    ),
    "api/boxes.md": ApiPage(
        "Box codings", "A box coder turns what the head predicts into boxes.", ("clq.modeling.box_coding",)
    ),
    "api/head.md": ApiPage(
        "Head",
        "The head of all detectors, and the parts that fill its slots.",
        tuple(
            f"clq.modeling.head.{name}"
            for name in ("dense_head", "towers", "quality", "feature_alignment", "refinement")
        ),
    ),
    "api/losses.md": ApiPage(
        "Losses",
        "The loss of all detectors, and the functions it is made of.",
        ("clq.modeling.criterion", "clq.modeling.losses"),
    ),
    "api/builders.md": ApiPage(
        "Builders and selection",
        "How the parts are chosen by a config, and how detections are selected.",
        ("clq.modeling.build", "clq.modeling.postprocess"),
    ),
    "api/backbones.md": ApiPage(
        "Backbones",
        "The backbones besides Detectron2's own.",
        tuple(f"clq.modeling.backbone.{name}" for name in ("dense_fpn", "shufflenet_pan", "res2net", "deform_conv")),
    ),
    "api/training.md": ApiPage(
        "Training and data",
        "The trainer, its hooks, the loader and the mapper, for those who derive from them.",
        ("clq.engine.trainer", "clq.engine.hooks", "clq.data.loader", "clq.data.mapper", "clq.data.datasets"),
    ),
    "api/evaluation.md": ApiPage(
        "Evaluation",
        "Metrics besides COCO's.",
        ("clq.evaluation.metrics", "clq.evaluation.calibration"),
    ),
}


def markdown(page: ApiPage) -> str:
    """The text of a page, with a directive of mkdocstrings for each name."""
    return "\n".join([f"# {page.title}", "", page.text, "", *_directives(page.names)])


def _directives(names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        yield from (f"::: {_source(name)}", "    options:", f"      heading: {name}", f"      toc_label: {name}", "")


def _source(name: str) -> str:
    """Where a name can be found without executing the package, which imports clq/library.py as the last step."""
    return name if name.count(".") > 1 or name == "clq.configs" else name.replace("clq.", "clq.library.")
