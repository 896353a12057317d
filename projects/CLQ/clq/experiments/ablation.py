"""An ablation: rows, which swap cells of one detector, each trained with several seeds on one data set."""

import json
import math
import os
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import torch
from detectron2.config import CfgNode

from clq.config import setup_cfg
from clq.errors import UserError
from clq.evaluation.metrics import METRICS

TRAIN_NET = Path(__file__).parents[4] / "train_net.py"
# What makes a row; all else (backbone, widths, data, schedule) is the study's, the same for all rows.
CELLS = (
    "TOWERS",
    "CONV",
    "HEAD_PER_LEVEL",
    "LEVEL_SCALES",
    "RELU_BEFORE_P7",
    "ASSIGN",
    "BOX",
    "CLS",
    "QUALITY",
    "ALIGN",
    "REFINE",
    "TOPK_COUNTS",
)
# Rows of Detectron2's own models bring their pyramid too: some start from P2, some make P6 and P7 in another way.
_PYRAMID = "BACKBONE.NAME", "RESNETS.OUT_FEATURES", "FPN.IN_FEATURES"
_ROI = "ROI_HEADS", "ROI_BOX_HEAD", "ROI_BOX_CASCADE_HEAD", "ROI_MASK_HEAD", "MASK_ON"
# Meta-architecture -> keys and groups of keys under MODEL that make a row of it.
PARTS = {
    "CLQ": tuple(f"CLQ.{cell}" for cell in CELLS),
    "FCOS": (*_PYRAMID, "CLQ.IN_FEATURES", "CLQ.RELU_BEFORE_P7", "RETINANET"),
    "RetinaNet": (*_PYRAMID, "ANCHOR_GENERATOR", "RETINANET"),
    "GeneralizedRCNN": (*_PYRAMID, "ANCHOR_GENERATOR", "PROPOSAL_GENERATOR", "RPN", *_ROI),
}
SETTINGS, DONE = "settings.json", "done"


@dataclass(frozen=True)
class Variant:
    """One line of the table.

    Attributes:
        name: as the table shows it.
        opts: KEY, VALUE, ... as text, on top of the study's config.
    """

    name: str
    opts: tuple[str, ...]


def parse_variant(text: str) -> Variant:
    """A row from ``[NAME=][CONFIG.yaml] [KEY VALUE ...]``: all that makes it in the config, then the overrides.

    Raises:
        UserError: neither a config nor overrides, or a config that cannot be read.
    """
    name, config, words = split_variant(text)
    return Variant(name, (*(variant_settings(config) if config else ()), *words))


def split_variant(text: str) -> tuple[str, str | None, tuple[str, ...]]:
    """Name, config file or None, and overrides of a row ``[NAME=][CONFIG.yaml] [KEY VALUE ...]``.

    Raises:
        UserError: neither a config nor overrides.
    """
    # A = of an override names nothing: what starts with a config or a key has no name.
    named = re.match(r"(?![^\s=]+\.ya?ml\s|[A-Z0-9_]+\.[A-Z0-9_.]+\s)([^=]*)=", text)
    name, rest = (named[1], text[named.end() :]) if named else ("", text)
    try:
        words = shlex.split(rest)
    except ValueError as e:
        raise UserError(f"--rows {text!r}: {e}; close the quotation.") from e
    if not words:
        raise UserError(
            f"--rows {text!r}: write [NAME=]CONFIG.yaml [KEY VALUE ...], for example CLQ=configs/CLQ/x.yaml."
        )
    if not words[0].endswith((".yaml", ".yml")):
        return name or " ".join(words), None, tuple(words)
    config, *words = words
    return name or Path(config).stem, config, tuple(words)


def variant_settings(config_file: str) -> list[str]:
    """KEY, VALUE, ... of all that makes a row in its config: the meta-architecture and its parts.

    Raises:
        UserError: the config cannot be read, or is of a meta-architecture that :data:`PARTS` does not know.
    """
    model = setup_cfg(config_file, ["MODEL.DEVICE", "cpu"]).MODEL
    kind = model.META_ARCHITECTURE
    if kind not in PARTS:
        raise UserError(f"{config_file}: MODEL.META_ARCHITECTURE {kind} is not one of {', '.join(PARTS)}.")
    cells = {"META_ARCHITECTURE": kind, **_parts(model)}
    return [word for key, value in cells.items() for word in (f"MODEL.{key}", str(value))]


def _parts(model: CfgNode) -> dict:
    parts = tuple(f"{part}." for part in PARTS[model.META_ARCHITECTURE])
    return {key: value for key, value in _flat(model).items() if f"{key}.".startswith(parts)}


def differences(configs: Mapping[str, CfgNode]) -> dict[str, list[str]]:
    """For each row but the first, what differs from the first, as ``KEY value (value of the first)``.

    Of another meta-architecture it is that, and the keys that both read: what makes a row of either is its own.
    """
    first, *others = configs
    return {name: _differences(configs[name], configs[first]) for name in others}


