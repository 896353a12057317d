"""What a detector found in an image, in the forms that programs, notebooks and other libraries take."""

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from PIL import Image

from clq.data.categories import Categories
from clq.errors import UserError
from clq.inference.drawing import Label, draw_boxes

if TYPE_CHECKING:
    import supervision

# Lowest final score at which a detection is drawn. Joint scores are products and therefore lower than class scores: on
# the sample data, thresholds from 0.35 to 0.4 give the best F1 at IoU 0.5 (three seeds).
DRAWING_THRESHOLD = 0.4
# The name of the quality branch's output in JSON, by MODEL.CLQ.QUALITY.NAME. Other branches have "quality".
QUALITY_FIELDS = {"iou": "predicted_iou", "centerness": "centerness"}


class Result:
    """The N detections in an image, by decreasing score.

    A notebook shows it as the image with its detections.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        instances: Detectron2's instances on the CPU, with ``pred_boxes``, ``scores``, ``pred_classes`` and, where there
            is a quality branch, ``cls_scores`` and ``pred_quality``.
        categories: ids and names of the model's classes.
        path: path of the image, or None.
    """

    def __init__(
        self,
        image: np.ndarray,
        instances: Instances,
        categories: Categories,
        *,
        quality_name: str = "none",
        path: str | None = None,
    ):
        """Initializes the result.

        Args:
            image: as the attribute.
            instances: as the attribute.
            categories: as the attribute.
            quality_name: value of ``MODEL.CLQ.QUALITY.NAME``.
            path: as the attribute.
        """
        self.image = image
        self.instances = instances
        self.categories = categories
        self.path = path
        self._quality_name = quality_name

    def __len__(self) -> int:
        return len(self.instances)

    def __repr__(self) -> str:
        counts = {name: self.names.count(name) for name in dict.fromkeys(self.names)}
        found = ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing"
        return f"<Result{f' {self.path}' if self.path else ''}: {found}>"

    @property
    def boxes(self) -> np.ndarray:
        """(N, 4) float32: x1, y1, x2, y2 in pixels of the image."""
        return self.instances.pred_boxes.tensor.numpy()

    @property
    def scores(self) -> np.ndarray:
        """(N,) float32: the final scores, by which detections are ranked."""
        return self.instances.scores.numpy()

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64: indices of the classes, from 0 to K - 1."""
        return self.instances.pred_classes.numpy()

    @property
    def names(self) -> list[str]:
        """The names of the N classes."""
        return [self.categories.names[label] for label in self.labels]

    @property
    def cls_scores(self) -> np.ndarray | None:
        """(N,) float32: the class scores, without the quality; None if the detector has no quality branch."""
        return self.instances.cls_scores.numpy() if self.instances.has("cls_scores") else None

    @property
    def predicted_iou(self) -> np.ndarray | None:
        """(N,) float32: the predicted IoU of each box, from 0 to 1; None if the detector predicts none."""
        predicts = self._quality_name == "iou" and self.instances.has("pred_quality")
        return self.instances.pred_quality.numpy() if predicts else None

    def above(self, threshold: float | np.ndarray) -> "Result":
        """The detections with a final score of at least a threshold.

        Args:
            threshold: the threshold; or an array, (K,), of one for each class.
        """
        least = threshold if isinstance(threshold, float | int) else threshold[self.labels]
        kept = self.instances[torch.from_numpy(self.scores >= least)]
        return Result(self.image, kept, self.categories, quality_name=self._quality_name, path=self.path)

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """COCO results, with the factors of the final score.

        Args:
            image_id: id of the image in the results.

        Returns:
            For each detection a dictionary with ``image_id``, ``file_name`` (the path), ``category_id``,
            ``category_name``, ``bbox`` (XYWH in pixels of the upright image) and ``score`` (final). If the detector has
            a quality branch, there are also ``cls_score`` and, depending on the branch, ``predicted_iou`` (a
            probability, before the exponent alpha is applied), ``centerness`` or ``quality``.
        """
        results = instances_to_coco_json(self.instances, image_id)
        for i, result in enumerate(results):
            label = result["category_id"]
            result["file_name"] = self.path
            result["category_id"], result["category_name"] = self.categories.ids[label], self.categories.names[label]
            if self.instances.has("pred_quality"):
                result["cls_score"] = self.instances.cls_scores[i].item()
                field = QUALITY_FIELDS.get(self._quality_name, "quality")
                result[field] = self.instances.pred_quality[i].item()
        return results

    def to_supervision(self) -> "supervision.Detections":
        """Detections of the library supervision, with ``data["class_name"]`` and the factors of the score.

        Raises:
            UserError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as e:
            raise UserError("to_supervision needs the package supervision; pip install supervision.") from e
        data: dict[str, Any] = {"class_name": np.array(self.names, dtype=str)}
        factors = {"cls_score": self.cls_scores, "predicted_iou": self.predicted_iou}
        data.update({name: values for name, values in factors.items() if values is not None})
        return supervision.Detections(xyxy=self.boxes, confidence=self.scores, class_id=self.labels, data=data)

    def draw(self, threshold: float | np.ndarray = DRAWING_THRESHOLD) -> Image.Image:
        """The image with a box for each detection, labelled with its class, its score and its predicted IoU.

        The name of the class is left out where there is a single one.

        Args:
            threshold: lowest final score of a detection that is drawn, or one for each class; see :meth:`above`.
        """
        drawn = self.above(threshold)
        ious = [None] * len(drawn) if drawn.predicted_iou is None else drawn.predicted_iou.tolist()
        names = drawn.names if len(self.categories.names) > 1 else [""] * len(drawn)
        labels = [
            Label(name, (f"{score:.2f}", *([] if iou is None else [f"IoU {iou:.2f}"])))
            for name, score, iou in zip(names, drawn.scores.tolist(), ious, strict=True)
        ]
        return draw_boxes(self.image, drawn.boxes, drawn.labels.tolist(), labels)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.draw().save(buffer, format="PNG")
        return buffer.getvalue()


def to_rgb(image: np.ndarray, image_format: str) -> np.ndarray:
    """An image in the order of ``INPUT.FORMAT``, (H, W, C), as (H, W, 3) RGB."""
    if image_format == "BGR":
        return image[:, :, ::-1]
    return image if image.shape[2] == 3 else np.repeat(image, 3, axis=2)
