"""Exit status and error messages of command lines, their argument types, and variants."""

import argparse

import pytest
from clq.errors import UserError
from clq.utils.cli import Variant, count, parse_variant, positive, run_cli


def status_of(main):
    with pytest.raises(SystemExit) as exited:
        run_cli(main)
    return exited.value.code


@pytest.mark.parametrize("result, status", [(None, 0), (0, 0), (1, 1), ({"bbox": {}}, 0)])
def test_the_exit_status_is_the_integer_that_main_returns(result, status):
    assert status_of(lambda: result) == status


def test_a_mistake_is_one_line_even_from_a_worker_process_of_a_data_loader(capsys):
    def direct():
        raise UserError("a.png: is not an image.")

    def from_a_worker():  # torch raises the error again with the whole traceback as its message
        trace = "Original Traceback (most recent call last):\n  File ...\nclq.errors.UserError: a.png: is not an image."
        raise UserError(f"Caught UserError in DataLoader worker process 0.\n{trace}")

    for main in (direct, from_a_worker):
        assert status_of(main) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith(": a.png: is not an image.")
        assert "clq.errors" not in line


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run_cli(lambda: 1 / 0)


def test_counts_have_a_lower_limit():
    assert positive("3") == count("3") == 3
    assert count("0") == 0
    for parse, text in ((positive, "0"), (positive, "-1"), (count, "-1")):
        with pytest.raises(argparse.ArgumentTypeError, match="at least 1"):
            parse(text)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("configs/ATSS/x.yaml", Variant("x", "configs/ATSS/x.yaml", ())),
        ("MODEL.CLQ.TOPK 5", Variant("MODEL.CLQ.TOPK 5", None, ("MODEL.CLQ.TOPK", "5"))),
        ("a b=x.yaml K 'c d'", Variant("a b", "x.yaml", ("K", "c d"))),
        ("B.yaml, alone=MODEL.CLQ.TOPK 5", Variant("B.yaml, alone", None, ("MODEL.CLQ.TOPK", "5"))),
        # The equals sign of a value ends no name.
        ("x.yaml MODEL.WEIGHTS /a=b.pth", Variant("x", "x.yaml", ("MODEL.WEIGHTS", "/a=b.pth"))),
        ("MODEL.WEIGHTS /a=b.pth", Variant("MODEL.WEIGHTS /a=b.pth", None, ("MODEL.WEIGHTS", "/a=b.pth"))),
        ("ours=x.yaml MODEL.WEIGHTS /a=b.pth", Variant("ours", "x.yaml", ("MODEL.WEIGHTS", "/a=b.pth"))),
    ],
)
def test_a_variant_is_a_name_a_config_and_overrides(text, expected):
    assert parse_variant(text) == expected


@pytest.mark.parametrize(
    "text, message", [("x=", r"'x=': write \[NAME=\]CONFIG\.yaml"), ("x.yaml A 'b", "No closing quotation; close the")]
)
def test_a_variant_that_cannot_be_parsed_is_refused(text, message):
    with pytest.raises(UserError, match=rf"^--variants .*{message}"):
        parse_variant(text)
