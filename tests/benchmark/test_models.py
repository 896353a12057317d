"""Models are measured side by side, and their memory in separate processes."""

import json

import pytest
import torch
from clq.benchmark import models as benchmark
from clq.benchmark.conditions import BenchmarkVariant, Conditions

TINY_MULTIPLY_ADDS = 333_103_104 + 2_774_016 + 7_348_320 + 1_796_256  # see test_profiling.py
RETINANET = (
    "MODEL.META_ARCHITECTURE RetinaNet MODEL.RETINANET.NUM_CLASSES -1 MODEL.RETINANET.IN_FEATURES \"['p3','p4','p5']\""
)
CPU = torch.device("cpu")


def test_the_tool_measures_models(tiny, tmp_path, run, capsys, monkeypatch):
    """In one process, because the imports of a child process for each variant would take longer than all the rest."""
    monkeypatch.setattr(
        benchmark,
        "peak_memory",
        lambda variant, conditions: benchmark.measure_memory(variant, conditions, torch.get_num_threads()),
    )
    path = tmp_path / "new" / "costs.json"
    argv = ["models", "--device", "cpu", "--size", 96, 96, "--repeats", 1, "--batch", 2, "--train", "--json", path]
    assert (
        run(
            "tools/benchmark.py",
            *argv,
            "--variants",
            f"CLQ={tiny}",
            f"RetinaNet={tiny} {RETINANET}",
            "--as-built",
            "RetinaNet",
        )
        == 0
    )
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    header, _, *lines = [line for line in lines if line]
    assert header == ["", "CLQ", "RetinaNet"]
    table = {label: cells for label, *cells in lines}
    assert [cells[1] for label, cells in table.items() if "–" in cells] == ["–"]
    assert table["- alignment"][1] == "–" and "- compiled network" not in table
    assert table["multiply-adds (G)"][0] == f"{TINY_MULTIPLY_ADDS / 1e9:.4g}"

    content = json.loads(path.read_text())
    assert content["machine"].items() >= {"device": "cpu", "dtype": "float32", "size": [96, 96], "batch": 2}.items()
    for i, costs in enumerate(content["rows"].values()):
        for stages, prefix in ((costs["inference"]["stages_s"], ""), (costs["training"]["stages_s"], "training: ")):
            assert all(seconds > 0 for seconds in stages.values())
            assert float(table[f"- {prefix}sum"][i]) == pytest.approx(sum(stages.values()) * 1e3, rel=1e-3)
        assert costs["inference"]["images_per_s"].keys() == {"1", "2"}
        assert costs["peak_memory_bytes"]["inference"] > 0
    clq = content["rows"]["CLQ"]
    assert sum(clq["multiply_adds"].values()) == TINY_MULTIPLY_ADDS
    assert clq["config"] == tiny and clq["inference"]["share_of_peak"] > 0


def test_peak_memory_is_measured_in_a_separate_process(tiny):
    """It does not include a gigabyte that this process held for a while."""
    held = torch.ones(2**28)
    del held
    conditions = Conditions(size=(96, 96), batch=1, device=CPU, dtype="float32", train=False)
    peak = benchmark.peak_memory(BenchmarkVariant("tiny", tiny, ()), conditions)
    assert peak["training"] is None
    assert 2**26 < peak["inference"] < benchmark.peak_so_far(CPU) - 2**29


def test_the_tool_measures_matching_and_a_step(tiny, run, capsys):
    assert run("tools/benchmark.py", "matching", "--size", 128, 96, "--repeats", 1) == 0
    out = capsys.readouterr().out
    assert out.startswith("Matching at 128x96, 257 anchors") and out.count(" anchors differ") == 3
    argv = ["step", "MODEL.DEVICE", "cpu", "--config-file", tiny, "--size", 96, 96, "--repeats", 1]
    assert run("tools/benchmark.py", *argv, "MODEL.CLQ.TOPK", 5) == 0
    assert "Forward and backward at 96x96, batch 1, cpu" in capsys.readouterr().out
