"""Several configs measured in one run: latency by stage, training steps, arithmetic and memory."""

import platform
import re
import resource
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate

from clq.benchmark.cases import (
    NUM_CANDIDATES,
    Conditions,
    InferenceCase,
    ProductCase,
    TrainingCase,
    Variant,
    build_for_inference,
)
from clq.benchmark.profiling import (
    CONVOLUTIONS,
    INFERENCE_STAGES,
    TRAINING_STAGES,
    StageMeter,
    count_parameters,
    flops_by_stage,
)
from clq.benchmark.synthetic import random_image

_MEMORY = {
    "cuda": "what torch's allocator gave to tensors at the peak",
    "cpu": "the largest resident set of a process that does nothing else, Python and libraries included",
    "mps": "not known on this device",
}

_NONE = "–"


def measure(rows: list[Variant], conditions: Conditions, repeats: int) -> tuple[dict, dict[str, dict]]:
    """The machine, and what each row costs on it, both as they go into json.

    Rounds go over all rows, so that a machine whose speed drifts favours none; the first round warms up.

    Raises:
        UserError: a config is of no detector of boxes.
    """
    configs = [row.config(conditions.device) for row in rows]
    memory = [peak_memory(row, conditions) for row in rows]
    cases = [InferenceCase(cfg, conditions, row.as_built) for cfg, row in zip(configs, rows, strict=True)]
    product = ProductCase(conditions)
    *samples, products = _in_turn([*cases, product], repeats)
    rate = product.multiply_adds / np.median(products["product"])
    results = {}
    for row, case, sample, peak in zip(rows, cases, samples, memory, strict=True):
        counts = {
            "parameters": count_parameters(case.model),
            "multiply_adds": flops_by_stage(case.model, conditions.size),
        }
        inference = _inference_summary(sample, counts["multiply_adds"], rate, conditions.batch)
        config = {"config": row.config_file, "opts": row.opts, "as_built": row.as_built}
        results[row.name] = {**config, **counts, "inference": inference, "training": None, "peak_memory_bytes": peak}
    cases.clear()
    if conditions.train:
        samples = _in_turn([TrainingCase(cfg, conditions) for cfg in configs], repeats)
        for result, sample in zip(results.values(), samples, strict=True):
            result["training"] = {"step_s": _spread(sample.pop("step")), "stages_s": _medians(sample)}
    return _machine(conditions, repeats, rate), results


def _in_turn(cases: list, repeats: int) -> list[dict[str, list[float]]]:
    """For each case, the values of all its samples but the first."""
    rounds = [[case.sample() for case in cases] for _ in range(repeats + 1)][1:]
    return [{key: [sample[key] for sample in samples] for key in samples[0]} for samples in zip(*rounds, strict=True)]


def _inference_summary(sample: dict, flops: dict[str, float], rate: float, batch: int) -> dict:
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


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": float(np.median(values)), "p90": float(np.percentile(values, 90))}


def _medians(samples: dict[str, list[float]]) -> dict[str, float]:
    return {name: float(np.median(values)) for name, values in samples.items()}


def _machine(conditions: Conditions, repeats: int, rate: float) -> dict:
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


