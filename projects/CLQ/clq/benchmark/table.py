"""The table that shows what :mod:`clq.benchmark.models` measured."""

from tabulate import tabulate

from clq.benchmark.cases import NUM_CANDIDATES
from clq.benchmark.models import Costs, Machine
from clq.benchmark.profiling import INFERENCE_STAGES, TRAINING_STAGES

_NONE = "–"


def format_table(machine: Machine, results: dict[str, Costs]) -> str:
    """Formats measurements as a table with one column for each variant, and a legend.

    What a model does not have is shown as a dash. A stage that no model has is left out.

    Args:
        machine: machine and conditions of the run.
        results: costs of each variant, by name.
    """
    columns = [_column(result, machine["batch"]) for result in results.values()]
    lines = [[label, *(column[label] for column in columns)] for label in columns[0]]
    lines = [line for line in lines if set(line[1:]) != {_NONE}]
    table = tabulate(
        lines, ["", *results], "github", disable_numparse=True, colalign=["left", *["right"] * len(results)]
    )
    height, width = machine["size"]
    as_built = "".join(f"; {name} as built" for name, result in results.items() if result["as_built"])
    legend = [
        f"{height}x{width}, {machine['device_name']}, {machine['dtype']}{' (TF32)' if machine['tf32'] else ''}, "
        f"{machine['threads']} threads, torch {machine['torch']}; medians of {machine['repeats']} rounds.",
        f"Inference: norms folded, channels last, as in demo.py{as_built}. Training: channels last, as in "
        "train_net.py; the data are images in memory, which are moved to the device and joined to a batch.",
        "Stages: measured in other calls than the total time, with a clock at each stage that synchronizes with the "
        "device.",
        f"Share of the peak: backbone, FPN and head, relative to {machine['peak_multiply_adds_per_s'] / 1e9:.4g} G "
        "multiply-adds per second, the rate of a large matrix product that took turns with the variants.",
        "Multiply-adds: those of convolutions and matrix products; each counts once, as in fvcore.",
        f"Memory: {machine['memory']}.",
    ]
    return "\n".join([table, "", *legend])


def _column(result: Costs, batch: int) -> dict[str, str]:
    """The formatted values of one variant, by their labels."""
    inference, training, memory = result["inference"], result["training"], result["peak_memory_bytes"]
    values = {
        "inference, batch 1: ms, median": _number(inference["latency_s"]["median"], 1e3),
        "ms, 90th percentile": _number(inference["latency_s"]["p90"], 1e3),
        **_stage_values(inference["stages_s"], INFERENCE_STAGES),
        f"decode+NMS, {NUM_CANDIDATES} above threshold": _number(inference["crowded_decode_s"], 1e3),
        **{f"images/s, batch {n}": _number(rate) for n, rate in inference["images_per_s"].items()},
        "share of the machine's peak (%)": _number(inference["share_of_peak"], 100),
        "peak memory (GiB)": _number(memory["inference"], 2**-30),
        "parameters (M)": _number(result["parameters"], 1e-6),
        "multiply-adds (G)": _number(sum(result["multiply_adds"].values()), 1e-9),
    }
    if training is None:
        return values
    return values | {
        f"training step, batch {batch}: ms, median": _number(training["step_s"]["median"], 1e3),
        "training: ms, 90th percentile": _number(training["step_s"]["p90"], 1e3),
        **_stage_values(training["stages_s"], TRAINING_STAGES, "training: "),
        "training: peak memory (GiB)": _number(memory["training"], 2**-30),
    }


def _stage_values(stages: dict[str, float], names: tuple[str, ...], prefix: str = "") -> dict[str, str]:
    total = _number(sum(stages.values()), 1e3)
    return {f"- {prefix}{name}": _number(stages.get(name), 1e3) for name in names} | {f"- {prefix}sum": total}


def _number(value: float | None, factor: float = 1.0) -> str:
    return _NONE if value is None else f"{value * factor:.4g}"
