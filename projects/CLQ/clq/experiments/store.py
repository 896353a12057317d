"""What a study keeps of its runs: small enough for git, and enough to compare variants again without a training."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Lock

from detectron2.config import CfgNode

from clq.errors import UserError
from clq.evaluation.coco import RESULTS_FILE, truth_file
from clq.evaluation.matches import Matches
from clq.evaluation.metrics import box_metrics
from clq.experiments.comparison import cached_matches
from clq.experiments.runs import Run
from clq.utils.files import read_json, write_atomically


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

    def missing(self, variants: Mapping[str, str], seeds: Iterable[int]) -> list[tuple[str, int]]:
        """The runs that are not kept yet, as (variant, seed), all variants with the first seed before the next seed.

        Args:
            variants: name -> its settings, see :meth:`add`.
            seeds: of each variant.

        Raises:
            UserError: a variant is kept with other settings, two variants would share a file, or a file of a run that
                the json file lists is missing or damaged.
        """
        rows = self.content()["rows"]
        names = dict.fromkeys([*rows, *variants])
        if len({self.file(name, 0) for name in names}) < len(names):
            raise UserError(f"--variants: {', '.join(names)} need names that differ in their letters and digits.")
        for name in variants:
            if name in rows and rows[name].get("settings") != variants[name]:
                kept = rows[name].get("settings", "unknown settings")
                raise UserError(
                    f"{self.metrics_file}: {name} is kept with {kept}, which is not {variants[name]}; choose another "
                    "--store, or another name."
                )
            for seed in rows.get(name, {}).get("seeds", {}):
                Matches.load(str(self.file(name, int(seed))))
        runs = [(name, seed) for seed in dict.fromkeys(seeds) for name in variants]
        return [(name, seed) for name, seed in runs if str(seed) not in rows.get(name, {}).get("seeds", {})]

    def add(self, variant: str, settings: str, seed: int, run: Run, cfg: CfgNode) -> None:
        """Keeps a finished run: the matches and COCO's metrics of its first test set. For one process at a time.

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
        with self._lock:  # also because each evaluation replaces sys.stdout for a while
            metrics = box_metrics(annotations, str(results), most)
            matches = cached_matches(run.folder, annotations, results, most)
            self.folder.mkdir(parents=True, exist_ok=True)
            matches.save(str(self.file(variant, seed)))  # first: a run that the json file lists has its file
            content = self.content()
            entry = content["rows"].setdefault(variant, {"settings": settings, "seeds": {}})
            # json has no nan
            entry["seeds"][str(seed)] = {k: None if math.isnan(v) else round(v, 4) for k, v in metrics.items()}
            with write_atomically(self.metrics_file, "w") as f:
                f.write(json.dumps(content, indent=1))

    def content(self) -> dict:
        """The json file, or that of an empty store.

        Raises:
            UserError: the json file cannot be read, or is none of a store.
        """
        if not self.metrics_file.exists():
            return {"data": self.folder.name, "schedule": "", "machine": "", "rows": {}}
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
            UserError: the json file or one of the npz files is missing or cannot be read, or there is no run.
        """
        if not self.metrics_file.exists():
            raise UserError(f"{self.metrics_file}: no such file; tools/study.py writes it beside its store.")
        seeds = _seeds(self.content())
        if not seeds:
            raise UserError(f"{self.metrics_file}: holds no run yet; run tools/study.py.")
        return {v: {seed: Matches.load(str(self.file(v, seed))) for seed in seeds[v]} for v in seeds}


def _seeds(content: dict) -> dict[str, list[int]]:
    return {variant: sorted(int(seed) for seed, _ in row["seeds"].items()) for variant, row in content["rows"].items()}
