"""Convert a detector's weights from another code base, for MODEL.WEIGHTS.

    clq convert mmdet atss_r50_fpn_1x_coco.pth atss.pth
    clq convert nanodet nanodet_m.ckpt nanodet.pth

mmdet converts ATSS, GFL, GFLv2, VFNet, TOOD and CLQ checkpoints of MMDetection (2.x, 3.x, and the repositories of
GFLv2's and CLQ's authors) with a ResNet, ResNeXt or Res2Net backbone, deformable or not. Settings that the weights do
not show are read from the config that MMDetection stores in its checkpoints. A setting that this project does not
support is an error. Settings of the test (score and NMS thresholds, numbers of boxes, image size) become part of the
printed command. The last digits of the AP can differ, because Detectron2 shrinks images with Pillow, which averages
over the pixels that it leaves out, and MMDetection with OpenCV, which does not.

nanodet converts the NanoDet-m checkpoints of its authors, with any width of ShuffleNetV2, from .pth or Lightning's
.ckpt files. It takes the averaged weights if the file has them. NanoDet-Plus is not supported. The weights do not show
the size of the images, so two commands are printed.

Both print the command that evaluates the result.
"""

import argparse
import os
import shlex
from collections.abc import Sequence

from clq.checkpoint.mmdet import convert_checkpoint
from clq.checkpoint.nanodet import convert_nanodet_checkpoint
from clq.checkpoint.storage import SAFETENSORS, save_safetensors, save_torch
from clq.errors import UserError

SOURCES = {"mmdet": convert_checkpoint, "nanodet": convert_nanodet_checkpoint}


def _parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", choices=list(SOURCES), help="code base that the weights come from")
    parser.add_argument("input", help="checkpoint to read")
    parser.add_argument("output", help="file to write, .pth or .safetensors; must not exist")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Converts a checkpoint and prints how to evaluate the result."""
    args = _parse_args(argv)
    if os.path.exists(args.output):
        raise UserError(f"{args.output}: exists already; choose another name.")
    weights, configs, keys = SOURCES[args.source](args.input)
    if args.output.endswith(SAFETENSORS):
        save_safetensors(weights, args.output)
    else:
        save_torch({"model": weights}, args.output)
    classes = next(len(value) for name, value in weights.items() if name.endswith("cls_logits.bias"))
    print(f"{args.output}: {len(weights)} weights, {classes} classes")
    if len(configs) > 1:
        print("# The weights do not show which of these configs was trained; choose it by the size of its images.")
    for config in configs:
        words = ["--config-file", config, "MODEL.WEIGHTS", args.output]
        for key, value in keys.items():
            words += [key, str(value)]
        print("clq eval " + shlex.join(words))
