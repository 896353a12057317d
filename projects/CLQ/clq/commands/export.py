"""Write a detector as one file that needs neither this project nor Detectron2: from pixels to detections, with NMS.

    clq export output/sample --output sample.onnx --images photos
    clq export CLQ/clq_R_50_FPN_1x --weights clq_r50.pth --format torch-export --output clq.pt2
    clq export output/sample --output sample_int8.onnx --int8 --calibration photos

The file takes any number of images of any size. It is run and compared with the detector before it is kept: the boxes
must agree to 0.01 pixels and the scores to 0.0001. docs/export.md describes its inputs, outputs and metadata.
"""

import argparse
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

import clq
from clq.data.images import read_image
from clq.errors import UserError
from clq.export.check import check_detections, check_raw
from clq.export.formats import DEFORM_CONV_OPSET, FORMATS, OPSETS
from clq.export.graph import ALIGNMENTS, DetectorGraph
from clq.export.metadata import make_metadata
from clq.export.quantization import check_quantized, quantize
from clq.inference.files import find_images
from clq.inference.predictor import Predictor
from clq.modeling.backbone.deform_conv import TorchvisionDeformConv
from clq.modeling.meta_arch.clq import CLQ
from clq.utils.cli import positive
from clq.utils.files import write_atomically

_CALIBRATION_IMAGES = 100  # the most that --int8 uses
_SYNTHETIC_SIZES = (240, 320), (333, 250), (160, 200)  # height and width of the synthetic images


def _parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("detector", nargs="?", help="folder of a training, checkpoint, or config: what clq.load takes")
    add("--config-file", metavar="DETECTOR", help="another way to give the detector")
    add("--weights", help="file of weights, if the detector is a config")
    add("--output", required=True, type=Path, help="file to write")
    add("--format", choices=list(FORMATS), help="format of the file; default: by the ending of --output, else onnx")
    add("--raw", action="store_true", help="leave out score threshold and NMS: boxes and scores of all locations")
    add(
        "--alignment",
        choices=ALIGNMENTS,
        default="grid_sample",
        help="form of the deformable convolutions of the feature alignment: grid_sample, which every runtime has, or "
        "ONNX's DeformConv (default: %(default)s)",
    )
    add("--opset", type=int, help=f"version of ONNX's operators, from {OPSETS[0]} to {OPSETS[1]}; default: the lowest")
    add("--images", nargs="+", help="images or folders for the comparison with the detector; default: synthetic images")
    add("--max-images", type=positive, default=50, help="most images to compare (default: %(default)s)")
    add(
        "--int8",
        action="store_true",
        help="let backbone and towers of an ONNX file compute with 8-bit integers, which is faster and less exact",
    )
    add("--calibration", nargs="+", help="images or folders like those that an --int8 file will see")
    add("--opts", nargs=argparse.REMAINDER, default=[], help="config overrides: KEY VALUE ...")
    args = parser.parse_args(argv)
    if (args.detector is None) == (args.config_file is None):
        parser.error("give one detector")
    args.detector = args.detector or args.config_file
    by_suffix = {f.suffix: name for name, f in FORMATS.items()}
    args.format = args.format or by_suffix.get(args.output.suffix, "onnx")
    lowest = DEFORM_CONV_OPSET if args.alignment == "deform_conv" else OPSETS[0]
    if args.int8 and (args.format != "onnx" or args.raw):
        parser.error("--int8: is for ONNX files with NMS; leave --raw and other formats out")
    if args.int8 != bool(args.calibration):
        parser.error("--int8 and --calibration: give both or none")
    if args.opset is not None and not lowest <= args.opset <= OPSETS[1]:
        parser.error(f"--opset {args.opset}: choose one from {lowest} to {OPSETS[1]}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Exports a detector, and prints what was compared."""
    args = _parse_args(argv)
    if args.format == "onnx":
        _require_packages("onnx", "onnxscript", "onnxruntime")
    if not args.output.parent.is_dir():
        raise UserError(f"{args.output}: there is no folder {args.output.parent}; create it.")
    paths = _find(args.images or args.calibration, args.max_images)
    calibration = _find(args.calibration, _CALIBRATION_IMAGES)
    predictor = clq.load(args.detector, args.weights, device="cpu", opts=[*args.opts, "MODEL.CLQ.COMPILE", False])
    model = predictor.model
    if not isinstance(model, CLQ):
        raise UserError(f"MODEL.META_ARCHITECTURE {type(model).__name__}: cannot be exported; only CLQ's can.")
    graph = DetectorGraph(model, alignment=args.alignment, raw=args.raw, onnx=args.format == "onnx")
    metadata = make_metadata(predictor.cfg, model, predictor.categories, alignment=args.alignment, raw=args.raw)
    file_format = FORMATS[args.format]
    content = file_format.write(graph.eval(), metadata, _opset(args, model))
    images = list(_images(predictor, paths))
    runner, batches = file_format.read(content), list(_batches(images))
    agreement = check_raw(runner, graph, batches) if args.raw else check_detections(runner, model, batches)
    if args.int8:
        content = quantize(content, _images(predictor, calibration))
        closeness = check_quantized(file_format.read(content), model, images)
    with write_atomically(args.output) as f:
        f.write(content)
    print(f"{args.output}: {args.format}, {len(content) / 1e6:.1f} MB")
    print(f"compared on {'' if paths else 'synthetic '}{agreement}")
    if args.int8:
        print(f"with 8-bit integers on {closeness}")
    if not agreement.detections:
        print("Nothing was detected in these images; give some with --images, so that boxes are compared.")


def _find(inputs: Sequence[str] | None, most: int) -> list[str]:
    return find_images(inputs)[:most] if inputs else []


def _opset(args: argparse.Namespace, model: CLQ) -> int:
    """The version of ONNX's operators: the one asked for, or the lowest that has what the detector needs."""
    deformable = any(isinstance(module, TorchvisionDeformConv) for module in model.modules())
    lowest = DEFORM_CONV_OPSET if deformable or args.alignment == "deform_conv" else OPSETS[0]
    if args.opset is not None and args.opset < lowest:
        raise UserError(
            f"--opset {args.opset}: has no deformable convolution, which the backbone needs; give {lowest}."
        )
    return args.opset or lowest


def _require_packages(*names: str) -> None:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"clq export: ONNX needs {', '.join(missing)}; run pip install {' '.join(missing)}.")


def _batches(images: list[Tensor]) -> Iterator[list[Tensor]]:
    """Each image alone, and one batch of two."""
    yield from ([image] for image in images)
    yield images[:2]


def _images(predictor: Predictor, paths: Sequence[str]) -> Iterator[Tensor]:
    """Images (C, H, W) as the model receives them: those of the files, or noise."""
    detector = predictor.detector(tile=0)
    for path in paths:
        image = read_image(path, predictor.cfg.INPUT.FORMAT, **predictor.read_options)
        yield detector.prepare(image)["image"]
    if not paths:
        generator = torch.Generator().manual_seed(0)
        channels = len(predictor.cfg.MODEL.PIXEL_MEAN)
        for size in _SYNTHETIC_SIZES:
            yield torch.randint(0, 256, (channels, *size), generator=generator, dtype=torch.uint8)
