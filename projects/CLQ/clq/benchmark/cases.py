"""What :mod:`clq.benchmark.models` times: inference and training step of a config, on generated images."""

import copy
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils.events import EventStorage
from torch import nn

from clq.benchmark.profiling import (
    StageMeter,
    inference_places,
    seconds_by_stage,
    synchronized_clock,
    training_places,
)
from clq.benchmark.synthetic import make_candidates, random_image
from clq.config import setup_cfg
from clq.data.datasets import fill_num_classes
from clq.engine.config_checks import check_model
from clq.engine.trainer import Trainer
from clq.errors import UserError
from clq.experiments.ablation import split_variant
from clq.modeling.optimize.fold_bn import optimize_for_inference

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NUM_CANDIDATES = 2000  # class scores above the threshold where selection is timed by itself


@dataclass(frozen=True)
class Conditions:
    """What is the same for all rows.

    Attributes:
        size: (H, W) of each image in pixels.
        batch: images of the larger batch and of a training step.
        device: of the models.
        dtype: of autocast, one of :data:`DTYPES`; float32 is without.
        train: whether training steps are measured too.
    """

    size: tuple[int, int]
    batch: int
    device: torch.device
    dtype: str
    train: bool

    def autocast(self) -> torch.autocast:
        dtype = DTYPES[self.dtype]
        # A dtype that autocast does not take is not given to it, even where it is off.
        return torch.autocast(self.device.type, None if dtype == torch.float32 else dtype, dtype != torch.float32)


@dataclass(frozen=True)
class Variant:
    """One column of the table.

    Attributes:
        name: as the table shows it.
        config_file, opts: of its config.
        as_built: inference is not made fast (norms folded, channels last) as demo.py does: Detectron2's own way.
    """

    name: str
    config_file: str
    opts: tuple[str, ...]
    as_built: bool = False

    def config(self, device: torch.device) -> CfgNode:
        """Its config on a device, without weights, and with a learning rate of 0: all steps do the same work.

        Raises:
            UserError: a mistake in it, or a type of its own to detect in.
        """
        own = ["MODEL.DEVICE", str(device), "MODEL.WEIGHTS", "", "SOLVER.BASE_LR", 0.0]
        cfg = setup_cfg(self.config_file, [*self.opts, *own])
        check_model(cfg)
        if cfg.TEST.AMP.ENABLED:
            raise UserError(f"row {self.name}: TEST.AMP.ENABLED is not read here; --dtype says it for all rows.")
        fill_num_classes(cfg)
        return cfg


def parse_rows(texts: list[str], opts: list[str], as_built: list[str]) -> list[Variant]:
    """Rows from ``[NAME=]CONFIG.yaml [KEY VALUE ...]`` each, overrides for all, and names of those to run as built.

    Raises:
        UserError: one without a config, two of the same name, or a name of none.
    """
    rows = {}
    for text in texts:
        name, config_file, own = split_variant(text)
        if config_file is None:
            raise UserError(f"--rows {text!r}: has no config; write [NAME=]CONFIG.yaml [KEY VALUE ...].")
        if name in rows:
            raise UserError(f"--rows: two are called {name}; give each a NAME= of its own.")
        rows[name] = Variant(name, config_file, (*own, *opts), name in as_built)
    if unknown := set(as_built) - set(rows):
        raise UserError(f"--as-built {', '.join(sorted(unknown))}: no row of that name; there are {', '.join(rows)}.")
    return list(rows.values())


def find_device(name: str) -> torch.device:
    """A device of this machine.

    Raises:
        UserError: there is no such device, or not here.
    """
    found = setup_cfg(None, ["MODEL.DEVICE", name]).MODEL.DEVICE  # knows devices; moves a GPU that is not here
    device = torch.device(name)
    if found != name or (device.type == "mps" and not torch.backends.mps.is_available()):
        raise UserError(f"--device {name}: there is none on this machine; use cpu.")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"--device {name}: use cpu, cuda or mps.")
    return device


def build_for_inference(cfg: CfgNode, as_built: bool) -> nn.Module:
    """A row's model as :class:`~clq.inference.predictor.Predictor` runs it, or just as it is built; random weights."""
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    return model if as_built else optimize_for_inference(model)


