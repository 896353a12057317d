import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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
    ],
)
def test_a_command_that_imports_ends_with_one_line(signum, name, command):
    line = f"{name}: {signum.name}: ended before it was done; the same command starts again.\n"
    assert interrupt(signum, *command) == (128 + signum, line)


def test_programs_of_others_keep_their_handlers():
    status, printed = interrupt(signal.SIGINT, "-c", "import clq")
    assert status == -signal.SIGINT
    assert "KeyboardInterrupt" in printed
