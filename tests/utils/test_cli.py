import argparse

import pytest
from clq.errors import UserError, blamed_on
from clq.utils.cli import positive, run_cli


def status_of(main):
    with pytest.raises(SystemExit) as exited:
        run_cli(main)
    return exited.value.code


@pytest.mark.parametrize("result, status", [(None, 0), (0, 0), (1, 1), ({"bbox": {}}, 0)])
def test_status_is_what_main_returns(result, status):
    assert status_of(lambda: result) == status


def test_a_mistake_is_one_line_also_from_a_process_of_the_loader(capsys):
    def direct():
        raise UserError("a.png: is no image.")

    def from_a_worker():  # as torch raises it again: the whole traceback as the message
        trace = "Original Traceback (most recent call last):\n  File ...\nclq.errors.UserError: a.png: is no image."
        raise UserError(f"Caught UserError in DataLoader worker process 0.\n{trace}")

    for main in (direct, from_a_worker):
        assert status_of(main) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith(": a.png: is no image.")
        assert "clq.errors" not in line


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run_cli(lambda: 1 / 0)


def test_counts_on_the_command_line():
    assert positive("3") == 3
    for text in ("0", "-1"):
        with pytest.raises(argparse.ArgumentTypeError, match="at least 1"):
            positive(text)


def test_what_detectron2_refuses_is_blamed_on_keys():
    with (
        pytest.raises(UserError, match=r"SOLVER\.X: Detectron2 refuses these values \(KeyError 'y'\)"),
        blamed_on("SOLVER.X"),
    ):
        {}["y"]
    with pytest.raises(RuntimeError), blamed_on("SOLVER.X"):  # no refusal, but a failure
        raise RuntimeError
