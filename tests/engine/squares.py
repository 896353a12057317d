"""A small model whose losses are squares, and its training."""

import clq
import torch
from detectron2.utils.events import EventStorage
from torch import nn


class Squares(nn.Module):
    """A layer and a norm with biases; the loss is the square of its output. It records the dtype of its output."""

    def __init__(self, factor=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.norm = nn.Linear(4, 3), nn.GroupNorm(1, 3)
        self.factor = factor

    def forward(self, x):
        out = self.linear(x)
        self.dtype = out.dtype
        return {"loss_a": self.norm(out.float()).pow(2).sum() * self.factor, "loss_b": out.float().pow(2).mean()}


def config(*opts):
    return clq.setup_cfg(None, ["MODEL.DEVICE", "cpu", *opts])


def run(step, steps=1):
    with EventStorage():
        for step.iter in range(steps):
            step.run_step()


def batches():
    return [torch.full((2, 4), 0.5) + torch.eye(4)[:2]] * 100
