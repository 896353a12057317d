"""Makes a resumed training continue exactly as if it had not been interrupted."""

import logging
import os

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from clq.data.loader import STEP, TrainLoader
from clq.utils.files import remove_temporary_files
from clq.utils.random_states import set_random_states

logger = logging.getLogger(__name__)

# Keys that decide which images a batch holds, beside SEED. Some of them exist only in newer versions of Detectron2.
_ORDER_KEYS = (
    *("DATASETS.TRAIN", "DATASETS.TRAIN_REPEAT_FACTOR", "SOLVER.IMS_PER_BATCH"),
    *("DATALOADER.SAMPLER_TRAIN", "DATALOADER.REPEAT_THRESHOLD", "DATALOADER.REPEAT_SQRT"),
    *("DATALOADER.RANDOM_SUBSET_RATIO", "DATALOADER.ASPECT_RATIO_GROUPING"),
)
_FINISHED = "finished"  # name of the file in OUTPUT_DIR that holds the number of iterations of a finished training


class ExactResume(HookBase):
    """Gives every iteration the data and the random states that follow from the seed and its number.

    The random states of the process (Python, numpy, torch, all devices) are set before every step from the seed, the
    iteration and the rank. They need not be saved, therefore, and an evaluation between two steps, which draws random
    numbers, changes nothing. Checkpoints contain the seed, and what the order of the images depends on: if that differs
    when a training is resumed, a warning names the key.

    Args:
        model: model that is trained.
        loader: training loader, whose ``seed`` and ``start`` the hook sets.
        cfg: config of the training.
    """

    def __init__(self, model: nn.Module, loader: TrainLoader, cfg: CfgNode):
        self._model = model.module if isinstance(model, DistributedDataParallel) else model
        self._loader = loader
        self._config_seed = cfg.SEED
        self._marker = os.path.join(cfg.OUTPUT_DIR, _FINISHED)
        self._order = order_of_images(cfg, loader)
        self._loaded = False

    def before_train(self) -> None:
        start = self._loader.start = self.trainer.start_iter
        if start > 0 and not self._loaded:
            logger.warning(
                "--resume: the checkpoint is of an older version, which did not save the seed of its data; the images "
                "continue as in a training with SEED %d",
                self._loader.seed,
            )
        if comm.is_main_process():
            remove_temporary_files(os.path.dirname(self._marker))  # of a training that was killed while it wrote
            if os.path.exists(self._marker):
                os.remove(self._marker)

    def before_step(self) -> None:
        set_random_states(self._loader.seed, STEP, self.trainer.iter, comm.get_rank(), all_devices=True)

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter and comm.is_main_process():  # not after an error
            with open(self._marker, "w", encoding="utf-8") as f:
                f.write(f"{max(self.trainer.start_iter, self.trainer.max_iter)}\n")  # more than asked for, if resumed

    def state_dict(self) -> dict:
        state = {"seed": self._loader.seed, "order": self._order}
        if hasattr(self._model, "loss_normalizer"):  # a moving average that Detectron2's RetinaNet and FCOS keep
            state["loss_normalizer"] = self._model.loss_normalizer
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        self._loaded = True
        self._loader.seed = state_dict["seed"]
        if self._config_seed not in (-1, self._loader.seed):
            logger.warning(
                "--resume: SEED %d is not used; the training goes on with its own, %d",
                *(self._config_seed, self._loader.seed),
            )
        if "loss_normalizer" in state_dict:
            self._model.loss_normalizer = state_dict["loss_normalizer"]
        for key, value in self._order.items():
            if (before := state_dict["order"].get(key)) != value:
                logger.warning(
                    "--resume: %s is %s and was %s; from here on the training sees its images in another order than "
                    "without the interruption",
                    *(key, value, before),
                )


def order_of_images(cfg: CfgNode, loader: TrainLoader) -> dict[str, object]:
    """Returns what the order of a training's images depends on beside its seed, in plain types, by key or name."""
    order = {}
    for group, key in (name.split(".") for name in _ORDER_KEYS):
        if key in cfg[group]:
            order[f"{group}.{key}"] = _plain(cfg[group][key])
    return {**order, "the digest of the image files": loader.digest, "the number of processes": comm.get_world_size()}


def _plain(value: object) -> object:
    """Turns tuples into lists, which a checkpoint gives back as they are compared."""
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def is_finished(output_dir: str, max_iter: int) -> bool:
    """Returns whether a folder holds a finished training of so many iterations; it then prints how to go on."""
    try:
        with open(os.path.join(output_dir, _FINISHED), encoding="utf-8") as f:
            iterations = int(f.read())
    except (OSError, ValueError):  # there is none, or it was interrupted
        return False
    if iterations < max_iter:
        return False
    if comm.is_main_process():
        print(
            f"{output_dir}: its training is finished, after {iterations} iterations. To go on, raise SOLVER.MAX_ITER "
            f"above {iterations}; to evaluate it again, use --eval-only."
        )
    return True
