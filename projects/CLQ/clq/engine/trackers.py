"""Writers of metrics to Weights & Biases and MLflow. A training goes on whatever becomes of them."""

import importlib.util
import json
import logging
import os
import re
import time
from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode

from clq.config import check_keys
from clq.engine.metrics_csv import ScalarWriter
from clq.errors import UserError, reason_of
from clq.utils.files import read_json, write_atomically

logger = logging.getLogger(__name__)

_MAX_FAILURES = 3
_TIMEOUT = 30  # seconds
_PACKAGES = {"WANDB": "wandb", "MLFLOW": "mlflow"}


class TrackerWriter(ScalarWriter):
    """Sends metrics to a service, as one run for each ``OUTPUT_DIR``, which a resumed training continues.

    An error of the service is a warning. After three of them in a row nothing more is sent. Nothing is sent twice: a
    resumed training sends nothing for iterations that the run already has.

    Args:
        cfg: config of the training.
        start: returns the first iteration of this training.
    """

    name = key = ""

    def __init__(self, cfg: CfgNode, start: Callable[[], int]):
        super().__init__()
        self.cfg, self._start = cfg, start
        self._failures = 0
        self._next: int | None = None  # first iteration that the run does not have; None before the run is there

    def write(self) -> None:
        rows = self.new_scalars()
        if rows or self._next is None:
            self._try(lambda: self._write(rows))

    def close(self) -> None:
        if self._next is not None:
            self._try(self.end)

    def begin(self, run: str | None) -> tuple[str, int]:
        """Begins a run, or continues the one of an id; returns its id and the first iteration that it does not have."""
        raise NotImplementedError

    def send(self, iteration: int, scalars: dict[str, float]) -> None:
        """Sends the values of an iteration."""
        raise NotImplementedError

    def end(self) -> None:
        """Ends the run."""
        raise NotImplementedError

    def _write(self, rows: dict[int, dict[str, float]]) -> None:
        if self._next is None:
            runs = self._runs()
            runs[self.key], self._next = self.begin(runs.get(self.key))
            with write_atomically(self._file, "w") as f:
                json.dump(runs, f)
        for iteration, scalars in rows.items():
            if iteration >= self._next:
                self.send(iteration, scalars)

    @property
    def _file(self) -> str:
        return os.path.join(self.cfg.OUTPUT_DIR, "trackers.json")

    def _runs(self) -> dict[str, str]:
        """The runs of the training that is resumed; none for a new one."""
        runs = read_json(self._file) if self._start() > 0 and os.path.isfile(self._file) else {}
        return runs if isinstance(runs, dict) else {}

    def _try(self, action: Callable[[], None]) -> None:
        if self._failures >= _MAX_FAILURES:
            return
        try:
            action()
            self._failures = 0
        except Exception as e:  # whatever these libraries raise; the training does not need them
            self._failures += 1
            more = "nothing more is sent" if self._failures == _MAX_FAILURES else "the training goes on"
            logger.warning(
                "LOGGING.%s: %s does not take the metrics (%s); %s.", self.key, self.name, reason_of(e), more
            )


class WandbWriter(TrackerWriter):
    """Writes to Weights & Biases."""

    name, key = "Weights & Biases", "WANDB"

    def begin(self, run: str | None) -> tuple[str, int]:
        import wandb

        settings = wandb.Settings(console="off", init_timeout=_TIMEOUT, finish_timeout=_TIMEOUT)
        folder = self.cfg.OUTPUT_DIR
        self._run = wandb.init(
            project=self.cfg.LOGGING.WANDB.PROJECT,
            name=os.path.basename(os.path.abspath(folder)),
            dir=folder,
            id=run,
            resume="allow",
            config=_plain(self.cfg),
            settings=settings,
        )
        return self._run.id, self._run.starting_step

    def send(self, iteration: int, scalars: dict[str, float]) -> None:
        self._run.log(scalars, step=iteration)

    def end(self) -> None:
        self._run.finish()


class MLflowWriter(TrackerWriter):
    """Writes to MLflow."""

    name, key = "MLflow", "MLFLOW"

    def begin(self, run: str | None) -> tuple[str, int]:
        for variable, value in (("MAX_RETRIES", "1"), ("TIMEOUT", str(_TIMEOUT))):
            os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{variable}", value)  # by default it tries for minutes
        from mlflow import MlflowClient

        self._client = client = MlflowClient()
        if run is not None:
            self._id = run
            known = client.get_metric_history(run, "total_loss")
            client.update_run(run, status="RUNNING")
            return run, 1 + max((metric.step for metric in known), default=-1)
        title = self.cfg.LOGGING.MLFLOW.EXPERIMENT
        experiment = client.get_experiment_by_name(title)
        parent = client.create_experiment(title) if experiment is None else experiment.experiment_id
        name = os.path.basename(os.path.abspath(self.cfg.OUTPUT_DIR))
        self._id = client.create_run(parent, run_name=name).info.run_id
        client.log_text(self._id, self.cfg.dump(), "config.yaml")
        return self._id, 0

    def send(self, iteration: int, scalars: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        names = {name: re.sub(r"[^\w\-./ :]", "_", name) for name in scalars}  # what MLflow accepts
        metrics = [Metric(names[name], value, now, iteration) for name, value in scalars.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def end(self) -> None:
        self._client.set_terminated(self._id)


def _plain(node: Any) -> Any:
    """A config as plain containers."""
    return {key: _plain(value) for key, value in node.items()} if isinstance(node, CfgNode) else node


def build_trackers(cfg: CfgNode, start: Callable[[], int]) -> list[TrackerWriter]:
    """Builds the writers that ``LOGGING`` enables; arguments as of :class:`TrackerWriter`."""
    kinds: tuple[type[TrackerWriter], ...] = (WandbWriter, MLflowWriter)
    return [kind(cfg, start) for kind in kinds if cfg.LOGGING[kind.key].ENABLED]


def check_trackers(cfg: CfgNode) -> None:
    """Checks that the packages for ``LOGGING`` are installed.

    Raises:
        UserError: one is not.
    """
    check_keys(cfg, "LOGGING")
    for key, package in _PACKAGES.items():
        if cfg.LOGGING[key].ENABLED and importlib.util.find_spec(package) is None:
            raise UserError(
                f"LOGGING.{key}.ENABLED True: needs the package {package}; `pip install {package}`, or set it to False."
            )
