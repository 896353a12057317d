"""The command ``clq``: its help, its mistakes, and what it imports."""

import importlib.util
import os
import re
import subprocess
import sys

import clq
import pytest
from clq.commands.main import COMMANDS, main


def clq_process(*argv, flags=(), **kwargs):
    command = [sys.executable, *flags, "-m", "clq", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **kwargs)


def test_help_names_every_command(run_clq, capsys):
    for argv in ((), ("--help",), ("-h",)):
        assert run_clq(*argv) == 0
        printed = capsys.readouterr().out
        assert re.findall(r"^  (\S+)  ", printed, re.M) == list(COMMANDS)


def test_every_command_has_a_module():
    for name, (module, what) in COMMANDS.items():
        assert importlib.util.find_spec(module), name
        assert what and not what.endswith(".")


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"predict"}))
def test_help_of_a_command_names_it(name, run_clq, capsys):
    assert run_clq(name, "--help") == 0
    assert capsys.readouterr().out.startswith(f"usage: clq {name} ")


@pytest.mark.parametrize("typed, hint", [("trian", "did you mean train?"), ("chek-data", "did you mean check-data?")])
def test_an_unknown_command_is_one_line_with_the_nearest_name(typed, hint, run_clq, capsys):
    assert run_clq(typed, "--config-file", "x.yaml") == 2
    assert capsys.readouterr().err == f"clq: {typed}: no such command; {hint}\n"


def test_an_unknown_command_that_is_near_to_none(run_clq, capsys):
    assert run_clq("--config-file", "x.yaml") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("clq: --config-file: no such command; choose one of train, eval, ")


def test_help_and_version_import_no_torch():
    for option in ("--help", "--version"):
        done = clq_process(option, flags=["-X", "importtime"])
        assert done.returncode == 0, done.stderr
        imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
        assert "clq.commands.main" in imported
        assert not imported & {"torch", "numpy", "detectron2", "PIL", "clq.library"}
    assert done.stdout == f"clq {clq.__version__}\n"


def test_the_doctor_works_without_any_package():
    done = clq_process("doctor", flags=["-S"], env={**os.environ, "PYTHONPATH": os.path.dirname(clq.__path__[0])})
    assert done.returncode == 1, done.stderr
    assert "BROKEN  ModuleNotFoundError: No module named 'torch'" in done.stdout and not done.stderr


def test_a_command_without_its_packages_is_one_line():
    done = clq_process("train", flags=["-S"], env={**os.environ, "PYTHONPATH": os.path.dirname(clq.__path__[0])})
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("clq train: No module named ") and line.endswith("`clq doctor` reports how to fix it.")


def test_a_faulty_import_within_the_project_is_not_hidden(monkeypatch, tmp_path):
    monkeypatch.setitem(COMMANDS, "broken", ("clq.commands.gone", "is not there"))
    monkeypatch.setattr(sys, "argv", sys.argv)
    with pytest.raises(ModuleNotFoundError, match=r"clq\.commands\.gone"):
        main(["broken"])


def test_mistakes_name_the_command(run_clq, capsys):
    assert run_clq("eval", "--config-file", "gone.yaml") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("clq eval: gone.yaml: no such config file")


def test_the_names_of_the_library_are_there_when_a_program_is_called_clq(tmp_path):
    """It looks like the command, which imports them when they are used."""
    program = tmp_path / "clq"
    program.write_text("import sys, clq\nassert 'torch' not in sys.modules\nclq.setup_cfg(None)\nclq.CLQ\nclq.gone\n")
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "AttributeError: module 'clq' has no attribute 'gone'"
