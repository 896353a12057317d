#!/usr/bin/env python3
"""Measure what `clq predict` adds to the time of the detector alone, whether its memory grows, and how long a start takes.

tools/measure_predict.py speed --config-file output/sample --input folder        (images of one size measure best)
tools/measure_predict.py start --config-file output/sample --input photo.jpg

`speed` predicts the images twice at a time, in turns of 50: by the detector alone, whose inputs are ready in memory, and
from files to a line of json each. `start` compares new processes, in turns: importing torch, torchvision and Detectron2,
and `clq.load` with a first detection, of which the first call of the model is a part.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import clq
import torch
from clq.commands import predict
from clq.data.images import read_image
from clq.inference.files import find_images
from clq.inference.pipeline import Options, Source, predict_all
from clq.inference.json_output import open_json
from clq.utils.cli import positive, run_cli

_TURN = 50
_IMPORTS = """
import time; start = time.perf_counter()
import PIL.Image
for name in ("LINEAR",): setattr(PIL.Image, name, PIL.Image.BILINEAR)
import torch, torchvision, detectron2.modeling, detectron2.data, detectron2.checkpoint
print(time.perf_counter() - start)
"""
_LOAD = """
import sys, time; start = time.perf_counter()
import clq
import torch
def timed(model, inputs, call):
    global first
    begin = time.perf_counter(); out = call(inputs); first = time.perf_counter() - begin
    return out
predictor = clq.load(sys.argv[1], opts=sys.argv[3:])
call = predictor.model.forward
predictor.model.forward = lambda inputs: timed(predictor.model, inputs, call)
predictor(sys.argv[2])
print(time.perf_counter() - start, first)
"""
