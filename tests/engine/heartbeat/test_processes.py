import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from clq.engine.heartbeat import processes
from clq.engine.heartbeat.processes import Idleness, Process, Status

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc on this system")


def use(pid, cpu_time):
    return Status("R", cpu_time, Process(pid, 0))


def wait_for(condition):
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def test_children_are_found_but_for_one(sleeper):
    found = [child.process.pid for child in processes.descendants(os.getpid(), besides=0)]
    assert sleeper.pid in found
    others = [child.process.pid for child in processes.descendants(os.getpid(), besides=sleeper.pid)]
    assert sorted([*others, sleeper.pid]) == sorted(found)


def test_a_stopped_process_is_seen_and_killed(sleeper):
    sleeper.send_signal(signal.SIGSTOP)
    wait_for(lambda: processes.status(sleeper.pid).state == "T")
    processes.kill([processes.status(sleeper.pid).process])
    assert sleeper.wait(timeout=5) == -signal.SIGKILL


def test_a_later_process_of_the_same_number_is_not_killed(sleeper):
    process = processes.status(sleeper.pid).process
    processes.kill([process._replace(started=process.started - 1)])
    with pytest.raises(subprocess.TimeoutExpired):
        sleeper.wait(timeout=0.2)
    assert processes.status(2**22 + 1) is None


def test_idleness_grows_without_work():
    """2% of a window of 10 s are 0.2 s of processor time."""
    idleness = Idleness(10)
    assert idleness.update(0, [use(1, 5.0)], 7, False) == 0
    assert idleness.update(4, [use(1, 5.1)], 7, False) == 4  # polling
    assert idleness.update(9, [use(1, 5.15)], 7, False) == 9
    assert idleness.update(10, [use(1, 5.3)], 7, False) == 0  # 0.3 s since the beginning: work
    assert idleness.update(12, [use(1, 5.3)], 7, False) == 2
    assert idleness.update(13, [use(1, 5.3)], 8, False) == 0  # the next iteration
    assert idleness.update(15, [use(1, 5.3)], 8, False) == 2
    assert idleness.update(16, [use(1, 5.3)], 8, True) == 0  # writes a checkpoint
    assert idleness.update(18, [use(1, 5.3), use(2, 0.5)], 8, False) == 0  # a worker process that is new
    assert idleness.update(19, [use(1, 5.3)], 8, False) == 1  # which has ended
    assert idleness.update(20, [], 8, False) == 0  # nothing is known
