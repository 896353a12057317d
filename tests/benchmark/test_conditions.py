"""The variants and conditions of a command line."""

import pytest
import torch
from clq.benchmark.conditions import BenchmarkVariant, Conditions, parse_variants


def test_overrides_for_all_variants_follow_those_of_each():
    variants = parse_variants(["A=a.yaml K 1", "b.yaml"], opts=["K", "2"], as_built=["b"])
    assert variants == [
        BenchmarkVariant("A", "a.yaml", ("K", "1", "K", "2")),
        BenchmarkVariant("b", "b.yaml", ("K", "2"), as_built=True),
    ]


@pytest.mark.parametrize("dtype, expected", [("float32", torch.float32), ("bf16", torch.bfloat16)])
def test_models_run_in_the_dtype_of_the_conditions(dtype, expected):
    conditions = Conditions(size=(8, 8), batch=1, device=torch.device("cpu"), dtype=dtype, train=False)
    with conditions.autocast():
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == expected


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--device", "cuda:0"], "--device cuda:0: this machine has no such device; use cpu"),
        (["--device", "abacus"], "abacus: no such device"),
        (["--device", "meta"], "--device meta: use cpu, cuda or mps"),
        (["--variants", "MODEL.CLQ.TOPK 5"], "has no config; write [NAME=]CONFIG.yaml"),
        (["--rows", "gone.yaml"], "gone.yaml: no such config file"),
        (["--variants", "a=x.yaml", "a=y.yaml"], "two variants are called a; give each a different NAME="),
        (["--as-built", "FCOS"], "--as-built FCOS: no variant has that name; use one of tiny"),
        (["--opts", "MODEL.META_ARCHITECTURE", "PanopticFPN"], "this project supports only box detectors"),
        (
            ["--opts", "TEST.AMP.ENABLED", "True"],
            "tiny: TEST.AMP.ENABLED has no effect here; set it to False",
        ),
    ],
)
def test_mistakes_are_one_line(tiny, argv, message, run, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run("tools/benchmark.py", "models", "--variants", tiny, *argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
