"""Loading weights: torchvision's ImageNet bodies, and one readable line for a file that does not fit the model."""

import logging
import os
import re
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from iopath.common.file_io import file_lock
from torch import Tensor

from clq.checkpoint.backbone_names import BODY, BODY_MARKS, body_names
from clq.errors import UserError

logger = logging.getLogger(__name__)

TORCHVISION = "torchvision://"
TORCHVISION_BODIES = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0"),
)
CLASS_LAYER = re.compile(r"head\.(heads\.\d+\.)?cls_logits\.")  # of the one head, or of each level's


def torchvision_to_detectron2(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the weights of a ResNet, Res2Net or ShuffleNet to those of a detector's, under ``backbone.bottom_up``.

    The classifier (``fc``, ``conv5``) and the batch counters, which a detector has no use for, are left out.

    Args:
        state_dict: with the names of torchvision, or of MMDetection where that has none: deformable convolutions, and
            Res2Net in its v1d form.

    Raises:
        UserError: a weight that no such body has.
    """
    names, unknown = body_names(state_dict)
    if unknown:
        raise UserError(
            f"{unknown[0]}: no body of torchvision's has this weight, nor has a Res2Net; use one of "
            f"{', '.join(TORCHVISION_BODIES)}."
        )
    return {name: state_dict[key] for key, name in names.items()}


def _torchvision_file(name: str) -> str:
    """The file of a body's ImageNet weights (IMAGENET1K_V1) in torch.hub's cache, downloaded when it is not there."""
    if name not in TORCHVISION_BODIES:
        raise UserError(f"{TORCHVISION}{name}: no such body; use one of {', '.join(TORCHVISION_BODIES)}.")
    weights = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    path = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(weights.url))
    if not os.path.isfile(path):
        with file_lock(path):  # the processes of one machine start together: the first one downloads
            weights.get_state_dict(progress=True, check_hash=True)
    return path


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, which also reads ``torchvision://NAME`` and refuses what does not fit.

    Weights to start a training from must cover the whole body and may lack the rest; if they are for another number of
    classes, the class layer keeps its initial values, with a warning. Weights to evaluate with, or to resume, must be
    those of exactly this model.

    Args:
        model: as in Detectron2.
        save_dir: folder of the checkpoints written, as in Detectron2.
        strict: True for evaluation and inference. Resuming is strict without being asked.
        **kwargs: ``save_to_disk`` and the checkpointables, as in Detectron2.
    """

    def __init__(self, model: torch.nn.Module, save_dir: str = "", *, strict: bool = False, **kwargs):
        super().__init__(model, save_dir, **kwargs)
        self.strict = strict
        self._source = ""  # path or URL being loaded, as the user wrote it

    def load(self, path: str, checkpointables: Sequence[str] | None = None) -> dict:
        """Loads a file, ``detectron2://``, ``https://`` or ``torchvision://`` into the model; see Detectron2.

        Raises:
            UserError: the file is missing, is no checkpoint, or does not fit the model.
        """
        self._source = path
        if path:
            path = self._fetch(path)
        elif self.strict:
            raise UserError("MODEL.WEIGHTS is empty: name the checkpoint, e.g. MODEL.WEIGHTS output/model_final.pth.")
        try:
            return super().load(path, checkpointables)
        finally:
            # Detectron2 main's: an error would leave it set, and fail the next load.
            self._parsed_url_during_load = None

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict:
        """As in Detectron2; what is resumed must be a checkpoint of exactly this model."""
        strict = self.strict
        self.strict = strict or (resume and self.has_checkpoint())
        try:
            return super().resume_or_load(path, resume=resume)
        finally:
            self.strict = strict

    def _fetch(self, path: str) -> str:
        try:
            if path.startswith(TORCHVISION):
                local = _torchvision_file(path[len(TORCHVISION) :])
            else:
                local = self.path_manager.get_local_path(path)
        except (OSError, RuntimeError) as e:
            raise UserError(
                f"{path}: could not be fetched ({' '.join(str(e).split())}); download it by another way and give the "
                "file's path as MODEL.WEIGHTS."
            ) from e
        if not os.path.isfile(local):
            what = "is a folder, not a file in it" if os.path.isdir(local) else "no such file"
            raise UserError(f"{path}: {what}; give a checkpoint such as output/model_final.pth as MODEL.WEIGHTS.")
        return local

    def _load_file(self, filename: str) -> dict:
        checkpoint = self._read(filename)
        if isinstance(checkpoint, dict) and "model" not in checkpoint:
            inner = checkpoint.get("state_dict")  # where OpenMMLab's files of a body may keep it
            checkpoint = {"model": inner if _is_body(inner) else checkpoint}
        weights = checkpoint["model"] if isinstance(checkpoint, dict) else None
        if not isinstance(weights, dict) or not all(isinstance(w, (Tensor, np.ndarray)) for w in weights.values()):
            raise UserError(
                f"{self._source}: holds no weights of Detectron2 or torchvision; those of MMDetection are translated "
                "by clq.convert_mmdet."
            )
        if _is_body(weights):
            checkpoint["model"] = torchvision_to_detectron2(weights)
        return checkpoint

    def _read(self, filename: str) -> object:
        try:
            if filename.endswith((".pkl", ".pyth")):  # formats of Detectron2's model zoo and of pycls
                return super()._load_file(filename)
            # weights_only: nothing in the file executes, even with a torch where that is not the default.
            return torch.load(filename, map_location="cpu", weights_only=True)
        except Exception as e:  # reading bytes that are no checkpoint can raise anything
            foreign = zipfile.is_zipfile(filename)
            cause = "holds Python objects besides weights" if foreign else "is damaged, or no checkpoint"
            raise UserError(f"{self._source}: {cause}; give a state_dict saved by torch.save as MODEL.WEIGHTS.") from e

    def _load_model(self, checkpoint: dict):
        found = super()._load_model(checkpoint)
        parameters = {name for name, _ in self.model.named_parameters()}
        if parameters <= set(found.missing_keys):
            raise UserError(f"{self._source}: none of its weights fits this model ({_differences(*found)}).")
        self._check_classes(found)
        # Old checkpoints carry the pixel statistics, which the config decides; frozen norms count no batches.
        unknown = [k for k in found.unexpected_keys if not re.search(r"^pixel_|\.num_batches_tracked$", k)]
        if self.strict:
            self._check_whole(found.missing_keys, unknown, found.incorrect_shapes)
        else:
            self._check_body(found.missing_keys, unknown, found.incorrect_shapes)
        return found

    def _check_classes(self, found) -> None:
        """Takes a class layer of another size out of ``found``, with a warning; raises where that is no option."""
        layers = [s for s in found.incorrect_shapes if CLASS_LAYER.match(s[0])]
        if not layers or any(theirs[1:] != ours[1:] for _, theirs, ours in layers):
            return
        _, theirs, ours = layers[0]
        classes = f"{self._source}: trained for {theirs[0]} classes, but this model has {ours[0]}"
        if self.strict:
            raise UserError(
                f"{classes}; use the data set or MODEL.CLQ.NUM_CLASSES it was trained with, or start a new training "
                "from it (which renews the class layer)."
            )
        logger.warning("%s: the class layer starts anew, all other weights that fit are kept.", classes)
        found.incorrect_shapes[:] = [s for s in found.incorrect_shapes if not CLASS_LAYER.match(s[0])]
        found.missing_keys[:] = [k for k in found.missing_keys if not CLASS_LAYER.match(k)]

    def _check_whole(self, missing: list[str], unknown: list[str], shapes: list[tuple]) -> None:
        if not missing and not unknown:
            return
        head = {name for name, _ in self.model.named_parameters() if name.startswith("head.")}
        if head and head <= set(missing):
            raise UserError(
                f"{self._source}: holds no detection head, only a backbone; give a trained detector as MODEL.WEIGHTS."
            )
        raise UserError(
            f"{self._source}: of another model ({_differences(missing, unknown, shapes)}); use the config that it was "
            "trained with."
        )

    def _check_body(self, missing: list[str], unknown: list[str], shapes: list[tuple]) -> None:
        # ImageNet weights have no offsets of deformable convolutions; these start at zero by design.
        missing = [k for k in missing if k.startswith(BODY) and "conv2_offset" not in k]
        body = re.compile(r"(^|\.)(stem\.conv|res[2-5]\.|stage[2-4]\.)")  # a deeper or other one's
        unknown = [k for k in unknown if body.search(k)]
        if missing or unknown:
            shapes = [s for s in shapes if s[0].startswith(BODY)]
            raise UserError(
                f"{self._source}: of another backbone ({_differences(missing, unknown, shapes)}); make "
                "MODEL.BACKBONE.NAME, MODEL.RESNETS (DEPTH, NUM_GROUPS, WIDTH_PER_GROUP, NORM), or SHUFFLENET.NAME, "
                "and MODEL.WEIGHTS agree."
            )


def _is_body(weights: object) -> bool:
    """Whether these are a body's weights under the names of torchvision or MMDetection."""
    return isinstance(weights, dict) and any(mark in weights for mark in BODY_MARKS)


def _differences(missing: list[str], unknown: list[str], shapes: list[tuple]) -> str:
    """What a file lacks and what it has too much of, with one example each."""
    missing = sorted(set(missing) - {key for key, _, _ in shapes})
    other = [f"{key} {list(theirs)} instead of {list(ours)}" for key, theirs, ours in shapes]
    groups = {"missing": missing, "unknown": unknown, "of another shape": other}
    return ", ".join(f"{len(keys)} {what}, such as {keys[0]}" for what, keys in groups.items() if keys)
