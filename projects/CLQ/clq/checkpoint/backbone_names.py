"""Names of a body's weights: torchvision's and MMDetection's -> Detectron2's."""

import re
from collections.abc import Collection, Iterable

BODY = "backbone.bottom_up."  # in front of Detectron2's, in a detector with an FPN
# Of the bodies of the others: of all ResNets, of all ShuffleNets.
BODY_MARKS = "layer1.0.conv1.weight", "stage2.0.branch1.0.weight"

# Their names of a body's weights -> Detectron2's, after layer1 to layer4 have become res2 to res5.
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
    (r"(res\d\.\d+)\.downsample\.1\.(\w+)", r"\1.shortcut.\2"),  # 0 is the average pooling
    (r"(res\d\.\d+)\.downsample\.2\.(\w+)", r"\1.shortcut.norm.\2"),
)
_SHUFFLENET = ((r"((?:conv1\.\d|stage\d)\..+)", r"\1"),)  # torchvision's own names


def body_names(keys: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """Detectron2's names of a whole body's weights, and the keys that have none.

    The classifier (``fc``, ``conv5``) and the batch counters, which a detector has no use for, are in neither.
    """
    table = _RES2NET if "layer1.0.convs.0.weight" in keys else (*_RESNET, *_SHUFFLENET)  # downsample.1 differs
    names, unknown = {}, []
    for key in keys:
        if key.startswith(("fc.", "conv5.")) or key.endswith(".num_batches_tracked"):
            continue
        if name := rename(re.sub(r"^layer(\d)", lambda m: f"res{int(m[1]) + 1}", key), table):
            names[key] = BODY + name
        else:
            unknown.append(key)
    return names, unknown


def rename(key: str, table: Iterable[tuple[str, str]]) -> str | None:
    """The name that the first fitting (pattern, replacement) of a table makes of a key, or None."""
    for pattern, name in table:
        if re.fullmatch(pattern, key):
            return re.sub(pattern, name, key)
    return None
