"""Small detectors of this project, to load weights into."""

from pathlib import Path

import clq
from detectron2.modeling import build_model

CONFIG = str(Path(__file__).parents[2] / "configs/CLQ/clq_R_50_FPN_1x.yaml")
R18 = ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]


def tiny_model(*opts, classes=3, body=R18):
    c = "MODEL.CLQ."
    small = [c + "CONV_DIM", 32, c + "NUM_CONVS", 1, c + "NUM_CLASSES", classes, "MODEL.FPN.OUT_CHANNELS", 32]
    cfg = clq.setup_cfg(CONFIG, [*body, *small, "DATASETS.TRAIN", [], "MODEL.DEVICE", "cpu", *opts])
    return build_model(cfg).eval()
