#!/usr/bin/env python3
"""Cuts one of two machines off in the middle of a training, and checks that both end, and that torchrun goes on.

The machines are two network namespaces on this host, joined by a veth pair. Each runs torchrun with one rank on the
CPU; one machine is enough to go on (--nnodes 1:2). When the first checkpoint is written, the link of the second machine
is taken down. The rank of each machine has to end within --limit seconds and say why in one line. Torchrun then has to
start the rank of the first machine again, from the checkpoint, and that has to come to the last iteration. No process
of the training may be left on the second machine. Its torchrun itself waits until TCP gives its connection up, about 15
minutes with the defaults of Linux; it is killed, as a scheduler would kill it.

It takes root and the command `ip`; where namespaces are not permitted, it says so and exits with status 77.

tools/two_machines.py --config-file tiny.yaml --output output/two_machines SOLVER.MAX_ITER 300
"""

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import clq
from clq.engine.signals import stop_signals
from clq.errors import UserError
from clq.utils.cli import positive, run_cli

_ROOT = Path(__file__).parents[1]
_NAMES = "clq-first", "clq-second"  # of the namespaces
_LINKS = "clqveth0", "clqveth1"
_ADDRESSES = "10.213.7.1", "10.213.7.2"
_PORT = 29413
_SKIPPED = 77


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="config of a training that takes some minutes on the CPU")
    parser.add_argument("--output", required=True, type=Path, help="a folder that does not exist yet")
    parser.add_argument("--heartbeat-timeout", type=positive, default=30, help="as in train_net.py")
    parser.add_argument("--limit", type=positive, default=60, help="seconds within which both machines have to end")
    parser.add_argument("--patience", type=positive, default=900, help="seconds to wait for all else")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that override the config")
    return parser.parse_args(argv)


def ip(*words: str) -> None:
    """Runs the command ``ip``."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def join_namespaces() -> None:
    """Makes two namespaces with one address each."""
    for name in _NAMES:
        ip("netns", "add", name)
    ip("link", "add", _LINKS[0], "netns", _NAMES[0], "type", "veth", "peer", "name", _LINKS[1], "netns", _NAMES[1])
    for name, link, address in zip(_NAMES, _LINKS, _ADDRESSES, strict=True):
        ip("-n", name, "addr", "add", f"{address}/24", "dev", link)
        ip("-n", name, "link", "set", link, "up")
        ip("-n", name, "link", "set", "lo", "up")


def processes(name: str) -> list[int]:
    """Process ids of all that runs in a namespace."""
    listed = subprocess.run(["ip", "netns", "pids", name], check=False, capture_output=True, text=True)
    return [int(pid) for pid in listed.stdout.split()]


def remove_namespaces() -> None:
    """Removes the namespaces with their processes and links."""
    for name in _NAMES:
        for pid in processes(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def start(machine: int, args: argparse.Namespace) -> subprocess.Popen:
    """Starts torchrun on a machine; its output goes to ``machine0.txt`` or ``machine1.txt`` in the output folder."""
    address = _ADDRESSES[machine]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc-per-node", "1"]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{_ADDRESSES[0]}:{_PORT}", "--rdzv-id", "clq"]
    torchrun += ["--rdzv-conf", f"is_host={int(machine == 0)},read_timeout=20", "--local-addr", address]
    torchrun += ["--max-restarts", "1", str(_ROOT / "train_net.py")]
    training = ["--config-file", args.config_file, "--resume", "--heartbeat-timeout", str(args.heartbeat_timeout)]
    training += [*args.opts, "MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(args.output / "training")]
    with (args.output / f"machine{machine}.txt").open("w") as output:
        return subprocess.Popen(
            ["ip", "netns", "exec", _NAMES[machine], *torchrun, *training],
            env={**os.environ, "GLOO_SOCKET_IFNAME": _LINKS[machine]},
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def wait_for(what: str, condition: Callable[[], object], seconds: float) -> float:
    """Waits until a condition holds; returns the seconds that it took.

    Raises:
        UserError: it does not hold in time.
    """
    begin = time.monotonic()
    while not condition():
        if time.monotonic() - begin > seconds:
            raise UserError(f"{what}: not within {seconds:g} s; see the files machine*.txt in --output.")
        time.sleep(0.2)
    return time.monotonic() - begin


def reason(output: Path) -> str | None:
    """The line with which the rank of a machine has ended."""
    found = re.search(r"^\S*train_net\.py: (.*)$", output.read_text(), re.M)
    return found and found[1]


def run(args: argparse.Namespace) -> None:
    """Trains on two machines, cuts one off, and waits for what has to follow."""
    training, outputs = args.output / "training", [args.output / f"machine{i}.txt" for i in range(2)]
    machines = [start(0, args), start(1, args)]
    wait_for("a checkpoint", (training / "last_checkpoint").exists, args.patience)
    if "World size: 2" not in (training / "log.txt").read_text() or any(m.poll() is not None for m in machines):
        raise UserError("The machines did not train together until the first checkpoint; see machine*.txt.")
    begin = time.monotonic()
    ip("-n", _NAMES[1], "link", "set", _LINKS[1], "down")
    saved = int(re.findall(r"\d+", (training / "last_checkpoint").read_text())[0])
    print(f"Trained on two machines until the checkpoint of iteration {saved}; then the link was cut.", flush=True)
    for i in range(2):
        wait_for(f"machine {i} ends", lambda i=i: reason(outputs[i]), args.limit - (time.monotonic() - begin))
        print(f"Machine {i} reported after {time.monotonic() - begin:.1f} s: {reason(outputs[i])}", flush=True)
    left = args.limit - (time.monotonic() - begin)
    wait_for("the second machine's rank ends", lambda: set(processes(_NAMES[1])) <= {machines[1].pid}, left)
    print(f"After {time.monotonic() - begin:.1f} s, no process of the training was left on machine 1.", flush=True)
    wait_for("the first machine comes to the end", lambda: machines[0].poll() is not None, args.patience)
    print(f"The torchrun of machine 0 ended with exit status {machines[0].returncode}.")
    check_training(training, saved, clq.setup_cfg(args.config_file, args.opts).SOLVER.MAX_ITER)


def check_training(folder: Path, saved: int, max_iter: int) -> None:
    """Checks that a training went on after its checkpoint and came to its end.

    Args:
        folder: OUTPUT_DIR.
        saved: iteration of the checkpoint.
        max_iter: number of iterations.

    Raises:
        UserError: it did not.
    """
    begun = [int(x) for x in re.findall(r"Starting training from iteration (\d+)", (folder / "log.txt").read_text())]
    path = folder / "finished"
    done = int(path.read_text()) if path.exists() else None
    print(f"Its trainings began in iterations {', '.join(map(str, begun))}; {done} of {max_iter} iterations are done.")
    if begun != [0, saved + 1] or done != max_iter:
        raise UserError("The first machine did not go on from the checkpoint to the end; see machine0.txt.")


@stop_signals()
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.output.exists():
        raise UserError(f"--output {args.output}: exists; name another folder.")
    try:
        remove_namespaces()  # of a run that was killed
        join_namespaces()
    except (OSError, subprocess.CalledProcessError) as e:
        print(f"Skipped: network namespaces are not permitted here ({getattr(e, 'stderr', None) or e}).")
        return _SKIPPED
    try:
        args.output.mkdir(parents=True)
        run(args)
    finally:
        remove_namespaces()
    return 0


if __name__ == "__main__":
    run_cli(main)
