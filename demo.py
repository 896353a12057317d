#!/usr/bin/env python3
"""Detect objects in images or in a video, as `clq predict` does.

demo.py --config-file output/sample/config.yaml --input photo.jpg folder "more/*.png" --output pictures
        --opts MODEL.WEIGHTS output/sample/model_final.pth
"""

import clq  # noqa: F401  (first, because it makes Detectron2 importable)
from clq.commands.predict import main
from clq.utils.cli import run_cli

if __name__ == "__main__":
    run_cli(main)
