"""The four distributions of a box, drawn."""

import numpy as np
from matplotlib.figure import Figure

_SIDES = "left", "top", "right", "bottom"


def draw_distributions(probabilities: np.ndarray, bin_width: np.ndarray) -> Figure:
    """Draws where a location expects each side of its box, with the mean, which is the box.

    Args:
        probabilities: (4, n + 1) probabilities of the bins 0 to n, in strides from the location.
        bin_width: (2,) width and height of a bin in pixels of the image.
    """
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    sides = zip(figure.subplots(1, 4, sharey=True), _SIDES, probabilities, [*bin_width, *bin_width], strict=True)
    for axes, side, p, width in sides:
        pixels = np.arange(len(p)) * width
        mean = float(p @ pixels)
        axes.bar(pixels, p, width=0.9 * width, color="#56b4e9")
        axes.axvline(mean, color="#d55e00", linewidth=2)
        axes.set_title(f"{side}: {mean:.1f} px", fontsize=11)
        axes.set_xlabel("distance (px)")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("probability")
    figure.suptitle("Where the location expects each side of its box, and the mean", fontsize=11)
    return figure
