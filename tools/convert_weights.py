#!/usr/bin/env python3
"""Translate a detector's weights from another code base, for MODEL.WEIGHTS of train_net.py and demo.py.

    tools/convert_weights.py mmdet atss_r50_fpn_1x_coco.pth atss.pth
    tools/convert_weights.py nanodet nanodet_m.ckpt nanodet.pth

mmdet: ATSS, GFL, GFLv2, VFNet, TOOD and CLQ of MMDetection (2.x, 3.x, GFLv2's and CLQ's own repositories), on a
ResNet, ResNeXt or Res2Net, deformable or not. What no weight shows is compared with the config that MMDetection keeps
in its checkpoints: a setting that this project cannot have is an error, one of the test (score and NMS thresholds,
numbers of boxes, image size) goes into the printed command. AP can differ in the last digits: Detectron2 shrinks images
with Pillow, which averages over what it leaves out, MMDetection with OpenCV, which does not.

nanodet: NanoDet-m of its authors, on any width of ShuffleNetV2, as .pth or as Lightning's .ckpt; averaged weights are
taken where there are some. Not NanoDet-Plus. The weights do not tell the size of its images: two commands are printed.

Both print the command that evaluates the result.
"""

import argparse
import os
import shlex

import torch
from clq.checkpoint.mmdet import convert_checkpoint
from clq.checkpoint.nanodet import convert_nanodet_checkpoint
from clq.errors import UserError
from clq.utils.cli import run_cli

SOURCES = {"mmdet": convert_checkpoint, "nanodet": convert_nanodet_checkpoint}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", choices=list(SOURCES), help="where the weights come from")
    parser.add_argument("input", help="checkpoint to read")
    parser.add_argument("output", help="file to write; must not exist")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    if os.path.exists(args.output):
        raise UserError(f"{args.output}: exists already; choose another name.")
    weights, configs, keys = SOURCES[args.source](args.input)
    try:
        torch.save({"model": weights}, args.output)
    except (OSError, RuntimeError) as e:  # torch's own for a folder that is not there
        raise UserError(f"{args.output}: cannot be written ({' '.join(str(e).split())}); choose another.") from e
    classes = next(len(value) for name, value in weights.items() if name.endswith("cls_logits.bias"))
    print(f"{args.output}: {len(weights)} weights, {classes} classes")
    if len(configs) > 1:
        print("# The weights do not tell which of these configs it was trained with; choose by the size of its images.")
    for config in configs:
        words = ["--config-file", config, "--eval-only", "MODEL.WEIGHTS", args.output]
        for key, value in keys.items():
            words += [key, str(value)]
        print("python train_net.py " + shlex.join(words))


if __name__ == "__main__":
    run_cli(main)
