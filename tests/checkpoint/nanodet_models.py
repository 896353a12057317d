"""Random weights with the names and shapes of NanoDet-m, and the outputs of its authors' network for them."""

import torch
import torchvision
from mmdet_models import random_weights
from torch import nn
from torch.nn import functional as F

CLASSES, BINS = 5, 8


def _norm(name, channels):
    statistics = {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}
    return {**statistics, f"{name}.num_batches_tracked": ()}


def backbone(name, device="meta"):
    """torchvision's ShuffleNetV2 with the activation of NanoDet's authors and without the classifier."""
    with torch.device(device):
        network = torchvision.models.get_model(name, weights=None)
    del network.conv5, network.fc
    for module in list(network.modules()):
        for child, layer in module.named_children():
            if isinstance(layer, nn.ReLU):
                setattr(module, child, nn.LeakyReLU(0.1))
    return network.eval()


def nanodet_shapes(name="shufflenet_v2_x0_5", width=16, convs=2, classes=CLASSES, bins=BINS):
    """A whole detector. ``width`` is that of neck and head; ``convs`` counts the convolutions of each level's head."""
    network = backbone(name)
    shapes = {f"backbone.{key}": tuple(value.shape) for key, value in network.state_dict().items()}
    shapes["head.distribution_project.project"] = (bins,)
    for level in range(3):
        inputs = 2 * shapes[f"backbone.stage{level + 2}.0.branch2.5.weight"][0]  # both halves
        lateral = f"fpn.lateral_convs.{level}.conv."
        shapes |= {f"{lateral}weight": (width, inputs, 1, 1), f"{lateral}bias": (width,)}
        for i in range(convs):
            conv = f"head.cls_convs.{level}.{i}."
            shapes |= {f"{conv}depthwise.weight": (width, 1, 3, 3), f"{conv}pointwise.weight": (width, width, 1, 1)}
            shapes |= {**_norm(f"{conv}dwnorm", width), **_norm(f"{conv}pwnorm", width)}
        for layer, channels in {"cls": classes + 4 * bins, "reg": 4 * bins}.items():
            predictor = f"head.gfl_{layer}.{level}."
            shapes |= {f"{predictor}weight": (channels, width, 1, 1), f"{predictor}bias": (channels,)}
    return shapes


def nanodet_weights(**sizes):
    """Random weights; the counters of batches are whole numbers."""
    weights = random_weights(nanodet_shapes(**sizes))
    counters = {key: torch.tensor(7) for key in weights if key.endswith("num_batches_tracked")}
    return {**weights, **counters}


def nanodet_outputs(weights, images, name="shufflenet_v2_x0_5", convs=2):
    """The outputs of the authors' network: class and box logits of each level in one tensor."""
    network, levels, outputs = backbone(name, "cpu"), [], []
    network.load_state_dict({k.removeprefix("backbone."): v for k, v in weights.items() if k.startswith("backbone.")})
    x = network.maxpool(network.conv1(images))
    for level, stage in enumerate((network.stage2, network.stage3, network.stage4)):
        x, lateral = stage(x), f"fpn.lateral_convs.{level}.conv."
        levels.append(F.conv2d(x, weights[f"{lateral}weight"], weights[f"{lateral}bias"]))
    for i in (1, 0):
        levels[i] = levels[i] + F.interpolate(levels[i + 1], scale_factor=2.0, mode="bilinear")
    for i in (1, 2):
        levels[i] = levels[i] + F.avg_pool2d(levels[i - 1], 2)

    def norm(name, x):
        parts = (weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.leaky_relu(F.batch_norm(x, *parts), 0.1)

    for level, x in enumerate(levels):
        for i in range(convs):
            conv = f"head.cls_convs.{level}.{i}."
            depthwise = weights[f"{conv}depthwise.weight"]
            x = norm(f"{conv}dwnorm", F.conv2d(x, depthwise, padding=1, groups=len(depthwise)))
            x = norm(f"{conv}pwnorm", F.conv2d(x, weights[f"{conv}pointwise.weight"]))
        predictor = f"head.gfl_cls.{level}."
        outputs.append(F.conv2d(x, weights[f"{predictor}weight"], weights[f"{predictor}bias"]))
    return outputs
