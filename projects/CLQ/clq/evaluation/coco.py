"""COCO's box metrics of what a data set's check accepts, without the images that cannot be read."""

import itertools
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from detectron2.utils import comm
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from clq.data.datasets import complete_metadata, is_a_json, is_declared, leaves_out_faults, load_content
from clq.data.formats.coco import to_coco
from clq.data.formats.findings import Findings, LeftOut
from clq.data.left_out import left_out_images, write_left_out
from clq.data.mapper import UNREADABLE
from clq.errors import UserError
from clq.inference.results import QUALITY_FIELDS
from clq.modeling.postprocess import moved_to_image
from clq.utils.files import write_atomically

logger = logging.getLogger(__name__)

RESULTS_FILE, TRUTH_FILE = "coco_instances_results.json", "annotations.json"


@dataclass(frozen=True)
class ReportSettings:
    """What a report needs to know.

    Attributes:
        precision: precision that the thresholds of thresholds_precision.json reach.
        nms_thresh: threshold of the detector's NMS.
    """

    precision: float
    nms_thresh: float


class BoxEvaluator(COCOEvaluator):
    """Detectron2's evaluator, which reads the annotations that the check of a data set accepts.

    Images that the mapper could not read (``DATASETS.ON_ERROR skip``) are left out, with what is to be found in them.
    Where the annotations that were used are not those of the json of the data set, they are written to
    ``annotations.json`` beside the results. Where the detector has a quality branch, the results hold the parts of the
    score, and the FPN level of each detection. See :mod:`clq.evaluation.report` for the report.

    Args:
        dataset_name: name of the data set.
        output_dir: folder of the results.
        left_out_folder: folder of ``left_out.jsonl``, which receives the images that were left out.
        max_dets_per_image: number of detections of an image that count.
        use_fast_impl: whether to use Detectron2's own compiled COCOeval.
        quality_name: ``MODEL.CLQ.QUALITY.NAME``, by which the results call the output of the quality branch.
        report: settings of the report; None if none is to be written.

    Attributes:
        report_numbers: the most important numbers of the report on the last evaluation, None where there is none.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str,
        *,
        left_out_folder: str,
        max_dets_per_image: int,
        use_fast_impl: bool,
        quality_name: str = "none",
        report: ReportSettings | None = None,
    ):
        settings = {"tasks": ("bbox",), "output_dir": output_dir, "max_dets_per_image": max_dets_per_image}
        self._name, self._left_out_folder = dataset_name, left_out_folder
        self._left_out: dict[int | str, LeftOut] = {}  # by the id of the image
        self._changed = False
        self._quality_field, self._report = QUALITY_FIELDS.get(quality_name, "quality"), report
        self._model: Any = None
        self._wanted_candidates, self._coco_eval = 0, None
        self._candidates: list[tuple[int | str, list[dict]]] = []  # of images, by their ids
        self.report_numbers: dict[str, float] | None = None
        if not is_declared(dataset_name):
            super().__init__(dataset_name, use_fast_impl=use_fast_impl, **settings)
            return
        with tempfile.TemporaryDirectory() as folder:  # Detectron2's constructor reads a file, but not the content
            nothing = os.path.join(folder, "nothing.json")
            with open(nothing, "w", encoding="utf-8") as f:
                json.dump({"images": [], "annotations": []}, f)
            MetadataCatalog.get(nothing).json_file = nothing
            super().__init__(nothing, use_fast_impl=use_fast_impl, **settings)
            MetadataCatalog.remove(nothing)
        findings = Findings(dataset_name, skip=leaves_out_faults(dataset_name))
        content = load_content(dataset_name, findings)
        findings.raise_faults()
        complete_metadata(dataset_name, content)
        self._changed = bool(findings.faults or findings.notes) or not is_a_json(dataset_name)
        self._metadata = MetadataCatalog.get(dataset_name)
        self._coco_api: COCO = to_coco(content)
        self._do_evaluation = content.annotations is not None

    def keep_candidates(self, model: nn.Module, count: int) -> None:
        """Keeps the candidates before NMS of the first images, for the report, if there will be one.

        Args:
            model: detector, which sees these images a second time.
            count: number of images, over all processes.

        Raises:
            UserError: the model has no candidates.
        """
        if self._report is None:
            return
        self._model = model.module if isinstance(model, DistributedDataParallel) else model
        self._wanted_candidates = math.ceil(count / comm.get_world_size())
        if not hasattr(self._model, "candidates"):
            kind = type(self._model).__name__
            raise UserError(f"TEST.REPORT_CANDIDATES {count}: {kind} models give no candidates; set it to 0.")

    def reset(self) -> None:
        super().reset()
        self._left_out, self._candidates, self._coco_eval, self.report_numbers = {}, [], None, None

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        pairs = list(zip(inputs, outputs, strict=True))
        for record, _ in pairs:
            if UNREADABLE in record:
                entry = LeftOut(self._name, record["file_name"], None, record[UNREADABLE])
                self._left_out[record["image_id"]] = entry
        good = [pair for pair in pairs if UNREADABLE not in pair[0]]
        records, before = [record for record, _ in good], len(self._predictions)
        super().process(records, [output for _, output in good])
        for (_, output), prediction in zip(good, self._predictions[before:], strict=True):
            add_parts(prediction["instances"], output["instances"], self._quality_field)
        for record in records[: self._wanted_candidates - len(self._candidates)]:
            found = moved_to_image(self._model.candidates([record])[0], record).to(self._cpu_device)
            results = instances_to_coco_json(found, record["image_id"])
            add_parts(results, found, self._quality_field)
            self._candidates.append((record["image_id"], results))

    def evaluate(self, img_ids: list | None = None) -> dict:
        gathered = comm.gather(self._left_out, dst=0) if self._distributed else [self._left_out]
        left_out = dict(itertools.chain(*(entries.items() for entries in gathered)))
        if left_out and comm.is_main_process():
            first = next(iter(left_out.values()))
            count = len(left_out), len(self._coco_api.imgs)
            logger.warning("data set %s: %d of %d images are left out; the first: %s", self._name, *count, first.reason)
            known = left_out_images(self._name)  # the check has listed these already
            write_left_out(self._left_out_folder, (e for i, e in left_out.items() if (e.image, i) not in known))
            wanted = self._coco_api.imgs.keys() - left_out.keys()
            img_ids = sorted(wanted if img_ids is None else wanted & set(img_ids))
        kept = comm.gather(self._candidates, dst=0) if self._distributed else [self._candidates]
        self._candidates = list(itertools.chain(*kept))
        if comm.is_main_process() and self._output_dir and self._do_evaluation:
            self._write_truth(img_ids if left_out else None)
        return super().evaluate(img_ids)

    def _derive_coco_results(self, coco_eval: COCOeval | None, iou_type: str, class_names=None) -> dict:
        self._coco_eval = coco_eval
        return super()._derive_coco_results(coco_eval, iou_type, class_names)

    def _eval_predictions(self, predictions: list[dict], img_ids: list | None = None) -> None:
        super()._eval_predictions(predictions, img_ids)
        if self._report is None or not self._output_dir or not self._do_evaluation:
            return
        try:
            results = list(itertools.chain(*(p["instances"] for p in predictions)))
            self.report_numbers = self._write_report(self._report, results, img_ids)
        except Exception:  # the metrics must not be lost, and `clq report` can write it later
            logger.exception("data set %s: the report could not be written", self._name)

    def _write_report(self, settings: ReportSettings, results: list[dict], img_ids: list | None) -> dict[str, float]:
        """Writes the report beside the results, and returns its most important numbers."""
        from clq.evaluation.report.analysis import analyse, evaluate_coco  # matplotlib takes time to import
        from clq.evaluation.report.candidates import Candidates
        from clq.evaluation.report.run import make_run
        from clq.evaluation.report.truth import truth_of
        from clq.evaluation.report.write import write_report

        start, max_dets = time.perf_counter(), self._max_dets_per_image[2]
        run = make_run(self._name, truth_of(self._coco_api, img_ids), results, max_dets=max_dets)
        candidates = None
        if self._candidates:
            ids = self._metadata.thing_dataset_id_to_contiguous_id
            found = list(itertools.chain(*(results for _, results in self._candidates)))
            dataset_ids = {index: category for category, index in ids.items()}
            found = [{**result, "category_id": dataset_ids[result["category_id"]]} for result in found]
            candidates = Candidates([image for image, _ in self._candidates], found, settings.nms_thresh, max_dets)
            candidates.save(self._output_dir)
        analysis = analyse(
            run,
            self._coco_eval or evaluate_coco(run, max_dets),
            precision=settings.precision,
            nms_thresh=settings.nms_thresh,
            candidates=candidates,
        )
        path = write_report([analysis], self._output_dir, self._metadata.get("image_root"))
        logger.info("report: %s (%.1f s)", path, time.perf_counter() - start)
        return analysis.summary()

    def _write_truth(self, image_ids: list | None) -> None:
        """Writes the annotations of these images, or of all, if they are not those of the json of the data set."""
        path = os.path.join(self._output_dir, TRUTH_FILE)
        if image_ids is None and not self._changed:
            with suppress(FileNotFoundError):
                os.remove(path)
            return
        data, wanted = dict(self._coco_api.dataset), set(self._coco_api.imgs if image_ids is None else image_ids)
        data["images"] = [image for image in data["images"] if image["id"] in wanted]
        data["annotations"] = [a for a in data["annotations"] if a["image_id"] in wanted]
        os.makedirs(self._output_dir, exist_ok=True)
        with write_atomically(path, "w") as f:
            json.dump(data, f)


def truth_file(results_file: str | os.PathLike, dataset_name: str) -> str:
    """The json with the annotations that results were evaluated against.

    Args:
        results_file: ``coco_instances_results.json`` of an evaluation.
        dataset_name: name of the data set.
    """
    path = os.path.join(os.path.dirname(results_file), TRUTH_FILE)
    return path if os.path.isfile(path) else MetadataCatalog.get(dataset_name).json_file


def report_on_results(dataset_name: str, folder: str, settings: ReportSettings, max_dets: int) -> None:
    """Writes the report on an evaluation that is over, without candidates. A failure is logged.

    Args:
        dataset_name: name of the data set.
        folder: folder with the results of the evaluation, which receives the report.
        settings: settings of the report.
        max_dets: number of detections of an image that count.
    """
    from clq.evaluation.report.analysis import analyse, evaluate_coco  # matplotlib takes time to import
    from clq.evaluation.report.run import read_run
    from clq.evaluation.report.truth import read_annotations
    from clq.evaluation.report.write import write_report

    results = os.path.join(folder, RESULTS_FILE)
    try:
        run = read_run(dataset_name, results, read_annotations(truth_file(results, dataset_name)), max_dets)
        evaluation = evaluate_coco(run, max_dets)
        analysis = analyse(run, evaluation, precision=settings.precision, nms_thresh=settings.nms_thresh)
        images = MetadataCatalog.get(dataset_name).get("image_root")
        logger.info("report: %s", write_report([analysis], folder, images))
    except UserError as e:  # such as a data set without annotations
        logger.warning("data set %s: no report is written (%s)", dataset_name, e)
    except Exception:  # the training must not be lost, and `clq report` can write it later
        logger.exception("data set %s: the report could not be written", dataset_name)


def add_parts(results: Iterable[dict], found: Instances, quality_field: str) -> None:
    """Adds to COCO results what the instances that they were made of have besides.

    Args:
        results: as :func:`instances_to_coco_json` makes them.
        found: instances, which may have ``cls_scores``, ``pred_quality`` and ``levels``.
        quality_field: name of the output of the quality branch in the results.
    """
    names = {"cls_scores": "cls_score", "pred_quality": quality_field, "levels": "level"}
    for name, key in names.items():
        if found.has(name):
            for result, value in zip(results, found.get(name).tolist(), strict=True):
                result[key] = value if name == "levels" else float(f"{value:.6g}")
