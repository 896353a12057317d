import json

import pytest
import torch
from clq.benchmark import models as benchmark
from clq.benchmark.cases import NUM_CANDIDATES, Conditions, InferenceCase, Variant

TINY_MULTIPLY_ADDS = 333_103_104 + 2_774_016 + 7_348_320 + 1_796_256  # see test_profiling.py
RETINANET = (
    "MODEL.META_ARCHITECTURE RetinaNet MODEL.RETINANET.NUM_CLASSES -1 MODEL.RETINANET.IN_FEATURES \"['p3','p4','p5']\""
)
CPU = torch.device("cpu")


@pytest.mark.parametrize("arch", ["CLQ", "RetinaNet"])
def test_every_candidate_passes_the_threshold(tiny, arch):
    """Also where the score is a product with a quality: as many candidates as there are places, twice in a row."""
    retinanet = {
        "NUM_CLASSES": "-1",
        "IN_FEATURES": "['p3', 'p4', 'p5']",
        "TOPK_CANDIDATES_TEST": "5000",
        "NMS_THRESH_TEST": "1.0",
    }
    opts = ["MODEL.META_ARCHITECTURE", arch, "MODEL.CLQ.NMS_THRESH", "1.0", "TEST.DETECTIONS_PER_IMAGE", "5000"]
    opts += [word for key, value in retinanet.items() for word in (f"MODEL.RETINANET.{key}", value)]
    conditions = Conditions((96, 96), 1, CPU, "float32", train=False)
    case = InferenceCase(Variant(arch, tiny, tuple(opts)).config(CPU), conditions)
    count = min(sum(x.numel() for x in case.crowd[2][0]), NUM_CANDIDATES)
    case.sample()
    with torch.no_grad():
        (found,) = case.model.forward_inference(*case.crowd)
    assert len(found) == count


def test_models(tiny, tmp_path, run, capsys, monkeypatch):
    """In one process: the imports of a child for each row take longer than all the rest."""
    monkeypatch.setattr(
        benchmark,
        "peak_memory",
        lambda row, conditions: benchmark.measure_memory(row, conditions, torch.get_num_threads()),
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
    for i, row in enumerate(content["rows"].values()):
        for stages, prefix in ((row["inference"]["stages_s"], ""), (row["training"]["stages_s"], "training: ")):
            assert all(seconds > 0 for seconds in stages.values())
            assert float(table[f"- {prefix}sum"][i]) == pytest.approx(sum(stages.values()) * 1e3, rel=1e-3)
        assert row["inference"]["images_per_s"].keys() == {"1", "2"}
        assert row["peak_memory_bytes"]["inference"] > 0
    clq = content["rows"]["CLQ"]
    assert sum(clq["multiply_adds"].values()) == TINY_MULTIPLY_ADDS
    assert clq["config"] == tiny and clq["inference"]["share_of_peak"] > 0


def test_peak_memory_is_of_a_process_of_its_own(tiny):
    """A gigabyte more that this process holds for a while is not in it."""
    held = torch.ones(2**28)
    del held
    row, conditions = Variant("tiny", tiny, ()), Conditions((96, 96), 1, CPU, "float32", train=False)
    peak = benchmark.peak_memory(row, conditions)
    assert peak["training"] is None
    assert 2**26 < peak["inference"] < benchmark.peak_so_far(CPU) - 2**29


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--device", "cuda:0"], "--device cuda:0: there is none on this machine"),
        (["--device", "abacus"], "abacus: no such device"),
        (["--device", "meta"], "--device meta: use cpu, cuda or mps"),
        (["--variants", "MODEL.CLQ.TOPK 5"], "has no config; write [NAME=]CONFIG.yaml"),
        (["--rows", "gone.yaml"], "gone.yaml: no such config file"),
        (["--variants", "a=x.yaml", "a=y.yaml"], "two are called a"),
        (["--as-built", "FCOS"], "--as-built FCOS: no row of that name; there are tiny"),
        (["--opts", "MODEL.META_ARCHITECTURE", "PanopticFPN"], "this project supports detectors of boxes alone"),
        (["--opts", "TEST.AMP.ENABLED", "True"], "row tiny: TEST.AMP.ENABLED is not read here; --dtype"),
    ],
)
def test_mistakes_are_one_line(tiny, argv, message, run, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run("tools/benchmark.py", "models", "--variants", tiny, *argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_matching_and_step(tiny, run, capsys):
    assert run("tools/benchmark.py", "matching", "--size", 128, 96, "--repeats", 1) == 0
    out = capsys.readouterr().out
    assert out.startswith("Matching at 128x96, 257 anchors") and out.count(" anchors differ") == 3
    argv = ["step", "MODEL.DEVICE", "cpu", "--config-file", tiny, "--size", 96, 96, "--repeats", 1]
    assert run("tools/benchmark.py", *argv, "MODEL.CLQ.TOPK", 5) == 0
    assert "Forward and backward at 96x96, batch 1, cpu" in capsys.readouterr().out


def test_data_takes_the_mapper_apart_and_counts_what_the_loader_gives(tiny, run, capsys):
    argv = ["--config-file", tiny, "--images", 20, "--workers", 0, "--seconds", 1]
    assert run("tools/benchmark.py", "data", *argv, "--opts", "INPUT.AUG.COLOR", 0.3) == 0
    head, *steps, rate = capsys.readouterr().out.splitlines()
    assert head.startswith("One image (mean of 20 from shapes_train): ")
    times = {line.rsplit(maxsplit=2)[0].strip(): float(line.split()[-2]) for line in steps}
    assert times.keys() == {"read and decode", "augment", "annotations", "rest"}
    assert list(times.values()) == sorted(times.values(), reverse=True)
    assert sum(times.values()) == pytest.approx(float(head.split()[-2]), abs=0.1)
    assert rate.startswith("0 workers: ") and rate.endswith("images/s in batches of 4")
    assert float(rate.split()[2]) > 0
