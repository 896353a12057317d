"""Makes a resumed training continue exactly as if it had not been interrupted."""

import json
import logging
import os
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from clq.data.loader import STEP, TrainLoader
from clq.utils.files import remove_temporary_files, write_atomically
from clq.utils.random_states import set_random_states

logger = logging.getLogger(__name__)

# Keys that decide which images a batch holds, beside SEED. Some of them exist only in newer versions of Detectron2.
_ORDER_KEYS = (
    *("DATASETS.TRAIN", "DATASETS.TRAIN_REPEAT_FACTOR", "SOLVER.IMS_PER_BATCH"),
    *("DATALOADER.SAMPLER_TRAIN", "DATALOADER.REPEAT_THRESHOLD", "DATALOADER.REPEAT_SQRT"),
    *("DATALOADER.RANDOM_SUBSET_RATIO", "DATALOADER.ASPECT_RATIO_GROUPING"),
)
_FINISHED = "finished"  # name of the file in OUTPUT_DIR that says how a training has ended


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
        self._epochs = cfg.SOLVER.EPOCHS
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
            ended = {
                "iterations": max(self.trainer.start_iter, self.trainer.max_iter)
            }  # more than asked for, if resumed
            if waited := getattr(self.trainer, "waited", 0):
                ended["waited"] = waited
            elif self._epochs:
                ended["epochs"] = self._epochs
            with write_atomically(self._marker, "w") as f:
                f.write(f"{json.dumps(ended)}\n")

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


def is_finished(cfg: CfgNode) -> bool:
    """Returns whether ``OUTPUT_DIR`` holds a training that is finished; it then prints how to go on.

    Args:
        cfg: config of the training. With ``SOLVER.EPOCHS``, these are compared, because the number of iterations
            follows from the data, which need not be read for this.
    """
    solver = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size()).SOLVER
    ended = _read_marker(os.path.join(cfg.OUTPUT_DIR, _FINISHED))
    iterations, epochs, waited = (ended.get(key, 0) for key in ("iterations", "epochs", "waited"))
    after = f"{iterations} iterations"
    if 0 < solver.PATIENCE <= waited:
        after += f" and {waited} evaluations without a better {cfg.TEST.BEST_METRIC}"
        change = f"set SOLVER.PATIENCE to 0 or above {waited}"
    elif 0 < solver.EPOCHS <= epochs:
        after, change = f"{epochs} epochs", f"raise SOLVER.EPOCHS above {epochs}"
    elif not solver.EPOCHS and iterations > 0 and iterations >= solver.MAX_ITER:
        change = f"raise SOLVER.MAX_ITER above {iterations}"
    else:
        return False
    if comm.is_main_process():
        print(
            f"{cfg.OUTPUT_DIR}: its training is finished, after {after}. To go on, {change}; to evaluate it again, use "
            "--eval-only."
        )
    return True


def _read_marker(path: str) -> dict[str, Any]:
    """How a training has ended: ``iterations`` and, of one in epochs, ``epochs``; ``waited`` if it ended early.

    Empty if it has not ended, or was killed while it wrote the file.
    """
    try:
        with open(path, encoding="utf-8") as f:
            found = json.loads(f.read())
    except (OSError, ValueError):
        return {}
    if type(found) is int:  # of an older version
        return {"iterations": found}
    numbers = isinstance(found, dict) and all(type(value) is int for value in found.values())
    return found if numbers else {}