def peak_memory(row: Variant, conditions: Conditions) -> dict[str, int | None]:
    """Bytes at the peak of one inference and of two training steps, in a process of its own.

    CUDA: what torch's allocator gave to tensors. CPU: the process's largest resident set, Python and libraries
    included. None where there is no such count (MPS), or no training is measured.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure_memory, row, conditions, torch.get_num_threads()).result()


def measure_memory(row: Variant, conditions: Conditions, threads: int) -> dict[str, int | None]:
    """:func:`peak_memory`, as far as this process has not had a higher peak before."""
    torch.set_num_threads(threads)
    cfg = row.config(conditions.device)
    peaks: dict[str, int | None] = {"inference": None, "training": None}
    model, image = build_for_inference(cfg, row.as_built), random_image(*conditions.size)
    with torch.no_grad(), conditions.autocast():
        model([image])
    peaks["inference"] = peak_so_far(conditions.device)
    del model
    if conditions.train:
        case = TrainingCase(cfg, conditions)
        for _ in range(2):  # the first makes the optimizer's state
            case.step(StageMeter(float))
        peaks["training"] = peak_so_far(conditions.device)
    return peaks


def peak_so_far(device: torch.device) -> int | None:
    """Bytes at the peak of this process; see :func:`peak_memory`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu":
        return None
    status = Path("/proc/self/status")
    if status.is_file():  # Linux's ru_maxrss starts from the peak of the process that started this one
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def format_table(machine: dict, results: dict[str, dict]) -> str:
    """:func:`measure`'s as a table, one column a row of parts, a dash for what a model does not have, and a legend."""
    columns = [_cells(result, machine["batch"]) for result in results.values()]
    lines = [[label, *(column[label] for column in columns)] for label in columns[0]]
    lines = [line for line in lines if set(line[1:]) != {_NONE}]  # a stage that no model here has
    table = tabulate(
        lines, ["", *results], "github", disable_numparse=True, colalign=["left", *["right"] * len(results)]
    )
    height, width = machine["size"]
    as_built = "".join(f"; {name} as built" for name, result in results.items() if result["as_built"])
    legend = [
        f"{height}x{width}, {machine['device_name']}, {machine['dtype']}{' (TF32)' if machine['tf32'] else ''}, "
        f"{machine['threads']} threads, torch {machine['torch']}; medians of {machine['repeats']} rounds.",
        f"Inference: norms folded, channels last, as in demo.py{as_built}. Training: channels last, as in "
        "train_net.py; its data are images in memory, put on the device and into a batch.",
        "Stages: from other calls than the time above them, with a clock at each that waits for the device.",
        f"Share of the peak: backbone, FPN and head, of {machine['peak_multiply_adds_per_s'] / 1e9:.4g} G "
        "multiply-adds a second, what a large matrix product reached between the rows.",
        "A multiply-add counts once, as in fvcore; those of convolutions and matrix products.",
        f"Memory: {machine['memory']}.",
    ]
    return "\n".join([table, "", *legend])


def _cells(result: dict, batch: int) -> dict[str, str]:
    """Label -> value of one column."""
    inference, training, memory = result["inference"], result["training"], result["peak_memory_bytes"]
    cells = {
        "inference, batch 1: ms, median": _number(inference["latency_s"]["median"], 1e3),
        "ms, 90th percentile": _number(inference["latency_s"]["p90"], 1e3),
        **_stage_cells(inference["stages_s"], INFERENCE_STAGES),
        f"decode+NMS, {NUM_CANDIDATES} above threshold": _number(inference["crowded_decode_s"], 1e3),
        **{f"images/s, batch {n}": _number(rate) for n, rate in inference["images_per_s"].items()},
        "share of the machine's peak (%)": _number(inference["share_of_peak"], 100),
        "peak memory (GiB)": _number(memory["inference"], 2**-30),
        "parameters (M)": _number(result["parameters"], 1e-6),
        "multiply-adds (G)": _number(sum(result["multiply_adds"].values()), 1e-9),
    }
    if training is None:
        return cells
    return cells | {
        f"training step, batch {batch}: ms, median": _number(training["step_s"]["median"], 1e3),
        "training: ms, 90th percentile": _number(training["step_s"]["p90"], 1e3),
        **_stage_cells(training["stages_s"], TRAINING_STAGES, "training: "),
        "training: peak memory (GiB)": _number(memory["training"], 2**-30),
    }


def _stage_cells(stages: dict[str, float], names: tuple[str, ...], prefix: str = "") -> dict[str, str]:
    total = _number(sum(stages.values()), 1e3)
    return {f"- {prefix}{name}": _number(stages.get(name), 1e3) for name in names} | {f"- {prefix}sum": total}


def _number(value: float | None, factor: float = 1.0) -> str:
    return _NONE if value is None else f"{value * factor:.4g}"
