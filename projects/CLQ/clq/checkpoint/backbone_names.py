"""Renames the weights of a backbone from torchvision and MMDetection to Detectron2."""

import re
from collections.abc import Collection, Iterable
from typing import NamedTuple

BOTTOM_UP = "backbone.bottom_up."  # prefix of the backbone's weights in a detector with an FPN
# A weight that every ResNet and Res2Net of torchvision or MMDetection has, and one that every ShuffleNet has.
TYPICAL_KEYS = "layer1.0.conv1.weight", "stage2.0.branch1.0.weight"

# Patterns of names in torchvision or MMDetection, with layer1 to layer4 renamed to res2 to res5 -> names in Detectron2.
_BLOCK = (
    (r"(res\d\.\d+)\.conv(\d)\.(\w+)", r"\1.conv\2.\3"),
    (r"(res\d\.\d+)\.bn(\d)\.(\w+)", r"\1.conv\2.norm.\3"),
)
_RESNET = (
    *_BLOCK,
    (r"conv1\.(\w+)", r"stem.conv1.\1"),
    (r"bn1\.(\w+)", r"stem.conv1.norm.\1"),
    (r"(res\d\.\d+)\.conv2\.conv_offset\.(\w+)", r"\1.conv2_offset.\2"),
    (r"(res\d\.\d+)\.downsample\.0\.(\w+)", r"\1.shortcut.\2"),
    (r"(res\d\.\d+)\.downsample\.1\.(\w+)", r"\1.shortcut.norm.\2"),
)
_RES2NET = (
    *_BLOCK,
    *((rf"stem\.{3 * i}\.(\w+)", rf"stem.conv{i + 1}.\1") for i in range(3)),
    *((rf"stem\.{3 * i + 1}\.(\w+)", rf"stem.conv{i + 1}.norm.\1") for i in range(3)),
    (r"(res\d\.\d+)\.convs\.(\d)\.(\w+)", r"\1.conv2.\2.\3"),
    (r"(res\d\.\d+)\.bns\.(\d)\.(\w+)", r"\1.conv2.\2.norm.\3"),
    (r"(res\d\.\d+)\.convs\.(\d)\.conv_offset\.(\w+)", r"\1.conv2_offset.\2.\3"),
    (r"(res\d\.\d+)\.downsample\.1\.(\w+)", r"\1.shortcut.\2"),  # downsample.0 is the average pooling
    (r"(res\d\.\d+)\.downsample\.2\.(\w+)", r"\1.shortcut.norm.\2"),
)
_SHUFFLENET = ((r"((?:conv1\.\d|stage\d)\..+)", r"\1"),)  # Detectron2's modules have torchvision's names


class BackboneNames(NamedTuple):
    """How the weights of a backbone are called in Detectron2.

    Attributes:
        names: name in a detector for each key that has one.
        unknown: keys of weights that no known backbone has.
    """

    names: dict[str, str]
    unknown: list[str]


def backbone_names(keys: Collection[str]) -> BackboneNames:
    """Finds Detectron2's names for the weights of a whole ResNet, Res2Net or ShuffleNet.

    The classifier (``fc``, ``conv5``) and the counters of batches, which a detector does not need, are left out.

    Args:
        keys: names of all weights in torchvision or MMDetection.
    """
    # A ResNet and a Res2Net have different layers called downsample.1, so there are two tables.
    table = _RES2NET if "layer1.0.convs.0.weight" in keys else (*_RESNET, *_SHUFFLENET)
    names: dict[str, str] = {}
    unknown: list[str] = []
    for key in keys:
        if key.startswith(("fc.", "conv5.")) or key.endswith(".num_batches_tracked"):
            continue
        if name := rename(re.sub(r"^layer(\d)", lambda m: f"res{int(m[1]) + 1}", key), table):
            names[key] = BOTTOM_UP + name
        else:
            unknown.append(key)
    return BackboneNames(names, unknown)


def rename(key: str, table: Iterable[tuple[str, str]]) -> str | None:
    """Renames a key by the first entry of a table that matches it.

    Args:
        key: name of a weight.
        table: pairs of a pattern, which must match the whole key, and its replacement.

    Returns:
        The new name, or None if no pattern matches.
    """
    for pattern, replacement in table:
        if match := re.fullmatch(pattern, key):
            return match.expand(replacement)
    return None
