"""The throughput of the training loader, and the time of its steps."""

import pytest


def test_the_tool_measures_the_steps_of_the_mapper_and_the_throughput_of_the_loader(tiny, run, capsys):
    argv = ["--config-file", tiny, "--images", 4, "--workers", 0, "--seconds", 1]
    assert run("tools/benchmark.py", "data", *argv, "--opts", "INPUT.AUG.COLOR", 0.3) == 0
    head, *steps, rate = capsys.readouterr().out.splitlines()
    assert head.startswith("One image (mean of 4 from shapes_train): ")
    times = {line.rsplit(maxsplit=2)[0].strip(): float(line.split()[-2]) for line in steps}
    assert times.keys() == {"read and decode", "augment", "annotations", "rest"}
    assert list(times.values()) == sorted(times.values(), reverse=True)
    assert sum(times.values()) == pytest.approx(float(head.split()[-2]), abs=0.1)
    assert rate.startswith("0 workers: ") and rate.endswith("images/s in batches of 4")
    assert float(rate.split()[2]) > 0
