"""The rows and columns of metrics.csv."""

import csv

import clq  # noqa: F401  (first: it lets Detectron2 import)
import pytest
from clq.engine.metrics_csv import CSVWriter, read_metrics
from detectron2.utils.events import EventStorage


def run(path, steps, start=0, every=2):
    """Logs the values of steps, and writes after each second one, as a training from an iteration on."""
    writer = CSVWriter(str(path), lambda: start)
    with EventStorage(start) as storage:
        for i, values in enumerate(steps, start):
            storage.iter = i
            storage.put_scalars(**values, smoothing_hint=False)
            if (i + 1) % every == 0:
                writer.write()
        storage.iter = start + len(steps)
        writer.write()
    writer.close()


def table(path):
    with open(path, newline="") as f:
        return list(csv.reader(f))


def test_values_are_written_once_and_in_full(tmp_path):
    run(tmp_path / "m.csv", [{"a": 1.0}, {"a": 0.1 + 0.2}, {"a": 3.0}])
    assert table(tmp_path / "m.csv") == [["iteration", "a"], ["1", "0.30000000000000004"], ["2", "3.0"]]


def test_a_new_name_becomes_a_column_at_the_end(tmp_path):
    """A class may have any name; a value that is missing is empty, and nan is nan."""
    run(tmp_path / "m.csv", [{"b": 1.0}, {"b": 2.0}, {"b": 3.0}, {"b": float("nan"), 'a,"b"': 4.0}, {"b": 5.0}])
    assert table(tmp_path / "m.csv") == [
        ["iteration", "b", 'a,"b"'],
        *(["1", "2.0", ""], ["3", "nan", "4.0"], ["4", "5.0", ""]),
    ]


def test_values_of_an_earlier_iteration_have_a_row_of_their_own(tmp_path):
    run(tmp_path / "m.csv", [{"a": 1.0, "b": 1.0}, {"a": 2.0}])
    assert table(tmp_path / "m.csv") == [["iteration", "b", "a"], ["0", "1.0", ""], ["1", "", "2.0"]]


@pytest.mark.parametrize("start", [2, 3, 4])
def test_a_resumed_training_has_the_rows_of_an_uninterrupted_one(tmp_path, start):
    """The first part had gone on beyond the checkpoint, and was killed in the middle of a line."""
    steps = [{"a": float(i)} for i in range(6)]
    run(tmp_path / "whole.csv", steps, every=1)
    run(tmp_path / "m.csv", steps[:5], every=1)
    with open(tmp_path / "m.csv", "a") as f:
        f.write("5")
    run(tmp_path / "m.csv", steps[start:], start=start, every=1)
    assert table(tmp_path / "m.csv") == table(tmp_path / "whole.csv")


def test_the_last_evaluation_of_a_training_that_goes_on_stays(tmp_path):
    """It has the number of iterations, which is that of the next step."""
    run(tmp_path / "m.csv", [{"a": 1.0}, {"a": 2.0}])
    writer = CSVWriter(str(tmp_path / "m.csv"), lambda: 2)
    (tmp_path / "m.csv").write_text("iteration,a,AP\n1,2.0,\n2,,50.0\n")
    with EventStorage(2) as storage:
        storage.put_scalar("a", 3.0)
        writer.write()
    assert table(tmp_path / "m.csv") == [["iteration", "a", "AP"], ["1", "2.0", ""], ["2", "3.0", "50.0"]]


def test_a_new_training_replaces_the_file(tmp_path):
    run(tmp_path / "m.csv", [{"old": 1.0}] * 4)
    run(tmp_path / "m.csv", [{"a": 1.0}])
    assert table(tmp_path / "m.csv") == [["iteration", "a"], ["0", "1.0"]]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"a,b\n1,2\n", b"iteration,a\nx,1\n", b'iteration,"'])
def test_a_damaged_file_does_not_end_a_training(tmp_path, content):
    (tmp_path / "m.csv").write_bytes(content)
    run(tmp_path / "m.csv", [{"a": 1.0}], start=4)
    columns, rows = read_metrics(tmp_path / "m.csv")
    assert columns[0] == "iteration" and rows == {4: {"a": "1.0"}}
