"""What :mod:`clq.benchmark.models` times: the inference and the training step of a config, on generated images."""

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils.events import EventStorage
from torch import nn

from clq.benchmark.conditions import DTYPES, Conditions
from clq.benchmark.profiling import (
    StageMeter,
    inference_functions,
    seconds_by_stage,
    synchronized_clock,
    training_functions,
)
from clq.benchmark.synthetic import make_candidates, random_image
from clq.engine.trainer import Trainer
from clq.modeling.optimize.fold_bn import optimize_for_inference

NUM_CANDIDATES = 2000  # number of class scores above the threshold when the selection of detections is timed alone


def build_for_inference(cfg: CfgNode, as_built: bool) -> nn.Module:
    """Builds a variant's model with random weights for inference.

    Args:
        cfg: config of the variant.
        as_built: whether the model stays as Detectron2 builds it; otherwise it is optimized as
            :class:`~clq.inference.predictor.Predictor` does.
    """
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    return model if as_built else optimize_for_inference(model)


class InferenceCase:
    """Times the inference of a variant, from resized uint8 images on the CPU to boxes on the device.

    Args:
        cfg: config of the variant.
        conditions: conditions of the measurement.
        as_built: whether the model stays as Detectron2 builds it.
    """

    def __init__(self, cfg: CfgNode, conditions: Conditions, as_built: bool = False):
        self.conditions = conditions
        self.model = build_for_inference(cfg, as_built)
        self.images = [random_image(*conditions.size) for _ in range(conditions.batch)]
        self.crowd = self._prepare_crowd(self.model) if isinstance(self.model, DenseDetector) else None

    @torch.no_grad()
    def sample(self) -> dict[str, float]:
        """Measures once, in seconds.

        Returns:
            The time of one image (``latency``), of each of its stages, of the larger batch (``batch``), and of the
            selection of detections among :data:`NUM_CANDIDATES` candidates (``crowded``), because random weights give
            hardly any candidates. The latency comes from a call without clocks at the stages, because each of them is
            a host-device synchronization.
        """
        device = self.conditions.device
        with self.conditions.autocast():
            seconds = {
                "latency": _seconds(lambda: self.model(self.images[:1]), device),
                **seconds_by_stage(lambda _: self.model(self.images[:1]), inference_functions(self.model), device),
                "batch": _seconds(lambda: self.model(self.images), device),
            }
            if self.crowd is not None:
                select = cast(DenseDetector, self.model).forward_inference
                crowd = copy.deepcopy(self.crowd)  # RetinaNet computes the sigmoid in place
                seconds["crowded"] = _seconds(lambda: select(*crowd), device)
        return seconds

    @torch.no_grad()
    def _prepare_crowd(self, model: DenseDetector) -> tuple[Any, ...]:
        """Arguments of ``model.forward_inference`` for one image with many candidates."""
        with self.conditions.autocast():
            images = model.preprocess_image(self.images[:1])
            features = model.backbone(images.tensor)
            features = [features[f] for f in model.head_in_features]
            predictions = model.head(features)
        cls_logits, _, *quality_logits = predictions
        torch.manual_seed(0)  # the same locations in all variants that have as many classes and anchors
        make_candidates(cls_logits, NUM_CANDIDATES)
        for level in quality_logits[0] if quality_logits else []:
            level.fill_(2.0)
        return images, features, predictions


class TrainingCase:
    """Times training steps of a variant, with its model and optimizer as the trainer makes them.

    Args:
        cfg: config of the variant.
        conditions: conditions of the measurement.
    """

    def __init__(self, cfg: CfgNode, conditions: Conditions):
        self.conditions = conditions
        torch.manual_seed(0)
        self.model = Trainer.build_model(cfg).train()
        self.optimizer = Trainer.build_optimizer(cfg, self.model)
        # The scaler starts at 1, because it would skip the steps in which a larger scale overflows.
        self.scaler = torch.amp.GradScaler(conditions.device.type, 1.0, enabled=conditions.dtype == "fp16")
        self.images = [random_image(*conditions.size) for _ in range(conditions.batch)]

    def sample(self) -> dict[str, float]:
        """Measures once, in seconds: a step without clocks at its stages (``step``), and each stage of another step."""
        device = self.conditions.device
        return {
            "step": _seconds(lambda: self.step(StageMeter(float)), device),
            **seconds_by_stage(self.step, training_functions(self.model), device),
        }

    def step(self, meter: StageMeter) -> None:
        """Runs one training step, with the backward pass and the optimizer as stages of the meter."""
        self.optimizer.zero_grad()
        with EventStorage(), self.conditions.autocast():
            loss = sum(self.model(self.images).values())
        with meter.stage("backward"):
            self.scaler.scale(loss).backward()
        with meter.stage("optimizer"):
            self.scaler.step(self.optimizer)
            self.scaler.update()


class ProductCase:
    """Times a large matrix product in the same dtype, whose rate stands for the peak of the machine at that time.

    Args:
        conditions: conditions of the measurement.
    """

    def __init__(self, conditions: Conditions):
        self.device = conditions.device
        side = 2048 if self.device.type == "cpu" else 8192
        self.multiply_adds = side**3
        self.factors = torch.rand(2, side, side, device=self.device, dtype=DTYPES[conditions.dtype])

    def sample(self) -> dict[str, float]:
        """Measures once, in seconds."""
        matmul = torch.backends.cuda.matmul
        before, matmul.allow_tf32 = matmul.allow_tf32, torch.backends.cudnn.allow_tf32  # like convolutions
        try:
            return {"product": _seconds(lambda: torch.mm(*self.factors), self.device)}
        finally:
            matmul.allow_tf32 = before


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    clock = synchronized_clock(device)
    start = clock()
    call()
    return clock() - start
