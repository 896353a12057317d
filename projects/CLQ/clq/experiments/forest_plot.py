"""A forest plot: differences with their intervals, one below the other."""

from collections.abc import Mapping
from pathlib import Path
from typing import IO

from matplotlib.figure import Figure

from clq.experiments.bootstrap import Difference
from clq.experiments.comparison import interval_cell


def draw_forest(differences: Mapping[str, Difference], reference: str, path: Path | IO) -> None:
    """Draws each variant's difference of AP from a reference: a square with its 95% interval, beside a line at 0.

    Blue intervals do not contain 0. An interval of images alone, of one seed, is grey.

    Args:
        differences: name of a variant -> its AP less that of the reference.
        reference: name of the variant that all are compared with.
        path: png to write, or an open file.
    """
    figure = Figure(figsize=(7.5, 1.3 + 0.42 * len(differences)), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(differences))
    for place, difference in zip(places, differences.values(), strict=True):
        color = "tab:blue" if difference.clear else "0.45"
        axes.plot([difference.low, difference.high], [place, place], color=color, linewidth=1.6)
        axes.plot([difference.value], [place], marker="s", color=color, markersize=6)
        axes.annotate(
            interval_cell(difference), (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=9
        )
    axes.axvline(0, color="0.2", linewidth=0.8)
    axes.set_yticks(places, differences, parse_math=False)  # a name may contain dollar signs
    axes.set_ylim(len(differences) - 0.5, -0.5)
    axes.set_xlabel(f"AP minus {reference}, with 95% interval", parse_math=False)
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120, format="png")
