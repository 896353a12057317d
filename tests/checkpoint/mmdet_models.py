"""Random weights with the names and shapes of MMDetection's models, and models of this project for them."""

from math import prod
from pathlib import Path

import clq
import torch
import torchvision
from clq.modeling.head.dense_head import DenseHead
from clq.modeling.head.towers import Layers, separate_towers
from detectron2.modeling import build_model

CONFIGS = Path(__file__).parents[2] / "configs"
WIDTH, DEPTH, CLASSES = 32, 2, 7  # channels of neck and head, convolutions of a tower
R18 = ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]


def random_weights(shapes):
    """Values that keep features bounded; no two tensors are equal."""
    weights = {}
    for key, shape in shapes.items():
        if len(shape) == 4:
            weights[key] = torch.randn(shape) / prod(shape[1:]) ** 0.5
        elif key.endswith(("weight", "_var", "scale")):
            weights[key] = torch.rand(shape) + 0.5
        else:
            weights[key] = torch.randn(shape) * 0.2
    return weights


def zero_weights(shapes):
    """Zeros that take the memory of one number each, whatever their shapes."""
    return {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}


def _norm(name, channels):
    statistics = {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}
    return {**statistics, f"{name}.num_batches_tracked": ()}


def _offsets(name, inputs, channels):
    name += ".conv_offset"
    return {f"{name}.weight": (channels, inputs, 3, 3), f"{name}.bias": (channels,)} if channels else {}


