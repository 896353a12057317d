"""The soak finds what grows, and passes a short training."""

import pytest
from clq.errors import UserError


@pytest.fixture(scope="module")
def soak(script):
    return script("tools/soak.py")


def samples(soak, memory, files=lambda i: 60, threads=lambda i: 13):
    return [soak.Sample(i, memory(i), files(i), threads(i), 3) for i in range(0, 4000, 20)]


def test_growth_is_that_of_the_line_through_the_samples(soak):
    """Peaks of evaluations, and memory that is freed again now and then, hardly count."""
    assert soak.growth(samples(soak, lambda i: 700 + 0.01 * i), "memory") == pytest.approx(39.8)
    assert soak.growth(samples(soak, lambda i: 1200 if i % 500 == 0 else 700), "memory") == 0
    assert abs(soak.growth(samples(soak, lambda i: 700 + i % 500 / 5), "memory")) < 25


@pytest.mark.parametrize("count", [0, 5])
def test_a_training_that_is_too_short_is_reported_in_one_line(soak, count):
    with pytest.raises(UserError, match=rf"^--iterations: {count} sample\(s\) of one iteration show no growth"):
        soak.report(samples(soak, lambda i: 700)[:1] * count, 30)


def test_a_leak_of_memory_files_or_threads_fails(soak, capsys):
    assert soak.report(samples(soak, lambda i: 700), 30)
    assert not soak.report(samples(soak, lambda i: 700 + i / 100), 30)
    assert "memory: 700 to 740 MiB" in capsys.readouterr().out
    assert not soak.report(samples(soak, lambda i: 700, files=lambda i: 60 + i // 1000), 30)
    assert not soak.report(samples(soak, lambda i: 700, threads=lambda i: 13 + i // 1000), 30)


def test_a_short_training_is_watched(soak, tmp_path, capsys):
    picture = tmp_path / "soak.png"
    soak.main(["--iterations", "50", "--period", "40", "--interval", "0.2", "--plot", str(picture)])
    said = capsys.readouterr().out
    assert said.startswith("50 iterations in ")
    assert "files: " in said and "threads: " in said
    assert picture.stat().st_size > 1000
