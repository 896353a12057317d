#!/usr/bin/env python3
"""Detect objects in image files; the same as `clq predict`.

demo.py --config-file output/sample/config.yaml --input photo.jpg --output pictures \
    --opts MODEL.WEIGHTS output/sample/model_final.pth
"""

import clq  # noqa: F401  (first: it lets Detectron2 import)
from clq.commands.predict import main
from clq.utils.cli import run_cli

if __name__ == "__main__":
    run_cli(main)
