"""Measures several variants in one run: latency by stage, training steps, arithmetic and memory."""

import platform
import re
import resource
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol, TypedDict

import numpy as np
import torch

from clq.benchmark.cases import InferenceCase, ProductCase, TrainingCase, build_for_inference
from clq.benchmark.conditions import BenchmarkVariant, Conditions
from clq.benchmark.profiling import CONVOLUTIONS, StageMeter, count_parameters, flops_by_stage
from clq.benchmark.synthetic import random_image

_MEMORY = {
    "cuda": "peak of the memory that torch's allocator gave to tensors",
    "cpu": "largest resident set of a process that does nothing else, Python and libraries included",
    "mps": "not known on this device",
}


class Spread(TypedDict):
    """Distribution of a time over the rounds, in seconds."""

    median: float
    p90: float


class InferenceCosts(TypedDict):
    """Costs of inference; the times are in seconds."""

    latency_s: Spread
    stages_s: dict[str, float]
    crowded_decode_s: float | None
    images_per_s: dict[int, float]  # by the size of the batch
    share_of_peak: float | None


class TrainingCosts(TypedDict):
    """Costs of a training step, in seconds."""

    step_s: Spread
    stages_s: dict[str, float]


class PeakMemory(TypedDict):
    """Bytes at the peak; None where they were not measured, or are not known on the device."""

    inference: int | None
    training: int | None


class Costs(TypedDict):
    """Everything measured of one variant, and how it was configured."""

    config: str
    opts: tuple[str, ...]
    as_built: bool
    parameters: int
    multiply_adds: dict[str, float]  # by stage
    inference: InferenceCosts
    training: TrainingCosts | None
    peak_memory_bytes: PeakMemory


class Machine(TypedDict):
    """The machine and the conditions of a run."""

    torch: str
    device: str
    device_name: str
    threads: int
    dtype: str
    tf32: bool
    size: tuple[int, int]
    batch: int
    repeats: int
    memory: str
    peak_multiply_adds_per_s: float


class _Case(Protocol):
    def sample(self) -> dict[str, float]: ...


def measure(
    variants: Sequence[BenchmarkVariant], conditions: Conditions, repeats: int
) -> tuple[Machine, dict[str, Costs]]:
    """Measures variants under the same conditions.

    The variants take turns in each round, so that a drift in the machine's speed favours none of them. The first round
    is a warm-up and is not counted.

    Args:
        variants: variants to measure.
        conditions: conditions of the measurement.
        repeats: number of counted rounds.

    Returns:
        The machine, and the costs of each variant by its name; both can be written as JSON.

    Raises:
        UserError: a config has a mistake, or is not for a box detector.
    """
    configs = [variant.config(conditions.device) for variant in variants]
    memory = [peak_memory(variant, conditions) for variant in variants]
    cases = [InferenceCase(cfg, conditions, variant.as_built) for cfg, variant in zip(configs, variants, strict=True)]
    product = ProductCase(conditions)
    *samples, products = _in_turn([*cases, product], repeats)
    rate = product.multiply_adds / float(np.median(products["product"]))
    results: dict[str, Costs] = {}
    for variant, case, sample, peak in zip(variants, cases, samples, memory, strict=True):
        flops = flops_by_stage(case.model, conditions.size)
        results[variant.name] = {
            "config": variant.config_file,
            "opts": variant.opts,
            "as_built": variant.as_built,
            "parameters": count_parameters(case.model),
            "multiply_adds": flops,
            "inference": _inference_costs(sample, flops=flops, rate=rate, batch=conditions.batch),
            "training": None,
            "peak_memory_bytes": peak,
        }
    cases.clear()
    if conditions.train:
        samples = _in_turn([TrainingCase(cfg, conditions) for cfg in configs], repeats)
        for result, sample in zip(results.values(), samples, strict=True):
            result["training"] = {"step_s": _spread(sample.pop("step")), "stages_s": _medians(sample)}
    return _machine(conditions, repeats, rate), results


