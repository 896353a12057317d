"""COCO's box metrics of what a data set's check accepts, without the images that cannot be read."""

import itertools
import json
import logging
import os
import tempfile
from contextlib import suppress

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.utils import comm
from pycocotools.coco import COCO

from clq.data.datasets import complete_metadata, is_a_json, is_declared, leaves_out_faults, load_content
from clq.data.formats.coco import to_coco
from clq.data.formats.findings import Findings, LeftOut
from clq.data.left_out import left_out_images, write_left_out
from clq.data.mapper import UNREADABLE
from clq.utils.files import write_atomically

logger = logging.getLogger(__name__)

RESULTS_FILE, TRUTH_FILE = "coco_instances_results.json", "annotations.json"


class BoxEvaluator(COCOEvaluator):
    """Detectron2's evaluator, which reads the annotations that the check of a data set accepts.

    Images that the mapper could not read (``DATASETS.ON_ERROR skip``) are left out, with what is to be found in them.
    Where the annotations that were used are not those of the json of the data set, they are written to
    ``annotations.json`` beside the results.

    Args:
        dataset_name: name of the data set.
        output_dir: folder of the results.
        left_out_folder: folder of ``left_out.jsonl``, which receives the images that were left out.
        max_dets_per_image: number of detections of an image that count.
        use_fast_impl: whether to use Detectron2's own compiled COCOeval.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str,
        *,
        left_out_folder: str,
        max_dets_per_image: int,
        use_fast_impl: bool,
    ):
        settings = {"tasks": ("bbox",), "output_dir": output_dir, "max_dets_per_image": max_dets_per_image}
        self._name, self._left_out_folder = dataset_name, left_out_folder
        self._left_out: dict[int | str, LeftOut] = {}  # by the id of the image
        self._changed = False
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

    def reset(self) -> None:
        super().reset()
        self._left_out = {}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        pairs = list(zip(inputs, outputs, strict=True))
        for record, _ in pairs:
            if UNREADABLE in record:
                entry = LeftOut(self._name, record["file_name"], None, record[UNREADABLE])
                self._left_out[record["image_id"]] = entry
        good = [pair for pair in pairs if UNREADABLE not in pair[0]]
        super().process([record for record, _ in good], [output for _, output in good])

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
        if comm.is_main_process() and self._output_dir and self._do_evaluation:
            self._write_truth(img_ids if left_out else None)
        return super().evaluate(img_ids)

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
