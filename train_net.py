#!/usr/bin/env python3
"""Train a detector, resume its training, or evaluate it: the same as ``clq train``.

train_net.py --config-file configs/CLQ/clq_R_50_FPN_1x.yaml --num-gpus 8
torchrun --nproc-per-node 8 train_net.py --config-file configs/CLQ/clq_R_50_FPN_1x.yaml
train_net.py --config-file ... --resume
train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth
"""

from clq.commands.train import main
from clq.utils.cli import run_cli

if __name__ == "__main__":
    run_cli(main)
