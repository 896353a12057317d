#!/usr/bin/env python3
"""Cuts one of two machines off in the middle of a training, and checks that both end, and that torchrun goes on.

The machines are two network namespaces on this host, joined by a veth pair. Each runs torchrun with one rank on the
CPU; one machine is enough to go on (--nnodes 1:2). When the first checkpoint is written, the link of the second machine
is taken down. The rank of each machine has to end within --limit seconds and say why in one line; torchrun then has to
start the rank of the first machine again, from the checkpoint, and come to the end of the training.

It takes root and the command `ip`; where namespaces are not permitted, it says so and exits with status 77.

tools/two_machines.py --config-file tiny.yaml --output output/two_machines SOLVER.MAX_ITER 300
"""

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

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


def remove_namespaces() -> None:
    """Removes the namespaces, and their links with them."""
    for name in _NAMES:
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
    try:
        wait_for("a checkpoint", (training / "last_checkpoint").exists, args.patience)
        joined = "World size: 2" in (training / "log.txt").read_text()
        if not joined or any(machine.poll() is not None for machine in machines):
            raise UserError("The machines did not train together until the first checkpoint; see machine*.txt.")
        print(f"Trained on two machines until {(training / 'last_checkpoint').read_text()}; now the link is cut.")
        begin = time.monotonic()
        ip("-n", _NAMES[1], "link", "set", _LINKS[1], "down")
        for i in range(2):
            wait_for(f"machine {i} ends", lambda i=i: reason(outputs[i]), args.limit - (time.monotonic() - begin))
            print(f"Machine {i} ended after at most {time.monotonic() - begin:.1f} s: {reason(outputs[i])}")
        wait_for("torchrun ends on the second machine", lambda: machines[1].poll() is not None, args.patience)
        print(f"Its torchrun ended after {time.monotonic() - begin:.1f} s with exit status {machines[1].returncode}.")
        seconds = wait_for("the first machine goes on", lambda: machines[0].poll() is not None, args.patience)
        iterations = re.findall(r"Starting training from iteration (\d+)", (training / "log.txt").read_text())
        print(
            f"The first machine began in iterations {', '.join(iterations)}, and ended {seconds:.1f} s later with exit "
            f"status {machines[0].returncode}."
        )
        if machines[0].returncode != 0 or len(iterations) < 2 or iterations[-1] == "0":
            raise UserError("The first machine did not go on from the checkpoint; see machine0.txt.")
    finally:
        for machine in machines:
            machine.terminate()  # torchrun ends its ranks
            machine.wait()


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.output.exists():
        raise UserError(f"--output {args.output}: exists; name another folder.")
    try:
        join_namespaces()
    except (OSError, subprocess.CalledProcessError) as e:
        remove_namespaces()
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
