"""What a study keeps of its runs: small enough for git, and enough to compare variants again without a training."""

import json
import math
from pathlib import Path
from threading import Lock

from detectron2.config import CfgNode

from clq.errors import UserError
from clq.evaluation.coco import RESULTS_FILE, truth_file
from clq.evaluation.matches import Matches
from clq.evaluation.metrics import box_metrics
from clq.experiments.comparison import cached_matches
from clq.experiments.runs import Run
from clq.utils.files import read_json


class Store:
    """A folder with ``VARIANT_seedN.npz`` of each run, and beside it a json file with metrics and settings.

    The json file is a record of tools/zoo.py, whose ``data``, ``schedule`` and ``machine`` are sentences to be written
    by hand; they are kept.

    Args:
        folder: folder of the npz files, made where it is missing. The metrics are in ``FOLDER.json``.
    """

    def __init__(self, folder: Path):
        self.folder, self.metrics_file = folder, Path(f"{folder}.json")
        self._lock = Lock()  # trainings end in threads of their own

    def file(self, variant: str, seed: int) -> Path:
        """Where the matches of a run are, or would be."""
        return self.folder / f"{''.join(c if c.isalnum() else '_' for c in variant)}_seed{seed}.npz"

    def add(self, variant: str, settings: str, seed: int, run: Run, cfg: CfgNode) -> None:
        """Keeps a finished run: the matches and COCO's metrics of its first test set.

        Args:
            variant: its name.
            settings: of the variant, as on the command line.
            seed: of the run.
            run: whose folder holds the results.
            cfg: of the run.
        """
        dataset, most = cfg.DATASETS.TEST[0], cfg.TEST.DETECTIONS_PER_IMAGE
        results = run.folder / "inference" / dataset / RESULTS_FILE
        annotations = truth_file(results, dataset)
        metrics = box_metrics(annotations, str(results), most)
        matches = cached_matches(run.folder, annotations, results, most)
        with self._lock:
            self.folder.mkdir(parents=True, exist_ok=True)
            content = self.content()
            entry = content["rows"].setdefault(variant, {"settings": settings, "seeds": {}})
            entry["settings"] = settings
            # json has no nan
            entry["seeds"][str(seed)] = {k: None if math.isnan(v) else round(v, 4) for k, v in metrics.items()}
            _replace(self.metrics_file, json.dumps(content, indent=1))
            matches.save(str(self.file(variant, seed)))  # last: what has this file is kept whole

    def content(self) -> dict:
        """The json file, or that of an empty store.

        Raises:
            UserError: the json file cannot be read, or is none of a store.
        """
        if not self.metrics_file.is_file():
            return _new(self.folder.name)
        content = read_json(self.metrics_file)
        try:
            _seeds(content)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise UserError(
                f"{self.metrics_file}: is not what tools/study.py writes beside its store; choose another folder."
            ) from None
        return content

    def matches(self) -> dict[str, dict[int, Matches]]:
        """Variant -> seed -> matches of all runs, in the order in which the variants were first kept.

        Raises:
            UserError: the json file or one of the npz files is missing or cannot be read.
        """
        if not self.metrics_file.is_file():
            raise UserError(f"{self.metrics_file}: no such file; tools/study.py writes it beside its store.")
        seeds = _seeds(self.content())
        return {v: {seed: Matches.load(str(self.file(v, seed))) for seed in seeds[v]} for v in seeds}


def _seeds(content: dict) -> dict[str, list[int]]:
    return {variant: sorted(map(int, row["seeds"])) for variant, row in content["rows"].items()}


def _new(name: str) -> dict:
    return {"data": name, "schedule": "", "machine": "", "rows": {}}


def _replace(path: Path, text: str) -> None:
    whole = path.with_suffix(".tmp")  # what is stopped while it writes leaves no half of it
    whole.write_text(text)
    whole.replace(path)