def _differences(cfg: CfgNode, first: CfgNode) -> list[str]:
    kinds = {cfg.MODEL.META_ARCHITECTURE, first.MODEL.META_ARCHITECTURE}
    own = () if len(kinds) == 1 else tuple(f"MODEL.{part}." for kind in kinds for part in PARTS[kind])
    theirs = _flat(first)
    changed = {k: v for k, v in _flat(cfg).items() if v != theirs[k] and not f"{k}.".startswith(own)}
    short = {key: key.removeprefix("MODEL.").removeprefix("CLQ.") for key in changed}
    return [f"{short[key]} {value} ({theirs[key]})" for key, value in changed.items()]


def _flat(node: CfgNode, prefix: str = "") -> dict:
    flat = {}
    for key, value in node.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else {prefix + key: value})
    return flat


@dataclass(frozen=True)
class Run:
    """One training of a row.

    Attributes:
        config_file: of the study.
        opts: the row's, the study's overrides and the seed.
        folder: OUTPUT_DIR.
    """

    config_file: str
    opts: tuple[str, ...]
    folder: Path

    @property
    def done(self) -> bool:
        return (self.folder / DONE).is_file()

    def prepare(self) -> None:
        """Makes the folder, or checks that what it holds is of this very run.

        Raises:
            UserError: it holds a run with other settings.
        """
        cfg = setup_cfg(self.config_file, [*self.opts, "MODEL.DEVICE", "cpu"])  # the same on a machine with a GPU
        settings = {"config": cfg.dump()}
        path = self.folder / SETTINGS
        if path.is_file() and json.loads(path.read_text()) != settings:
            raise UserError(f"{self.folder}: holds a run with other settings; choose another --output or delete it.")
        self.folder.mkdir(parents=True, exist_ok=True)
        whole = path.with_suffix(".tmp")  # what is stopped while it writes leaves no half of it
        whole.write_text(json.dumps(settings, indent=1))
        whole.replace(path)

    def train(self, threads: int, gpu: str | None) -> bool:
        """Trains in a process of its own, from its last checkpoint if there is one; whether that went well."""
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        argv = ["--config-file", self.config_file, "--resume", *self.opts, "OUTPUT_DIR", str(self.folder)]
        with open(self.folder / "stdout.txt", "w") as log:
            process = subprocess.run([sys.executable, str(TRAIN_NET), *argv], env=environment, stdout=log, stderr=log)
        if process.returncode == 0:
            (self.folder / DONE).touch()
        return process.returncode == 0


def visible_gpus() -> list[str]:
    """Names for ``CUDA_VISIBLE_DEVICES`` of the GPUs that this process may use."""
    count, given = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",")[:count] if given else [str(i) for i in range(count)]


def train_all(runs: Sequence[Run], jobs: int) -> list[Run]:
    """Trains what is not done yet, ``jobs`` at a time, spread over GPUs and cores; returns the runs that failed."""
    for run in runs:
        run.prepare()
    gpus = visible_gpus()
    slots: SimpleQueue[int] = SimpleQueue()
    for slot in range(jobs):
        slots.put(slot)

    def train(run: Run) -> bool:
        slot = slots.get()
        try:
            print(f"{run.folder}: started", flush=True)
            good = run.train(max(1, (os.cpu_count() or 1) // jobs), gpus[slot % len(gpus)] if gpus else None)
            print(f"{run.folder}: {'done' if good else f'failed, see {run.folder}/stdout.txt'}", flush=True)
            return good
        finally:
            slots.put(slot)

    waiting = [run for run in runs if not run.done]
    with ThreadPoolExecutor(jobs) as pool:
        return [run for run, good in zip(waiting, pool.map(train, waiting), strict=True) if not good]


def mean_and_spread(values: Sequence[float], digits: int = 1) -> str:
    """``mean ± standard deviation`` (unbiased), or the one value; a dash where one is nan."""
    if any(map(math.isnan, values)):
        return "–"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def metric_cells(measured: Sequence[Mapping[str, float]]) -> list[str]:
    """Mean and spread of each of :data:`~clq.evaluation.metrics.METRICS` over the runs of a row."""
    return [mean_and_spread([m[name] for m in measured], 3 if name == "score-IoU" else 1) for name in METRICS]


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    rows = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in line] for line in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def loss_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Name of each loss -> (iteration, value), from the ``metrics.json`` that Detectron2 writes while it trains.

    Of an iteration that a training taken up again went through twice, the last value counts.
    """
    curves: dict[str, dict[int, float]] = {}
    for line in (folder / "metrics.json").read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # cut off where the training was stopped
            continue
        for name, value in record.items():
            if "loss" in name:
                curves.setdefault(name, {})[record["iteration"]] = value
    return {name: sorted(curve.items()) for name, curve in curves.items()}