def _in_turn(cases: Sequence[_Case], repeats: int) -> list[dict[str, list[float]]]:
    """Samples the cases in turn; returns the values of each case in all rounds except for the first."""
    rounds = [[case.sample() for case in cases] for _ in range(repeats + 1)][1:]
    return [{key: [sample[key] for sample in samples] for key in samples[0]} for samples in zip(*rounds, strict=True)]


def _inference_costs(
    sample: dict[str, list[float]], *, flops: dict[str, float], rate: float, batch: int
) -> InferenceCosts:
    """Summarizes the samples of an :class:`InferenceCase`.

    Args:
        sample: measured values by name.
        flops: multiply-adds of each stage.
        rate: multiply-adds per second that the machine can reach.
        batch: number of images of the larger batch.
    """
    latency, larger, crowded = sample.pop("latency"), sample.pop("batch"), sample.pop("crowded", None)
    stages = _medians(sample)
    convolutions = [stage for stage in CONVOLUTIONS if stage in stages]
    seconds = sum(stages[s] for s in convolutions)
    return {
        "latency_s": _spread(latency),
        "stages_s": stages,
        "crowded_decode_s": None if crowded is None else float(np.median(crowded)),
        "images_per_s": {1: 1 / float(np.median(latency)), batch: batch / float(np.median(larger))},
        "share_of_peak": sum(flops[s] for s in convolutions) / seconds / rate if seconds else None,
    }


def _spread(values: list[float]) -> Spread:
    return {"median": float(np.median(values)), "p90": float(np.percentile(values, 90))}


def _medians(samples: dict[str, list[float]]) -> dict[str, float]:
    return {name: float(np.median(values)) for name, values in samples.items()}


def _machine(conditions: Conditions, repeats: int, rate: float) -> Machine:
    device = conditions.device
    processor = f"{platform.processor() or platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {
        "torch": torch.__version__,
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else processor,
        "threads": torch.get_num_threads(),
        "dtype": conditions.dtype,
        "tf32": device.type == "cuda" and torch.backends.cudnn.allow_tf32,
        "size": conditions.size,
        "batch": conditions.batch,
        "repeats": repeats,
        "memory": _MEMORY[device.type],
        "peak_multiply_adds_per_s": rate,
    }


def peak_memory(variant: BenchmarkVariant, conditions: Conditions) -> PeakMemory:
    """Measures the memory at the peak of one inference and of two training steps, in a separate process.

    On CUDA this is what torch's allocator gave to tensors; on the CPU it is the largest resident set of the process,
    Python and libraries included.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure_memory, variant, conditions, torch.get_num_threads()).result()


def measure_memory(variant: BenchmarkVariant, conditions: Conditions, threads: int) -> PeakMemory:
    """Measures :func:`peak_memory` in this process, whose earlier peaks count too.

    Args:
        variant: variant to measure.
        conditions: conditions of the measurement.
        threads: number of CPU threads.
    """
    torch.set_num_threads(threads)
    cfg = variant.config(conditions.device)
    model, image = build_for_inference(cfg, variant.as_built), random_image(*conditions.size)
    with torch.no_grad(), conditions.autocast():
        model([image])
    peaks: PeakMemory = {"inference": peak_so_far(conditions.device), "training": None}
    del model
    if conditions.train:
        case = TrainingCase(cfg, conditions)
        for _ in range(2):  # the first step creates the state of the optimizer
            case.step(StageMeter(float))
        peaks["training"] = peak_so_far(conditions.device)
    return peaks


def peak_so_far(device: torch.device) -> int | None:
    """Returns the bytes at the peak of this process, see :func:`peak_memory`; None if they are not known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu":
        return None
    status = Path("/proc/self/status")
    # ru_maxrss on Linux starts from the peak of the process that started this one, so it is not read there.
    if status.is_file() and (peak := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return 1024 * int(peak[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS
