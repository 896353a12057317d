"""Weights & Biases and MLflow: what is sent, and that their faults do not end a training."""

import importlib.util

import clq
import pytest
from clq.engine.trackers import MLflowWriter, TrackerWriter, WandbWriter, build_trackers, check_trackers
from clq.errors import UserError
from detectron2.utils.events import EventStorage


def config(folder, *opts):
    return clq.setup_cfg(None, ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(folder), *opts])


class Service(TrackerWriter):
    """A service that can be out of order, and remembers its runs."""

    name, key = "Service", "WANDB"

    def __init__(self, cfg, start, runs, faults=()):
        super().__init__(cfg, lambda: start)
        self.runs, self.faults = runs, set(faults)
        self.first = start

    def begin(self, run):
        run = run or f"run{len(self.runs)}"
        return run, 1 + max(self.runs.setdefault(run, {}), default=-1)

    def send(self, iteration, scalars):
        if iteration in self.faults:
            raise ConnectionError("no\nnetwork")
        self.runs[max(self.runs)][iteration] = scalars

    def end(self):
        self.ended = True


def run(writer, steps, start=0):
    with EventStorage(start) as storage:
        for i in range(start, steps):
            storage.iter = i
            storage.put_scalar("a", i * 0.5)
            writer.write()
        writer.close()


def test_each_iteration_is_sent_once_and_a_resumed_training_continues_its_run(tmp_path):
    runs = {}
    run(Service(config(tmp_path), 0, runs), 4)
    assert runs.keys() == {"run0"} and list(runs["run0"]) == [0, 1, 2, 3]
    writer = Service(config(tmp_path), 2, runs)
    run(writer, 6, start=2)
    assert runs.keys() == {"run0"} and list(runs["run0"]) == [0, 1, 2, 3, 4, 5] and writer.ended
    run(Service(config(tmp_path), 0, runs), 1)  # a new training in the same folder
    assert list(runs["run1"]) == [0]


def test_faults_are_warnings_and_three_in_a_row_end_the_sending(tmp_path, caplog):
    runs = {}
    run(Service(config(tmp_path), 0, runs, faults=[1, 2, 4, 5, 6]), 9)
    assert list(runs["run0"]) == [0, 3]
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "LOGGING.WANDB: Service does not take the metrics (no network); the training goes on."
    assert len(said) == 5 and said[-1].endswith("nothing more is sent.")


def test_a_service_that_is_never_there_does_not_end_a_training(tmp_path, caplog):
    writer = Service(config(tmp_path), 0, {})
    writer.begin = None  # not callable
    run(writer, 5)
    assert len(caplog.records) == 3


@pytest.mark.parametrize("key, package", [("WANDB", "wandb"), ("MLFLOW", "mlflow")])
def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch, key, package):
    monkeypatch.setattr("clq.engine.trackers.importlib.util.find_spec", lambda name: None)
    check_trackers(config(tmp_path))
    with pytest.raises(UserError, match=rf"^LOGGING\.{key}\.ENABLED True: needs .*`pip install {package}`"):
        check_trackers(config(tmp_path, f"LOGGING.{key}.ENABLED", True))


def test_they_are_off_by_default(tmp_path):
    assert build_trackers(config(tmp_path), lambda: 0) == []
    both = ["LOGGING.WANDB.ENABLED", True, "LOGGING.MLFLOW.ENABLED", True]
    assert [type(w) for w in build_trackers(config(tmp_path, *both), lambda: 0)] == [WandbWriter, MLflowWriter]


def needs(module):
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"{module} is not installed")


@needs("mlflow")
def test_mlflow_gets_the_metrics_once(tmp_path, monkeypatch, caplog):
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)  # MLflow puts files there
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    cfg = config(tmp_path / "training", "LOGGING.MLFLOW.EXPERIMENT", "cells")
    (tmp_path / "training").mkdir()
    for start, end in ((0, 4), (2, 6)):
        writer = MLflowWriter(cfg, lambda start=start: start)
        with EventStorage(start) as storage:
            for storage.iter in range(start, end):
                storage.put_scalars(total_loss=storage.iter * 0.5, **{"bbox/AP-a#b": 3.0}, smoothing_hint=False)
                writer.write()
            writer.close()
    assert not caplog.records
    client = MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("cells").experiment_id])
    history = client.get_metric_history(found.info.run_id, "total_loss")
    assert [(m.step, m.value) for m in history] == [(i, i * 0.5) for i in range(6)]
    assert found.data.metrics["bbox/AP-a_b"] == 3.0
    assert (found.info.run_name, found.info.status) == ("training", "FINISHED")


@needs("wandb")
def test_wandb_gets_the_metrics_without_a_network(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    writer = WandbWriter(config(tmp_path), lambda: 0)
    ended = []
    monkeypatch.setattr(writer, "end", lambda: ended.append((writer._run.summary["a"], writer._run.finish())))
    run(writer, 3)
    assert not caplog.records
    assert ended == [(0.25, None)]  # the median of 0 and 0.5; the step after it is complete with the end of the run
    assert len(list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))) == 1
