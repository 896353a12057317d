import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from clq.utils import early_signals

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def interrupt(signum, *command):
    """Sends a signal to a Python process that is importing torch; returns its exit status and what it printed."""
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(signum)
        printed = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    return process.returncode, printed


@pytest.mark.parametrize(
    ("signum", "name", "command"),
    [
        (signal.SIGINT, "train_net.py", ["train_net.py", "--help"]),
        (signal.SIGTERM, "demo.py", ["demo.py", "--help"]),
        (signal.SIGINT, "tools/two_machines.py", ["tools/two_machines.py", "--help"]),
        (signal.SIGINT, "clq", ["-m", "clq.data.sample", "--help"]),
        (signal.SIGTERM, "clq train", ["-m", "clq", "train", "--help"]),
    ],
)
def test_a_command_that_imports_ends_with_one_line(signum, name, command):
    line = f"{name}: {signum.name}: ended before it was done; the same command starts again.\n"
    assert interrupt(signum, *command) == (128 + signum, line)


@pytest.mark.parametrize(
    "argv, is_command, is_clq",
    [
        (["/venv/bin/clq"], True, True),
        (["clq train"], False, False),  # the library is imported, and the handlers are installed already
        (["/elsewhere/train_net.py"], False, False),
        ([str(ROOT / "train_net.py")], True, False),
        ([str(ROOT / "tools/zoo.py")], True, False),
        ([str(ROOT / "tests/zoo.py")], False, False),
        ([str(ROOT / "zoo")], False, False),
    ],
)
def test_which_programs_are_commands_of_the_project(argv, is_command, is_clq, monkeypatch):
    monkeypatch.setattr(sys, "argv", argv)
    assert early_signals._is_command() == is_command
    assert early_signals.is_clq_command() == is_clq


def test_a_wheel_knows_no_scripts(monkeypatch):
    """Outside of a checkout, a train_net.py beside site-packages is a program of others."""
    monkeypatch.setattr(early_signals, "__file__", "/venv/lib/site-packages/clq/utils/early_signals.py")
    monkeypatch.setattr(sys, "argv", [str(ROOT / "train_net.py")])
    assert not early_signals._is_command()


def test_programs_of_others_keep_their_handlers():
    status, printed = interrupt(signal.SIGINT, "-c", "import clq")
    assert status == -signal.SIGINT
    assert "KeyboardInterrupt" in printed
