"""The pictures of a report, each of one or several runs. Everybody can tell its colours apart."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from clq.evaluation.report.confusion import Confusion
from clq.evaluation.report.operating import Curve, Point
from clq.evaluation.report.trust import BINS, reliability

# Okabe and Ito's.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
WIDTH, DPI = 8.0, 110  # inches, pixels per inch: 880 pixels, about the width of a page
_LONGEST_NAME = 26
_NARROWEST_AP = 2.0  # of the axis of a sweep
_CONFUSED = 12  # classes of a confusion matrix


def to_png(figure: Figure) -> bytes:
    """The bytes of a picture."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI, format="png")
    return buffer.getvalue()


def short(name: str) -> str:
    """A name that fits into a legend. A dollar sign would begin a formula."""
    cut = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
    return cut.replace("$", r"\$")


def _panels(rows: int, count: int, height: float, **options) -> tuple[Figure, np.ndarray]:
    """A figure with ``count`` panels in a row, which is narrower if there is only one; axes (rows, count)."""
    figure = Figure(figsize=(WIDTH if count > 1 else 0.7 * WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, count, squeeze=False, sharex=True, sharey="row", **options)


def density(quantities: Mapping[str, np.ndarray], iou: np.ndarray) -> bytes:
    """How many detections have which score and which true IoU, one panel for each quantity (D,), with the mean IoU."""
    figure, grid = _panels(1, len(quantities), 3.3 if len(quantities) > 1 else 4.2)
    edges = np.linspace(0, 1, 41)
    counts = {name: np.histogram2d(score, iou, [edges, edges])[0] for name, score in quantities.items()}
    norm = LogNorm(1, max(2.0, *(c.max() for c in counts.values())))
    for axes, (name, score) in zip(grid[0], quantities.items(), strict=True):
        mesh = axes.pcolormesh(edges, edges, np.ma.masked_equal(counts[name].T, 0), norm=norm, rasterized=True)
        axes.set_facecolor("0.93")
        scores, means, number = reliability(score, iou)
        for color, width in (("white", 3.6), (COLORS[1], 2)):
            axes.plot(scores[number > 0], means[number > 0], color=color, linewidth=width)
        _unit_square(axes)
        axes.set_xlabel(name)
    grid[0, 0].set_ylabel("true IoU")
    figure.colorbar(mesh, ax=grid[0].tolist(), label="detections", pad=0.02)
    return to_png(figure)


def _unit_square(axes: Axes) -> None:
    axes.plot([0, 1], [0, 1], color="0.35", linewidth=1, linestyle="--")
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=np.linspace(0, 1, 5), xticklabels=["0", "", "0.5", "", "1"])


def reliability_curves(runs: Mapping[str, tuple[Mapping[str, np.ndarray], np.ndarray]]) -> bytes:
    """Mean true IoU over the score, above the number of detections.

    Args:
        runs: for each name of a run its quantities (D,) and the true IoU (D,).
    """
    names = list(dict.fromkeys(name for quantities, _ in runs.values() for name in quantities))
    figure, grid = _panels(2, len(names), 4.4, height_ratios=[3, 1])
    for (curve, bars), name in zip(grid.T, names, strict=True):
        for (run, (quantities, iou)), color in zip(runs.items(), COLORS, strict=False):
            if name in quantities:
                score, mean, count = reliability(quantities[name], iou)
                some = count > 0
                curve.plot(score[some], mean[some], color=color, marker="o", markersize=3, label=short(run))
                bars.stairs(count, np.linspace(0, 1, BINS + 1), color=color, fill=len(runs) == 1)
        _unit_square(curve)
        curve.grid(alpha=0.3)
        bars.set_yscale("log")
        bars.set_xlabel(name)
    grid[0, 0].set_ylabel("mean true IoU")
    grid[1, 0].set_ylabel("detections")
    _legend_above(figure, grid[0, 0], len(runs))
    return to_png(figure)


def _legend_above(figure: Figure, axes: Axes, runs: int) -> None:
    """A legend of the runs above all panels, if there are several."""
    if runs > 1:
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", fontsize=9, ncols=min(3, runs))


