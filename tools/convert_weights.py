#!/usr/bin/env python3
"""Translate a detector's weights from another code base, for MODEL.WEIGHTS of train_net.py and demo.py.

    tools/convert_weights.py mmdet atss_r50_fpn_1x_coco.pth atss.pth

mmdet: MMDetection's ATSS, GFL, GFLv2, VFNet and TOOD (2.x, 3.x, GFLv2's own repository), on a ResNet, ResNeXt or
Res2Net, deformable or not. Prints the command that evaluates it. Its AP can differ in the last digits: Detectron2
shrinks images with Pillow, which averages over what it leaves out, MMDetection with OpenCV, which does not.
"""

import argparse
import os
import shlex

import torch
from clq.engine.launch import run_cli
from clq.engine.mmdet_checkpoint import convert_checkpoint
from clq.errors import UserError


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", choices=["mmdet"], help="where the weights come from")
    parser.add_argument("input", help="checkpoint to read")
    parser.add_argument("output", help="file to write; must not exist")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    if os.path.exists(args.output):
        raise UserError(f"{args.output}: exists already; choose another name.")
    weights, config, keys = convert_checkpoint(args.input)
    try:
        torch.save({"model": weights}, args.output)
    except (OSError, RuntimeError) as e:  # torch's own for a folder that is not there
        raise UserError(f"{args.output}: cannot be written ({' '.join(str(e).split())}); choose another.") from e
    print(f"{args.output}: {len(weights)} weights, {len(weights['head.cls_logits.bias'])} classes")
    words = ["--config-file", config, "--eval-only", "MODEL.WEIGHTS", args.output]
    for key, value in keys.items():
        words += [key, str(value)]
    print("train_net.py " + shlex.join(words))


if __name__ == "__main__":
    run_cli(main)
