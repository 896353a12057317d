"""The table of measurements."""

import clq  # noqa: F401  (first: it lets Detectron2 import)
from clq.benchmark.table import format_table

MACHINE = {
    "torch": "2.0",
    "device": "cpu",
    "device_name": "x86_64",
    "threads": 4,
    "dtype": "float32",
    "tf32": False,
    "size": (96, 64),
    "batch": 2,
    "repeats": 3,
    "memory": "resident set",
    "peak_multiply_adds_per_s": 5e10,
}
COSTS = {
    "config": "a.yaml",
    "opts": (),
    "as_built": False,
    "parameters": 1_500_000,
    "multiply_adds": {"backbone": 2e9, "head": 5e8},
    "inference": {
        "latency_s": {"median": 0.25, "p90": 0.5},
        "stages_s": {"backbone": 0.125, "head": 0.0625},
        "crowded_decode_s": None,
        "images_per_s": {1: 4.0, 2: 6.0},
        "share_of_peak": 0.5,
    },
    "training": None,
    "peak_memory_bytes": {"inference": 2**30, "training": None},
}


def test_a_table_has_a_column_for_each_variant_in_the_units_of_its_labels():
    other = {**COSTS, "as_built": True, "inference": {**COSTS["inference"], "crowded_decode_s": 0.002}}
    lines = format_table(MACHINE, {"A": COSTS, "B": other}).splitlines()
    cells = {line.split("|")[1].strip(): [x.strip() for x in line.split("|")[2:-1]] for line in lines if "|" in line}
    assert cells[""] == ["A", "B"]
    assert cells["inference, batch 1: ms, median"] == ["250", "250"]
    assert cells["- sum"] == ["187.5", "187.5"]
    assert cells["decode+NMS, 2000 above threshold"] == ["–", "2"]
    assert cells["share of the machine's peak (%)"] == ["50", "50"]
    assert (cells["peak memory (GiB)"], cells["parameters (M)"]) == (["1", "1"], ["1.5", "1.5"])
    assert cells["multiply-adds (G)"] == ["2.5", "2.5"]
    assert "- alignment" not in cells  # no model has it
    assert any(line.startswith("96x64, x86_64, float32, 4 threads, torch 2.0; medians of 3 rounds") for line in lines)
    assert any("B as built" in line for line in lines)