class InferenceCase:
    """A row's model with random weights, and what is timed of its inference.

    From uint8 images on the CPU, resized already, to boxes on the device.
    """

    def __init__(self, cfg: CfgNode, conditions: Conditions, as_built: bool = False):
        self.conditions = conditions
        self.model = build_for_inference(cfg, as_built)
        self.images = [random_image(*conditions.size) for _ in range(conditions.batch)]
        self.crowd = self._prepare_crowd() if isinstance(self.model, DenseDetector) else None

    @torch.no_grad()
    def sample(self) -> dict[str, float]:
        """Seconds of one image, of each of its stages, of the larger batch, and of selection among many candidates.

        ``latency`` is without the clocks inside, which wait for the device at every stage; ``crowded`` is of
        :data:`NUM_CANDIDATES` candidates, since random weights give hardly any.
        """
        device = self.conditions.device
        with self.conditions.autocast():
            seconds = {
                "latency": _seconds(lambda: self.model(self.images[:1]), device),
                **seconds_by_stage(lambda _: self.model(self.images[:1]), inference_places(self.model), device),
                "batch": _seconds(lambda: self.model(self.images), device),
            }
            if self.crowd is not None:
                crowd = copy.deepcopy(self.crowd)  # RetinaNet takes the sigmoid in place
                seconds["crowded"] = _seconds(lambda: self.model.forward_inference(*crowd), device)
        return seconds

    @torch.no_grad()
    def _prepare_crowd(self):
        """Arguments of the model's selection for one image, with many candidates."""
        with self.conditions.autocast():
            images = self.model.preprocess_image(self.images[:1])
            features = self.model.backbone(images.tensor)
            features = [features[f] for f in self.model.head_in_features]
            predictions = self.model.head(features)
        cls_logits, _, *quality_logits = predictions
        torch.manual_seed(0)  # the same places in all rows of as many classes and anchors
        make_candidates(cls_logits, NUM_CANDIDATES)
        for level in quality_logits[0] if quality_logits else []:
            level.fill_(2.0)
        return images, features, predictions


class TrainingCase:
    """A row's model and optimizer as the trainer makes them, and what is timed of a step."""

    def __init__(self, cfg: CfgNode, conditions: Conditions):
        self.conditions = conditions
        torch.manual_seed(0)
        self.model = Trainer.build_model(cfg).train()
        self.optimizer = Trainer.build_optimizer(cfg, self.model)
        # Without a scale that is too large at first: such steps are skipped.
        self.scaler = torch.amp.GradScaler(conditions.device.type, 1.0, enabled=conditions.dtype == "fp16")
        self.images = [random_image(*conditions.size) for _ in range(conditions.batch)]

    def sample(self) -> dict[str, float]:
        """Seconds of a step, without clocks inside, and of each stage of another."""
        device = self.conditions.device
        return {
            "step": _seconds(lambda: self.step(StageMeter(float)), device),
            **seconds_by_stage(self.step, training_places(self.model), device),
        }

    def step(self, meter: StageMeter) -> None:
        """One step of training."""
        self.optimizer.zero_grad()
        with EventStorage(), self.conditions.autocast():
            loss = sum(self.model(self.images).values())
        with meter.stage("backward"):
            self.scaler.scale(loss).backward()
        with meter.stage("optimizer"):
            self.scaler.step(self.optimizer)
            self.scaler.update()


class ProductCase:
    """A large matrix product in the same dtype, whose rate stands for the peak of the machine as it is just now."""

    def __init__(self, conditions: Conditions):
        self.device = conditions.device
        side = 2048 if self.device.type == "cpu" else 8192
        self.multiply_adds = side**3
        self.factors = torch.rand(2, side, side, device=self.device, dtype=DTYPES[conditions.dtype])

    def sample(self) -> dict[str, float]:
        """Seconds."""
        matmul = torch.backends.cuda.matmul
        before, matmul.allow_tf32 = matmul.allow_tf32, torch.backends.cudnn.allow_tf32  # as convolutions have it
        try:
            return {"product": _seconds(lambda: torch.mm(*self.factors), self.device)}
        finally:
            matmul.allow_tf32 = before


def _seconds(call, device: torch.device) -> float:
    clock = synchronized_clock(device)
    start = clock()
    call()
    return clock() - start
