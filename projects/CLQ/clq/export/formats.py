"""Writes a detector in a file format, as bytes, and reads it back as a function.

A format is a pair of functions: one from a graph and metadata to bytes, the other from these bytes to a function that
has the inputs and outputs of :class:`~clq.export.graph.DetectorGraph`.
"""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from clq.errors import UserError
from clq.export.graph import INPUTS, DetectorGraph
from clq.export.suppression import onnx_translation

# What runs a file: images (N, C, H, W) and sizes (N, 2) to the outputs.
Runner = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
METADATA = "clq.json"  # the metadata in torch's own formats
OPSETS = 18, 23  # of ONNX's operators, from the first that torch's exporter writes to the last that was tried
DEFORM_CONV_OPSET = 19  # the first with DeformConv


class Format(NamedTuple):
    """A file format.

    Attributes:
        suffix: how names of such files end.
        write: function from graph, metadata and opset to the content of a file.
        read: function from that content to what runs it.
    """

    suffix: str
    write: Callable[[DetectorGraph, Mapping[str, str], int], bytes]
    read: Callable[[bytes], Runner]


def _export(graph: DetectorGraph) -> torch.export.ExportedProgram:
    images, sizes = _example(graph)
    any_size = torch.export.Dim.DYNAMIC
    shapes = {INPUTS[0]: {0: any_size, 2: any_size, 3: any_size}, INPUTS[1]: {0: any_size}}
    return torch.export.export(graph, (images, sizes), dynamic_shapes=shapes, strict=False)


def _example(graph: DetectorGraph) -> tuple[Tensor, Tensor]:
    """An input of two images with different sizes. No size is a multiple of another, so that none is taken for it."""
    channels = graph.model.pixel_mean.numel()
    return torch.full((2, channels, 200, 264), 127.0), torch.tensor([[200, 264], [190, 250]])


def write_onnx(graph: DetectorGraph, metadata: Mapping[str, str], opset: int) -> bytes:
    """An ONNX model, with the metadata in its ``metadata_props``."""
    with _quiet():
        program = torch.onnx.export(
            _export(graph),
            input_names=INPUTS,
            output_names=graph.output_names(),
            opset_version=opset,
            custom_translation_table=onnx_translation(),
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(metadata)
    for node in program.model.graph:  # where in the source each node comes from, with paths of this machine
        node.metadata_props.clear()
        node.doc_string = None
    try:
        return program.model_proto.SerializeToString()
    except ValueError as e:  # protobuf's limit
        raise UserError(f"clq export: the detector does not fit into an ONNX file of 2 GB ({e}).") from e


def read_onnx(content: bytes) -> Runner:
    """A function that runs an ONNX model in onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as e:  # onnxruntime has no common class of its errors
        version = onnxruntime.__version__
        raise UserError(f"onnxruntime {version} cannot run the file ({' '.join(str(e).split())}); update it.") from e

    def run(images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        outputs = session.run(None, dict(zip(INPUTS, (images.numpy(), sizes.numpy()), strict=True)))
        return tuple(map(torch.from_numpy, outputs))

    return run


def _write_torch_export(graph: DetectorGraph, metadata: Mapping[str, str], opset: int) -> bytes:
    file = io.BytesIO()
    with _quiet():
        torch.export.save(_export(graph), file, extra_files={METADATA: json.dumps(dict(metadata))})
    return file.getvalue()


def _read_torch_export(content: bytes) -> Runner:
    with _quiet():
        return torch.export.load(io.BytesIO(content)).module()


def _write_torchscript(graph: DetectorGraph, metadata: Mapping[str, str], opset: int) -> bytes:
    file = io.BytesIO()
    with _quiet():
        traced = torch.jit.trace(graph, _example(graph), check_trace=False)
        torch.jit.save(traced, file, _extra_files={METADATA: json.dumps(dict(metadata))})
    return file.getvalue()


def _read_torchscript(content: bytes) -> Runner:
    with _quiet():
        return torch.jit.load(io.BytesIO(content))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides what torch's exporters tell their developers: warnings of deprecation, and progress."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


# Names of --format.
FORMATS = {
    "onnx": Format(".onnx", write_onnx, read_onnx),
    "torch-export": Format(".pt2", _write_torch_export, _read_torch_export),
    "torchscript": Format(".pt", _write_torchscript, _read_torchscript),
}
