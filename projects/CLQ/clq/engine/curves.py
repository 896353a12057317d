"""A picture of the curves of a training: its losses, its learning rate and its AP."""

import logging
import os

from detectron2.engine import HookBase
from detectron2.utils import comm

from clq.engine.metrics_csv import FILE_NAME, Rows, read_metrics
from clq.errors import reason_of

logger = logging.getLogger(__name__)

_PICTURE = "curves.png"
_MAX_CURVES = 8  # APs of a panel


class CurvesHook(HookBase):
    """Draws ``curves.png`` from ``metrics.csv`` when a training comes to its end; it comes after the writers.

    Args:
        folder: folder of both files.
    """

    def __init__(self, folder: str):
        self._folder = folder

    def after_train(self) -> None:
        """Draws the picture, unless the training was ended by an error."""
        if self.trainer.iter < self.trainer.max_iter or not comm.is_main_process():
            return
        path = os.path.join(self._folder, _PICTURE)
        try:
            draw_curves(os.path.join(self._folder, FILE_NAME), path)
        except Exception as e:  # a picture must not end a training in which all else is done
            logger.warning("%s: cannot be drawn (%s)", path, reason_of(e))


def draw_curves(metrics: str, picture: str) -> None:
    """Draws the curves of a ``metrics.csv``.

    Args:
        metrics: path of the csv file.
        picture: path of the picture to write, 1,200 pixels wide.
    """
    from matplotlib.figure import Figure  # takes time to import

    columns, rows = read_metrics(metrics)
    losses = [name for name in columns if name == "total_loss" or name.startswith("loss_")]
    panels = {"loss": losses, "learning rate": ["lr"], "AP": _aps(columns)}
    panels = {title: names for title, names in panels.items() if any(_curve(rows, name)[0] for name in names)}
    if not panels:
        return
    figure = Figure(figsize=(12, 3.6), dpi=100, layout="constrained")
    for (title, names), axes in zip(panels.items(), figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
        for name in names:
            x, y = _curve(rows, name)
            marker = "o" if title == "AP" or len(x) == 1 else None
            width = 2.0 if name in ("total_loss", "lr", "bbox/AP") else 1.2
            axes.plot(x, y, label=name, marker=marker, markersize=3, linewidth=width)
        axes.set(title=title, xlabel="iteration")
        axes.grid(alpha=0.3)
        if title == "loss":
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}")
        if title == "AP":
            axes.set_ylim(bottom=0)
        if len(names) > 1:
            axes.legend(fontsize=8, loc="upper right" if title == "loss" else "best")
    figure.savefig(picture)


def _aps(columns: list[str]) -> list[str]:
    """AP and AP50 of all evaluations, and the classes' AP if there are few."""
    main = [name for name in columns if name.endswith(("bbox/AP", "bbox/AP50"))]
    classes = [name for name in columns if name.startswith("bbox/AP-")]
    return main + (classes if len(main) + len(classes) <= _MAX_CURVES else [])


def _curve(rows: Rows, name: str) -> tuple[list[int], list[float]]:
    """The iterations for which there is a value, and the values."""
    found = {iteration: float(row[name]) for iteration, row in rows.items() if name in row}
    return list(found), list(found.values())
