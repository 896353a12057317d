"""Processes for tests of signals. They are forked from the tests' own, so that nothing has to be imported again."""

import multiprocessing
import os
import re
import signal
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import cv2
import torch
import torch.utils.cpp_extension  # this and the next: or each process would import them
import torch.utils.tensorboard

# Overrides of the tiny config for a smaller backbone, because checkpoints of a ResNet-18 take long to write.
SMALL = ["MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16]
SMALL += ["MODEL.RESNETS.WIDTH_PER_GROUP", 4]


class Forked:
    """A process with a session and a process group of its own, as a shell starts it; ends with all others of it.

    Args:
        function: function that the process calls. Its exit status is that of the SystemExit that this raises.
        folder: folder for what it prints.
    """

    def __init__(self, function, folder):
        folder.mkdir(exist_ok=True)
        self.output, self.errors = folder / "stdout", folder / "stderr"
        self.output.touch()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                self._prepare()
                function()
            except SystemExit as e:
                status = e.code
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(status)

    def _prepare(self):
        os.setsid()
        sys.argv = ["train_net.py"]
        sys.stdout, sys.stderr = (path.open("w", buffering=1) for path in (self.output, self.errors))
        os.dup2(sys.stdout.fileno(), 1)
        os.dup2(sys.stderr.fileno(), 2)
        forkserver._forkserver.__init__()  # that of the tests is not a child of this process
        multiprocessing.process._children.clear()  # nor are workers that other tests have left
        torch.set_num_threads(1)  # pools of threads do not survive a fork
        cv2.setNumThreads(0)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)

    def processes(self):
        """Process ids of all that runs in its session."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
            except OSError:  # it has just ended
                continue
            if session == str(self.pid) and state != "Z":
                found.append(int(path.parent.name))
        return found

    def wait_for(self, condition, seconds=120):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.output.read_text() + self.errors.read_text()
            time.sleep(0.05)

    def status(self):
        """Waits until all processes of the session have ended; returns the exit status."""
        self.wait_for(lambda: os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT))
        _, status = os.waitpid(self.pid, 0)
        self.wait_for(lambda: not self.processes(), seconds=20)
        return os.waitstatus_to_exitcode(status)

    def lines(self):
        """What it reported to stderr after the name of the script."""
        return re.findall("^train_net.py: (.*)", self.errors.read_text(), re.M)