def resnet_shapes(num_blocks=(3, 4, 6, 3), stem=8, res2=16, width=4, groups=1, offset_channels=(0, 0, 0, 0)):
    """A ResNet or ResNeXt of bottlenecks; ``offset_channels`` counts the offset channels of each stage."""
    shapes, channels = {"conv1.weight": (stem, 3, 7, 7), **_norm("bn1", stem)}, stem
    for stage, blocks in enumerate(num_blocks):
        inner, outer = groups * width * 2**stage, res2 * 2**stage
        for j in range(blocks):
            block = f"layer{stage + 1}.{j}."
            shapes |= {block + "conv1.weight": (inner, channels, 1, 1), **_norm(block + "bn1", inner)}
            shapes |= {block + "conv2.weight": (inner, inner // groups, 3, 3), **_norm(block + "bn2", inner)}
            shapes |= _offsets(block + "conv2", inner, offset_channels[stage])
            shapes |= {block + "conv3.weight": (outer, inner, 1, 1), **_norm(block + "bn3", outer)}
            if j == 0:
                shapes |= {block + "downsample.0.weight": (outer, channels, 1, 1)}
                shapes |= _norm(block + "downsample.1", outer)
            channels = outer
    return shapes


def res2net_shapes(num_blocks=(3, 4, 6, 3), stem=8, res2=16, width=3, scales=4, offset_channels=(0, 0, 0, 0)):
    """A Res2Net in its v1d form."""
    shapes, channels = {}, 3
    for i, outputs in enumerate((stem // 2, stem // 2, stem)):
        shapes |= {f"stem.{3 * i}.weight": (outputs, channels, 3, 3), **_norm(f"stem.{3 * i + 1}", outputs)}
        channels = outputs
    for stage, blocks in enumerate(num_blocks):
        w, outer = width * 2**stage, res2 * 2**stage
        for j in range(blocks):
            block = f"layer{stage + 1}.{j}."
            shapes |= {block + "conv1.weight": (w * scales, channels, 1, 1), **_norm(block + "bn1", w * scales)}
            for k in range(scales - 1):
                shapes |= {f"{block}convs.{k}.weight": (w, w, 3, 3), **_norm(f"{block}bns.{k}", w)}
                shapes |= _offsets(f"{block}convs.{k}", w, offset_channels[stage])
            shapes |= {block + "conv3.weight": (outer, w * scales, 1, 1), **_norm(block + "bn3", outer)}
            if j == 0:  # downsample.0 is the average pooling
                shapes |= {block + "downsample.1.weight": (outer, channels, 1, 1)}
                shapes |= _norm(block + "downsample.2", outer)
            channels = outer
    return shapes


def resnet18_shapes():
    """A ResNet-18 of full width, for which MMDetection has the names of torchvision."""
    with torch.device("meta"):
        weights = torchvision.models.resnet18().state_dict()
    return {key: value.shape for key, value in weights.items() if not key.startswith("fc.")}


def head_shapes(name="atss", box_channels=4, classes=CLASSES, quality=False):
    """Stacked convolutions with GN, predictors, and one scalar scale per level; with ``quality``, GFLv2's branch."""
    shapes = {f"scales.{i}.scale": () for i in range(5)}
    for tower in ("cls_convs", "reg_convs"):
        for i in range(DEPTH):
            shapes[f"{tower}.{i}.conv.weight"] = (WIDTH, WIDTH, 3, 3)
            shapes[f"{tower}.{i}.gn.weight"] = shapes[f"{tower}.{i}.gn.bias"] = (WIDTH,)
    layers = {f"{name}_cls": (classes, WIDTH, 3, 3), f"{name}_reg": (box_channels, WIDTH, 3, 3)}
    if name == "atss":
        layers["atss_centerness"] = (1, WIDTH, 3, 3)
    if quality:
        layers |= {"reg_conf.0": (64, 20, 1, 1), "reg_conf.2": (1, 64, 1, 1)}
    for layer, shape in layers.items():
        shapes[f"{layer}.weight"], shapes[f"{layer}.bias"] = shape, shape[:1]
    return shapes


def gfl_head(classes=CLASSES, quality=True):
    return {**random_weights(head_shapes("gfl", 4 * 17, classes, quality)), "integral.project": torch.arange(17.0)}


def clq_head(classes=CLASSES, align=True):
    """The head of CLQ's authors: that of GFL with a predicted IoU and an alignment by four groups of offsets."""
    shapes = head_shapes("clq", 4 * 17, classes)
    shapes |= {"retina_iou.weight": (1, WIDTH, 3, 3), "retina_iou.bias": (1,)}
    if align:
        shapes["feature_alignment.conv_offset.weight"] = (72, 4, 1, 1)
        shapes["feature_alignment.conv_adaption.weight"] = (WIDTH, WIDTH, 3, 3)
    return {**random_weights(shapes), "integral.project": torch.arange(17.0)}


def vfnet_head(classes=CLASSES):
    shapes = head_shapes("vfnet", classes=classes)
    for name in ("vfnet_reg_conv.conv", "vfnet_reg_refine_dconv", "vfnet_cls_dconv"):
        shapes[f"{name}.weight"] = (WIDTH, WIDTH, 3, 3)
    shapes["vfnet_reg_conv.gn.weight"] = shapes["vfnet_reg_conv.gn.bias"] = (WIDTH,)
    shapes["vfnet_reg_refine.weight"], shapes["vfnet_reg_refine.bias"] = (4, WIDTH, 3, 3), (4,)
    return random_weights({**shapes, **{f"scales_refine.{i}.scale": () for i in range(5)}})


def tood_head(classes=CLASSES):
    shapes = {f"scales.{i}.scale": () for i in range(5)}
    layers = {"tood_cls": (classes, WIDTH, 3, 3), "tood_reg": (4, WIDTH, 3, 3)}
    layers |= {"cls_prob_module.0": (WIDTH // 4, DEPTH * WIDTH, 1, 1), "cls_prob_module.2": (1, WIDTH // 4, 3, 3)}
    layers |= {"reg_offset_module.0": (WIDTH // 4, DEPTH * WIDTH, 1, 1), "reg_offset_module.2": (8, WIDTH // 4, 3, 3)}
    normalised = {f"inter_convs.{i}": (WIDTH, WIDTH, 3, 3) for i in range(DEPTH)}
    for task in ("cls_decomp", "reg_decomp"):
        layers[f"{task}.layer_attention.0"] = (WIDTH // 8, DEPTH * WIDTH, 1, 1)
        layers[f"{task}.layer_attention.2"] = (DEPTH, WIDTH // 8, 1, 1)
        normalised[f"{task}.reduction_conv"] = (WIDTH, DEPTH * WIDTH, 1, 1)
    for layer, shape in layers.items():
        shapes[f"{layer}.weight"], shapes[f"{layer}.bias"] = shape, shape[:1]
    for layer, shape in normalised.items():
        shapes[f"{layer}.conv.weight"] = shape
        shapes[f"{layer}.gn.weight"] = shapes[f"{layer}.gn.bias"] = (WIDTH,)
    return random_weights(shapes)


def detector(backbone=None, head=None, make=random_weights):
    """The weights of a whole detector; by default ATSS on a narrow ResNet-50.

    Args:
        backbone: shapes of the backbone's weights.
        head: weights of the head.
        make: function that makes the weights of the backbone and the FPN from their shapes.
    """
    backbone, neck = backbone or resnet_shapes(), {}
    for i in range(3):
        last = backbone.get(f"layer{i + 2}.0.bn3.bias") or backbone[f"layer{i + 2}.0.bn2.bias"]
        neck[f"lateral_convs.{i}.conv.weight"] = (WIDTH, last[0], 1, 1)
    neck |= {f"fpn_convs.{i}.conv.weight": (WIDTH, WIDTH, 3, 3) for i in range(5)}
    neck |= {key.replace("weight", "bias"): (WIDTH,) for key in neck}
    parts = {"backbone": make(backbone), "neck": make(neck)}
    parts["bbox_head"] = head or random_weights(head_shapes())
    return {f"{part}.{key}": value for part, weights in parts.items() for key, value in weights.items()}


def make_head(coder, towers=separate_towers, **parts):
    sizes = {"num_levels": 5, "num_classes": CLASSES}
    return DenseHead(towers=towers(WIDTH, Layers(WIDTH, DEPTH)), coder=coder, **sizes, **parts)


def build_small(config, *opts):
    """A detector with the FPN and head sizes of this module, and the backbone of the config and the overrides."""
    c = "MODEL.CLQ."
    small = [c + "CONV_DIM", WIDTH, c + "NUM_CONVS", DEPTH, c + "NUM_CLASSES", CLASSES, "DATASETS.TRAIN", []]
    small += ["MODEL.FPN.OUT_CHANNELS", WIDTH, "MODEL.DEVICE", "cpu"]
    return build_model(clq.setup_cfg(str(CONFIGS / config), [*small, *opts])).eval()


def load(model, weights):
    """Loads weights that must be exactly those of the model."""
    found = model.load_state_dict(weights, strict=True)
    assert not found.missing_keys
    assert not found.unexpected_keys
