"""What is measured, and under which conditions: variants, batch, device, dtype."""

from dataclasses import dataclass

import torch
from detectron2.config import CfgNode

from clq.config import setup_cfg
from clq.data.num_classes import fill_num_classes
from clq.engine.config_checks import check_model
from clq.errors import UserError
from clq.utils.cli import parse_variant

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """The conditions under which all variants are measured.

    Attributes:
        size: (H, W) of each image in pixels.
        batch: number of images of the larger batch and of a training step.
        device: device of the models.
        dtype: dtype of autocast, one of :data:`DTYPES`; float32 means no autocast.
        train: whether training steps are measured too.
    """

    size: tuple[int, int]
    batch: int
    device: torch.device
    dtype: str
    train: bool

    def autocast(self) -> torch.autocast:
        """The context in which the models run."""
        if self.dtype == "float32":  # a dtype that autocast refuses, even when it is disabled
            return torch.autocast(self.device.type, enabled=False)
        return torch.autocast(self.device.type, DTYPES[self.dtype])


@dataclass(frozen=True)
class BenchmarkVariant:
    """A variant to measure: one column of the table.

    Attributes:
        name: name that the table shows.
        config_file: path of the config.
        opts: overrides KEY, VALUE, ... of the config.
        as_built: whether inference runs the model as Detectron2 builds it, without the optimizations (folded norms,
            channels last) that demo.py makes.
    """

    name: str
    config_file: str
    opts: tuple[str, ...]
    as_built: bool = False

    def config(self, device: torch.device) -> CfgNode:
        """Loads the config for a device, without weights.

        Its learning rate is 0, so that all steps do the same work.

        Raises:
            UserError: the config has a mistake, or enables ``TEST.AMP``.
        """
        overrides = ["MODEL.DEVICE", str(device), "MODEL.WEIGHTS", "", "SOLVER.BASE_LR", 0.0]
        cfg = setup_cfg(self.config_file, [*self.opts, *overrides])
        check_model(cfg)
        if cfg.TEST.AMP.ENABLED:
            raise UserError(f"{self.name}: TEST.AMP.ENABLED has no effect here; set it to False and use --dtype.")
        fill_num_classes(cfg)
        return cfg


def parse_variants(texts: list[str], *, opts: list[str], as_built: list[str]) -> list[BenchmarkVariant]:
    """Parses the variants of a command line.

    Args:
        texts: ``[NAME=]CONFIG.yaml [KEY VALUE ...]`` of each variant.
        opts: overrides KEY, VALUE, ... for all variants.
        as_built: names of the variants to run as built.

    Raises:
        UserError: a variant has no config, two variants have the same name, or ``as_built`` has a name of none.
    """
    variants: dict[str, BenchmarkVariant] = {}
    for text in texts:
        parsed = parse_variant(text)
        name = parsed.name
        if parsed.config_file is None:
            raise UserError(f"--variants {text!r}: has no config; write [NAME=]CONFIG.yaml [KEY VALUE ...].")
        if name in variants:
            raise UserError(f"--variants: two variants are called {name}; give each a different NAME=.")
        variants[name] = BenchmarkVariant(name, parsed.config_file, (*parsed.opts, *opts), name in as_built)
    if unknown := set(as_built) - set(variants):
        known = ", ".join(variants)
        raise UserError(f"--as-built {', '.join(sorted(unknown))}: no variant has that name; use one of {known}.")
    return list(variants.values())


def find_device(name: str) -> torch.device:
    """Returns a device of this machine.

    Raises:
        UserError: no such device exists, or this machine has none.
    """
    available = setup_cfg(None, ["MODEL.DEVICE", name]).MODEL.DEVICE  # the CPU in place of a GPU that does not exist
    device = torch.device(name)
    if available != name or (device.type == "mps" and not torch.backends.mps.is_available()):
        raise UserError(f"--device {name}: this machine has no such device; use cpu.")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"--device {name}: use cpu, cuda or mps.")
    return device
