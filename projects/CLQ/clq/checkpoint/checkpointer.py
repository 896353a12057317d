"""Loads weights into models, and reports in one line those that do not fit."""

import logging
import os
import re
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer

from clq.checkpoint.backbone_names import BOTTOM_UP
from clq.checkpoint.content import checkpoint_of, is_backbone
from clq.checkpoint.detector_info import KEY, DetectorInfo
from clq.checkpoint.finite import find_nonfinite
from clq.checkpoint.folder import BEST, LAST, checkpoint_to_resume
from clq.checkpoint.mismatch import Mismatch
from clq.checkpoint.storage import DamagedFile, read_weights, save_torch
from clq.checkpoint.torchvision_weights import TORCHVISION, torchvision_file, torchvision_to_detectron2
from clq.errors import UserError
from clq.utils.files import write_atomically

logger = logging.getLogger(__name__)

CLASS_LAYER = re.compile(r"head\.(heads\.\d+\.)?cls_logits\.")  # in the shared head, or in the head of each level


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, which also reads ``torchvision://NAME`` and refuses weights that do not fit.

    Weights that a training starts from must cover the whole backbone and may lack the rest. If they are for another
    number of classes, the class layer keeps its initial values, with a warning. Weights for evaluation, and those of a
    training that is resumed, must be those of exactly this model.

    Args:
        model: model whose weights are loaded or saved.
        save_dir: folder for the checkpoints to save.
        strict: whether weights must be those of exactly this model, as in evaluation and inference. Resuming is always
            strict.
        max_gib: upper bound on the size of a checkpoint's content, in GiB.
        detector: what each saved checkpoint says about its detector.
        **kwargs: ``save_to_disk`` and the checkpointables, see :class:`DetectionCheckpointer`.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        save_dir: str = "",
        *,
        strict: bool = False,
        max_gib: float = 16.0,
        detector: DetectorInfo | None = None,
        **kwargs,
    ):
        super().__init__(model, save_dir, **kwargs)
        self.strict = strict
        self.max_gib = max_gib
        self.detector = detector
        self._source = ""  # the path or URL that is being loaded, as the user wrote it

    def save(self, name: str, **kwargs: Any) -> None:
        """Saves model and checkpointables to ``name.pth``, which appears when it is whole, and names it as the last.

        The best checkpoint is not named as the last one, because a training should not be resumed from it.

        Args:
            name: name of the file without its ending.
            **kwargs: other data to save.

        Raises:
            UserError: a value to save is NaN or infinite, or the file cannot be written. The earlier checkpoints stay
                as they are.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update({key: x.state_dict() for key, x in self.checkpointables.items()})
        path = os.path.join(self.save_dir, f"{name}.pth")
        if bad := find_nonfinite(data):
            raise UserError(f"{path}: not written, because {bad} is not finite; continue from an older checkpoint.")
        if self.detector is not None:
            data[KEY] = self.detector.to_plain()
        self.logger.info("Saving checkpoint to %s", path)
        save_torch({**data, **kwargs}, path)
        if name != BEST:
            self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Writes the name of the last checkpoint to the folder, all at once."""
        with write_atomically(os.path.join(self.save_dir, LAST), "w") as f:
            f.write(last_filename_basename)

    def has_checkpoint(self) -> bool:
        """Whether the folder has a checkpoint to resume; see :func:`~clq.checkpoint.folder.checkpoint_to_resume`."""
        return bool(self.get_checkpoint_file())

    def get_checkpoint_file(self) -> str:
        """The checkpoint to resume, or an empty text; see :func:`~clq.checkpoint.folder.checkpoint_to_resume`."""
        return checkpoint_to_resume(self.save_dir) or ""

    def load(self, path: str, checkpointables: Sequence[str] | None = None) -> dict[str, Any]:
        """Loads weights into the model.

        Args:
            path: path of a file, or a URL with ``detectron2://``, ``https://`` or ``torchvision://``; empty for none.
            checkpointables: names of the other objects to restore; None for all.

        Returns:
            What the checkpoint holds besides the restored objects.

        Raises:
            UserError: the file is missing, is not a checkpoint, or does not fit the model.
        """
        self._source = path
        if path:
            path = self._fetch(path)
        elif self.strict:
            raise UserError(
                "MODEL.WEIGHTS is empty; give a checkpoint, for example MODEL.WEIGHTS output/model_final.pth."
            )
        try:
            return super().load(path, checkpointables)
        finally:
            # Detectron2 main leaves this set after an error, which would make the next load fail.
            self._parsed_url_during_load = None

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Loads the last checkpoint if ``resume`` is True and there is one, and ``path`` otherwise.

        Raises:
            UserError: see :meth:`load`; a checkpoint to resume must be of exactly this model.
        """
        strict = self.strict
        self.strict = strict or (resume and self.has_checkpoint())
        try:
            return super().resume_or_load(path, resume=resume)
        finally:
            self.strict = strict

    def _fetch(self, path: str) -> str:
        """Returns the path of a file on this machine, downloaded if necessary."""
        try:
            if path.startswith(TORCHVISION):
                local = torchvision_file(path[len(TORCHVISION) :])
            else:
                local = self.path_manager.get_local_path(path)
        except (OSError, RuntimeError) as e:
            raise UserError(
                f"{path}: could not be fetched ({' '.join(str(e).split())}); download it in another way and give "
                "the path of the file as MODEL.WEIGHTS."
            ) from e
        if not os.path.isfile(local):
            what = "is a folder, not a file" if os.path.isdir(local) else "no such file"
            raise UserError(f"{path}: {what}; give a checkpoint such as output/model_final.pth as MODEL.WEIGHTS.")
        return local

    def _load_file(self, filename: str) -> dict[str, Any]:
        """Reads a checkpoint; weights of a backbone get their names in a detector."""
        checkpoint = checkpoint_of(self._read(filename), filename, self._source)
        if is_backbone(checkpoint["model"]):
            checkpoint["model"] = torchvision_to_detectron2(checkpoint["model"])
        return checkpoint

    def _read(self, filename: str) -> object:
        """Reads the content of a file; nothing in it executes."""
        try:
            return read_weights(filename, self._source, self.max_gib)
        except DamagedFile as e:
            raise UserError(
                f"{self._source}: is damaged or not a checkpoint ({e}); give a state_dict saved by torch.save as "
                "MODEL.WEIGHTS."
            ) from e

    def _load_model(self, checkpoint: dict):
        """Loads the weights and checks what did not fit."""
        found = super()._load_model(checkpoint)
        if bad := find_nonfinite(self.model.state_dict()):
            raise UserError(f"{self._source}: {bad} has values that are NaN or infinite; give another checkpoint.")
        parameters = {name for name, _ in self.model.named_parameters()}
        if parameters <= set(found.missing_keys):
            differences = Mismatch(found.missing_keys, found.unexpected_keys, found.incorrect_shapes)
            raise UserError(
                f"{self._source}: none of its weights fits this model ({differences}); use the config that it was "
                "trained with."
            )
        self._check_classes(found)
        # Old checkpoints have the pixel statistics, which the config decides. Frozen norms count no batches.
        unknown = [k for k in found.unexpected_keys if not re.search(r"^pixel_|\.num_batches_tracked$", k)]
        mismatch = Mismatch(found.missing_keys, unknown, found.incorrect_shapes)
        if self.strict:
            self._check_whole_model(mismatch)
        else:
            self._check_backbone(mismatch)
        return found

    def _check_classes(self, found) -> None:
        """Handles a class layer for another number of classes.

        Args:
            found: result of fvcore's ``_load_model``. If the model is to be trained, the class layer is removed from
                it, with a warning.

        Raises:
            UserError: the weights must be those of exactly this model.
        """
        layers = [s for s in found.incorrect_shapes if CLASS_LAYER.match(s[0])]
        if not layers or any(theirs[1:] != ours[1:] for _, theirs, ours in layers):
            return
        _, theirs, ours = layers[0]
        classes = f"{self._source}: trained for {theirs[0]} classes, but this model has {ours[0]}"
        if self.strict:
            raise UserError(
                f"{classes}; use the data set or the MODEL.CLQ.NUM_CLASSES that it was trained with, or start a new "
                "training from it, in which the class layer is initialized again."
            )
        logger.warning("%s; the class layer is initialized again, and all other weights that fit are kept.", classes)
        found.incorrect_shapes[:] = [s for s in found.incorrect_shapes if not CLASS_LAYER.match(s[0])]
        found.missing_keys[:] = [k for k in found.missing_keys if not CLASS_LAYER.match(k)]

    def _check_whole_model(self, mismatch: Mismatch) -> None:
        """Raises UserError if weights are missing or unknown."""
        if not mismatch.missing and not mismatch.unknown:
            return
        head = {name for name, _ in self.model.named_parameters() if name.startswith("head.")}
        if head and head <= set(mismatch.missing):
            raise UserError(
                f"{self._source}: holds no detection head, only a backbone; give a trained detector as MODEL.WEIGHTS."
            )
        raise UserError(
            f"{self._source}: comes from another model ({mismatch}); use the config that it was trained with."
        )

    def _check_backbone(self, mismatch: Mismatch) -> None:
        """Raises UserError if the backbone is incomplete, or if the weights are those of another backbone."""
        # ImageNet weights have no offsets of deformable convolutions, which start at zero by design.
        missing = [k for k in mismatch.missing if k.startswith(BOTTOM_UP) and "conv2_offset" not in k]
        of_backbone = re.compile(r"(^|\.)(stem\.conv|res[2-5]\.|stage[2-4]\.)")
        unknown = [k for k in mismatch.unknown if of_backbone.search(k)]
        if missing or unknown:
            shapes = [s for s in mismatch.shapes if s[0].startswith(BOTTOM_UP)]
            raise UserError(
                f"{self._source}: comes from another backbone ({Mismatch(missing, unknown, shapes)}); make "
                "MODEL.BACKBONE.NAME, MODEL.RESNETS (DEPTH, NUM_GROUPS, WIDTH_PER_GROUP, NORM) or SHUFFLENET.NAME, "
                "and MODEL.WEIGHTS agree."
            )
