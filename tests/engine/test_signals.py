"""Signals inside one process; tests/test_stop_signals.py has those of whole trainings."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import clq  # noqa: F401  (first: it lets Detectron2 import)
import pytest
import torch
from clq.engine import signals
from clq.errors import STOP_SIGNALS, Interrupted
from clq.utils.cli import run_cli
from forked import Forked
from torch.utils.data import DataLoader


def status_of(main):
    with pytest.raises(SystemExit) as ended:
        run_cli(main)
    return ended.value.code


@pytest.mark.parametrize("signum, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_signal_ends_a_script_with_one_line_and_its_status(signum, status, capsys):
    before = [signal.getsignal(s) for s in signals.STOP_SIGNALS]

    @signals.stop_signals()
    def main():
        signal.raise_signal(signum)
        raise AssertionError("not reached")

    assert status_of(main) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{signum.name}: ended before it was done" in line
    assert [signal.getsignal(s) for s in signals.STOP_SIGNALS] == before


def test_ctrl_c_where_no_handler_is_installed_is_one_line_too(capsys):
    assert status_of(lambda: signal.raise_signal(signal.SIGINT)) == 130
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_deferred_signal_is_recorded_and_raises_where_it_is_no_longer_deferred():
    with signals.stop_signals(), signals.deferred():
        assert signals.received() == 0
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)  # within a second: counts as the first
        assert signals.received() == signal.SIGTERM
        with pytest.raises(Interrupted), signals.deferred(False):
            raise AssertionError("not reached")
    assert signals.received() == 0


def test_a_second_signal_raises_in_a_notebook(monkeypatch):
    monkeypatch.setattr(signals, "_SECONDS_OF_ONE_SIGNAL", 0.0)
    with signals.stop_signals(), signals.deferred():
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.01)
        with pytest.raises(KeyboardInterrupt) as raised:
            signal.raise_signal(signal.SIGINT)
    assert not isinstance(raised.value, Interrupted)  # nothing was saved


def test_a_signal_that_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with signals.stop_signals():
            signal.raise_signal(signal.SIGUSR1)
            assert signals.received() == 0
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_other_threads_install_no_handlers():
    found = []

    def train():
        with signals.stop_signals(), signals.deferred():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGINT)]


def test_the_innermost_of_two_contexts_changes_nothing():
    with signals.stop_signals():
        outer = signal.getsignal(signal.SIGTERM)
        with signals.stop_signals():
            assert signal.getsignal(signal.SIGTERM) == outer
        assert signal.getsignal(signal.SIGTERM) == outer


class _Slow(torch.utils.data.Dataset):
    """Items that take a minute. A worker that has started has written a file."""

    def __init__(self, folder):
        self.folder = folder

    def __len__(self):
        return 2

    def __getitem__(self, i):
        (self.folder / f"ready{i}").touch()
        time.sleep(60)

    def is_read_by_two(self):
        return len(list(self.folder.glob("ready*"))) == 2


def _start_slow_workers(data, init=None):
    """Two workers in the middle of an item. What is returned keeps them."""
    workers = iter(signals.shield_workers(DataLoader(data, num_workers=2, worker_init_fn=init)))
    while not data.is_read_by_two():
        time.sleep(0.01)
    return workers


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_workers_of_a_killed_process_end_although_they_do_not_look_for_it(tmp_path):
    data = _Slow(tmp_path)

    def load():
        workers = _start_slow_workers(data)
        time.sleep(600)
        del workers

    with Forked(load, tmp_path) as process:
        process.wait_for(data.is_read_by_two)
        os.kill(process.pid, signal.SIGKILL)
        assert process.status() == -signal.SIGKILL


def test_workers_outlive_the_signals_of_others_and_end_with_their_process_although_they_are_stuck(tmp_path):
    """A thread of a library receives signals that the others block, unless they are ignored."""
    fork, kept = multiprocessing.get_context("fork"), []

    def load(alive):
        kept.append(_start_slow_workers(_Slow(tmp_path), init=_start_a_thread))
        workers = multiprocessing.active_children()
        for signum in STOP_SIGNALS:
            subprocess.run(["kill", f"-{signum}", *(str(worker.pid) for worker in workers)], check=True)
        time.sleep(0.5)
        alive.value = sum(worker.is_alive() for worker in workers)

    alive = fork.Value("i", 0)
    process = fork.Process(target=load, args=(alive,))
    process.start()
    process.join(30)
    try:
        assert process.exitcode == 0  # and not None, for one that waits for its workers
        assert alive.value == 2
    finally:
        process.kill()


def _start_a_thread(worker_id):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
