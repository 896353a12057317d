"""The page of ``clq app``: an image, its detections, and what is behind each of them. It needs gradio."""

import html
from typing import Any

import gradio as gr
from detectron2.structures import Instances

from clq.app.distributions import draw_distributions
from clq.app.overlay import draw_boxes, draw_taps, encode, numbers
from clq.errors import UserError
from clq.inference.inspection import Inspection
from clq.inference.predictor import Predictor
from clq.inference.results import DRAWING_THRESHOLD

_QUALITIES = {"iou": "predicted IoU"}  # by MODEL.CLQ.QUALITY.NAME; others are called by that name
_HINT = "Click a box to see what is behind it."

_PICTURE = """<div class="frame"><svg viewBox="0 0 ${width} ${height}"><image href="${value}" width="${width}"
height="${height}"/>${shapes}</svg><div class="tip"></div></div>"""

_STYLE = """
.frame { position: relative; }
svg { width: 100%; max-height: 75vh; display: block; }
.detection { fill: transparent; stroke-width: 2.5px; vector-effect: non-scaling-stroke; cursor: pointer; }
.detection:hover { fill: rgba(255, 255, 255, 0.25); }
.chosen { stroke-width: 5px; }
.tap { stroke: black; stroke-width: 1px; vector-effect: non-scaling-stroke; pointer-events: none; }
.location { stroke: black; stroke-width: 3px; vector-effect: non-scaling-stroke; fill: none; pointer-events: none; }
.tip { display: none; position: absolute; padding: 4px 8px; border-radius: 4px; background: black; color: white;
       font-size: 14px; white-space: pre; pointer-events: none; z-index: 1; }
"""

# The listeners are on the element, which stays when the template is rendered again.
_SCRIPT = """
const tip = () => element.querySelector('.tip');
element.addEventListener('mousemove', event => {
  const box = event.target.closest('.detection');
  if (!tip()) return;
  tip().style.display = box ? 'block' : 'none';
  if (!box) return;
  const frame = element.querySelector('.frame').getBoundingClientRect();
  tip().textContent = box.dataset.tip.replaceAll('; ', '\\n');
  tip().style.left = Math.min(event.clientX - frame.left + 14, frame.width - 170) + 'px';
  tip().style.top = (event.clientY - frame.top + 14) + 'px';
});
element.addEventListener('mouseleave', () => { if (tip()) tip().style.display = 'none'; });
element.addEventListener('click', event => {
  const box = event.target.closest('.detection');
  if (box) trigger('click', {index: Number(box.dataset.index)});
});
"""


class Page:
    """The page for one detector.

    Args:
        predictor: detector whose detections are shown.
        title: heading of the page.
    """

    def __init__(self, predictor: Predictor, title: str):
        self._predictor = predictor
        self._title = title
        name = predictor.cfg.MODEL.CLQ.QUALITY.NAME
        self._quality = _QUALITIES.get(name, name)

    def build(self) -> gr.Blocks:
        """Arranges the page and connects its parts."""
        with gr.Blocks(title=self._title, analytics_enabled=False) as blocks:
            gr.Markdown(f"# {html.escape(self._title)}")
            inspection = gr.State()
            with gr.Row():
                with gr.Column(scale=1):
                    image = gr.File(label="Image", file_types=["image"], height=130)  # unlike gr.Image it opens nothing
                    threshold = gr.Slider(0, 1, DRAWING_THRESHOLD, step=0.01, label="Lowest score that is shown")
                    ranking = gr.Radio(["final score"], value="final score", label="Ranked by")
                    details = gr.HTML(_HINT, padding=True, elem_id="details")
                with gr.Column(scale=2):
                    picture = gr.HTML(
                        "",
                        html_template=_PICTURE,
                        css_template=_STYLE,
                        js_on_load=_SCRIPT,
                        width=1,
                        height=1,
                        shapes="",
                    )
                    plot = gr.Plot(show_label=False, visible=False)
            shown, chosen = [picture, details, plot], [inspection, threshold, ranking]
            image.change(self._inspect, [image, threshold], [inspection, ranking, *shown])
            threshold.change(self._refresh, chosen, shown)
            ranking.input(self._refresh, chosen, shown)
            picture.click(self._select, chosen, shown)
        return blocks

    def _inspect(self, path: str | None, threshold: float) -> tuple[Any, ...]:
        """Detects in an image, and shows what was found by the final score."""
        if path is None:
            return None, gr.skip(), gr.HTML("", shapes=""), gr.HTML(_HINT), gr.Plot(visible=False)
        try:
            inspection = Inspection(self._predictor, path)
        except UserError as e:
            raise gr.Error(str(e).replace(path, "the image")) from e
        height, width = inspection.image.shape[:2]
        choices = [(self._name(name), name) for name in inspection.rankings]
        _, details, plot = self._refresh(inspection, threshold, "final score")
        shapes = self._draw(inspection.detections(), threshold)
        picture = gr.HTML(encode(inspection.image), width=width, height=height, shapes=shapes)
        return inspection, gr.Radio(choices, value="final score"), picture, details, plot

    def _refresh(self, inspection: Inspection | None, threshold: float, ranking: str) -> tuple[Any, ...]:
        """Shows the detections of another threshold or ranking; none is selected."""
        if inspection is None:
            return gr.skip(), gr.skip(), gr.skip()
        found = inspection.detections(ranking)
        count = int((found.scores >= threshold).sum())
        details = f"{count} of {len(found)} detections are shown. {_HINT}"
        return gr.HTML(shapes=self._draw(found, threshold)), gr.HTML(details), gr.Plot(visible=False)

    def _select(self, inspection: Inspection, threshold: float, ranking: str, event: gr.EventData) -> tuple[Any, ...]:
        """Shows what is behind the detection that was clicked."""
        found, index = inspection.detections(ranking), event.index
        level, location = int(found.levels[index]), int(found.locations[index])
        shapes = self._draw(found, threshold, index) + draw_taps(inspection, level, location)
        distributions = inspection.distributions(level, location)
        figure = None if distributions is None else draw_distributions(distributions, inspection.bin_width(level))
        details = self._describe(inspection, found, index)
        return gr.HTML(shapes=shapes), gr.HTML(details), gr.Plot(figure, visible=figure is not None)

    def _draw(self, found: Instances, threshold: float, selected: int | None = None) -> str:
        return draw_boxes(found[found.scores >= threshold], self._predictor.categories.names, self._quality, selected)

    def _name(self, ranking: str) -> str:
        return self._quality if ranking == "quality" else ranking

    def _describe(self, inspection: Inspection, found: Instances, index: int) -> str:
        """The numbers of a detection as a table, and what the circles in the picture are."""
        level, location = int(found.levels[index]), int(found.locations[index])
        name = self._predictor.categories.names[int(found.pred_classes[index])]
        rows = {key: f"{value:.3f}" for key, value in numbers(found, index, self._quality).items()}
        rows["level"] = f"{level + 1} of {inspection.num_levels}, stride {inspection.stride(level)}"
        cells = "".join(f"<tr><td>{html.escape(key)}</td><td>{value}</td></tr>" for key, value in rows.items())
        taps = inspection.taps(level, location)
        text = "The cross is the location that predicted the box."
        if taps is not None:
            groups = f" Each of the {len(taps)} offset groups has its colour." if len(taps) > 1 else ""
            text += f" The circles are where the aligned convolution reads the features.{groups}"
        return f"<b>{html.escape(name)}</b><table>{cells}</table><p>{text}</p>"