def precision_recall(runs: Mapping[str, tuple[Mapping[str, np.ndarray], Curve, Point | None]]) -> bytes:
    """Precision over recall on the left, and F1 over the threshold on the right.

    Args:
        runs: for each name of a run the precisions (101,) at COCO's recalls by IoU (".50", ".75"), its curve over all
            classes and its best point.
    """
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    one, lines = len(runs) == 1, dict(zip((".50", ".75"), ("-", "--"), strict=True))
    for (name, (precisions, curve, best)), color in zip(runs.items(), COLORS, strict=False):
        for iou, precision in precisions.items():
            left.plot(np.linspace(0, 1, len(precision)), precision, lines[iou], color=color, linewidth=1.8)
        if one:
            right.plot(curve.thresholds, curve.precision, "--", color=COLORS[2], linewidth=1.5, label="precision")
            right.plot(curve.thresholds, curve.recall, ":", color=COLORS[1], linewidth=2, label="recall")
        right.plot(curve.thresholds, curve.f1, color=color, linewidth=1.8, label="F1" if one else short(name))
        if best is not None:
            right.plot([best.threshold], [best.f1], "o", color=color, markersize=6)
    left.set_xlabel("recall")
    left.set_ylabel("precision, mean over classes")
    right.set_xlabel("threshold of the score")
    right.set_ylabel("all classes together, IoU .50" if one else "F1, all classes together, IoU .50")
    for axes in (left, right):
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.grid(alpha=0.3)
    # The kinds of line are the same for all runs, so they are explained once, in grey.
    kinds = left.plot([], [], "-", [], [], "--", color="0.3")
    left.legend(kinds, [f"IoU {iou}" for iou in lines], fontsize=8, loc="upper right")
    if one:
        right.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=3)
    _legend_above(figure, right, len(runs))
    return to_png(figure)


def bars(groups: Sequence[str], runs: Mapping[str, Sequence[float]], label: str, digits: int = 1) -> bytes:
    """Horizontal bars with their values, one group for each name and one bar in it for each run."""
    height = 0.9 + len(groups) * (0.22 + 0.2 * len(runs))
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes, thick = figure.subplots(), 0.8 / max(len(runs), 1)
    for i, ((name, values), color) in enumerate(zip(runs.items(), COLORS, strict=False)):
        places = np.arange(len(groups)) + (i + 0.5) * thick - 0.4
        shown = [0.0 if np.isnan(v) else v for v in values]
        drawn = axes.barh(places, shown, thick * 0.9, color=color, label=short(name))
        axes.bar_label(drawn, [f"{v:.{digits}f}" if not np.isnan(v) else "–" for v in values], padding=3, fontsize=9)
    axes.set_yticks(np.arange(len(groups)), groups)
    axes.invert_yaxis()
    axes.margins(x=0.08)
    if not any(np.nan_to_num(values).any() for values in runs.values()):
        axes.set_xlim(0, 1)  # matplotlib's own limits would have negative values
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    _legend_above(figure, axes, len(runs))
    return to_png(figure)


def confusion_matrix(confusion: Confusion, names: Sequence[str]) -> bytes:
    """The confusion matrix; of many classes those that are confused most, with the others in one row and column."""
    counts, shown = _most_confused(confusion.counts, names)
    rows = [*map(short, shown), "(no object)"]
    columns = [*map(short, shown), "(not found)"]
    side = min(WIDTH, 3.2 + 0.42 * len(rows))
    figure = Figure(figsize=(side, 1.2 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (i, j), count in np.ndenumerate(counts):
        if count:
            color = "white" if share[i, j] > 0.65 else "black"
            axes.text(j, i, f"{count:,}", ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor", fontsize=9)
    axes.set_yticks(range(len(rows)), rows, fontsize=9)
    axes.set_xlabel("detected class")
    axes.set_ylabel("true class")
    return to_png(figure)


def _most_confused(counts: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Sums up all classes but those with the most confusions."""
    classes = len(names)
    if classes <= _CONFUSED:
        return counts, list(names)
    mixed = counts[:-1, :-1].copy()
    np.fill_diagonal(mixed, 0)
    keep = np.sort(np.argsort(-(mixed.sum(0) + mixed.sum(1)), kind="stable")[:_CONFUSED])
    place = np.full(classes + 1, len(keep))
    place[keep], place[-1] = np.arange(len(keep)), len(keep) + 1
    small = np.zeros((len(keep) + 2,) * 2, int)
    np.add.at(small, (place[:, None], place[None, :]), counts)
    return small, [*(names[k] for k in keep), f"{classes - len(keep)} other classes"]


def sweep_curves(runs: Mapping[str, tuple[Mapping[float, float], float]]) -> bytes:
    """AP over the exponent of the quality; a ring marks the trained exponent.

    Args:
        runs: for each name of a run its AP by exponent, and the exponent of the training.
    """
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    axes = figure.subplots()
    for (name, (sweep, trained)), color in zip(runs.items(), COLORS, strict=False):
        axes.plot(list(sweep), list(sweep.values()), "o-", color=color, markersize=4, label=short(name))
        axes.plot([trained], [sweep[trained]], "o", markersize=12, markerfacecolor="none", color=color)
    axes.set_xlabel("exponent α of the quality (ring: as trained)")
    axes.set_ylabel("AP")
    low, high = axes.get_ylim()
    if high - low < _NARROWEST_AP:  # hundredths of AP are noise, and shall not look like more
        axes.set_ylim((low + high - _NARROWEST_AP) / 2, (low + high + _NARROWEST_AP) / 2)
    axes.grid(alpha=0.3)
    _legend_above(figure, axes, len(runs))
    return to_png(figure)
