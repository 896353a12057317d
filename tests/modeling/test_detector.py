"""Whole detectors, each a config of the project on a pyramid of five convolutions."""

import itertools
from pathlib import Path

import clq
import pytest
import torch
from clq.errors import UserError
from clq.modeling.backbone import TopLevelsFromP5
from clq.modeling.head import Predictions
from clq.modeling.matcher import match_atss
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_model
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn

CONFIGS = Path(__file__).parents[2] / "configs"
STRIDES = [8, 16, 32, 64, 128]
# Row: its config, overrides, the losses besides class and box.
ROWS = {
    "atss": ("ATSS/atss_R_50_FPN_1x", [], {"loss_quality"}),
    "atss_qfl": ("ablations/atss_qfl_R_50_FPN_1x", [], set()),
    "clq_wo_lqe": ("ablations/clq_wo_lqe_R_50_FPN_1x", [], set()),
    "clq_wo_align": ("ablations/clq_wo_align_R_50_FPN_1x", [], {"loss_quality"}),
    "clq": ("CLQ/clq_R_50_FPN_1x", [], {"loss_quality"}),
    "clq_learned": ("ablations/clq_learned_align_R_50_FPN_1x", [], {"loss_quality"}),
    "distribution": (
        "ablations/atss_qfl_R_50_FPN_1x",
        ["MODEL.CLQ.BOX.CODING", "distribution", "MODEL.CLQ.BOX.WEIGHT_BY", "score"],
        {"loss_dfl"},
    ),
}


@BACKBONE_REGISTRY.register()
class FiveConvolutions(Backbone):
    """P3 to P7 with 32 channels, of the sizes that an FPN gives."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        self.levels = nn.Sequential(Conv2d(3, 32, 8, stride=8), *(Conv2d(32, 32, 2, stride=2) for _ in range(2)))
        self.top = TopLevelsFromP5(32)

    size_divisibility = 32

    def forward(self, x):
        levels = list(itertools.accumulate(self.levels, lambda x, conv: conv(x), initial=x))[1:]
        return {f"p{i}": x for i, x in enumerate([*levels, *self.top(levels[-1])], start=3)}

    def output_shape(self):
        return {f"p{i + 3}": ShapeSpec(channels=32, stride=s) for i, s in enumerate(STRIDES)}


def build(row, *opts):
    torch.manual_seed(0)
    config, own, _ = ROWS[row]
    c = "MODEL.CLQ."
    small = [c + "CONV_DIM", 32, c + "NUM_CONVS", 1, c + "NUM_CLASSES", 5, "MODEL.BACKBONE.NAME", "FiveConvolutions"]
    opts = [*small, "DATASETS.TRAIN", [], "MODEL.DEVICE", "cpu", *own, *opts]
    return build_model(clq.setup_cfg(str(CONFIGS / f"{config}.yaml"), opts))


def sample(size, boxes=()):
    """One training image (H, W) of noise, with boxes of classes 0, 1, ..."""
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4))
    instances.gt_classes = torch.arange(len(boxes)) % 5
    return {"image": torch.rand(3, *size) * 255, "instances": instances}


def many(number):
    corner, size = torch.rand(number, 2) * 90, torch.rand(number, 2) * 60 + 1
    return torch.cat((corner, corner + size), 1).tolist()


BOX = (20, 10, 70, 60)
EDGES = {
    "no object in one image": lambda: [sample((96, 128)), sample((96, 128), [BOX])],
    "no object in the first and last": lambda: [sample((64, 64)), sample((64, 64), [BOX]), sample((64, 64))],
    "no object at all": lambda: [sample((96, 128)), sample((96, 128))],
    "a pixel": lambda: [sample((96, 128), [(40.2, 30.1, 41.2, 31.1)])],
    "a pixel on a grid point": lambda: [sample((96, 128), [(39.5, 31.5, 40.5, 32.5)])],
    "the whole image": lambda: [sample((96, 128), [(0, 0, 128, 96)])],
    "half outside": lambda: [sample((96, 128), [(-40, -30, 40, 30), (100, 60, 190, 130)])],
    "the same box twice": lambda: [sample((96, 128), [BOX, BOX])],
    "500 boxes": lambda: [sample((160, 160), many(500))],
    "smaller than the largest stride": lambda: [sample((40, 30), [(5, 5, 25, 35)])],
    "a single cell": lambda: [sample((7, 5), [(0, 0, 5, 7)])],
    "sizes that differ": lambda: [sample((40, 200), [BOX]), sample((160, 33), [(2, 80, 30, 150)])],
}


def backward(model, batch, autocast=False):
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses = model(batch)
    sum(losses.values()).backward()
    return losses


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("row", ROWS)
def test_edge_matrix(row, autocast):
    """Finite losses of the same names, and a finite gradient of every parameter, whatever comes in."""
    model, extra = build(row), ROWS[row][2]
    for edge, make in EDGES.items():
        model.zero_grad(set_to_none=True)
        losses = backward(model, make(), autocast)
        assert losses.keys() == {"loss_cls", "loss_box"} | extra, edge
        assert all(x.isfinite() and x.dtype == torch.float32 for x in losses.values()), (edge, losses)
        for name, p in model.named_parameters():
            assert p.grad is not None, (edge, name)
            assert p.grad.isfinite().all(), (edge, name)
        objects = {name: x.item() for name, x in losses.items() if name != "loss_cls"}
        if edge == "no object at all":
            assert not any(objects.values())
            assert not any(p.grad.any() for name, p in model.named_parameters() if "box_pred" in name)
        elif edge not in ("a pixel", "a single cell", "a pixel on a grid point"):
            assert all(objects.values()), (edge, objects)


@pytest.mark.parametrize("row", ROWS)
def test_a_few_steps_fit_one_batch_and_it_is_found_again(row):
    """Two objects that differ in brightness, learnt until they are what the detector finds in the image."""
    model = build(row, "MODEL.CLQ.SCORE_THRESH", 0.2, "MODEL.CLQ.NUM_CONVS", 2)
    boxes = [(8.0, 8.0, 56.0, 56.0), (72.0, 24.0, 120.0, 88.0)]
    item = sample((96, 128), boxes)
    item["image"] *= 0.1
    for i, (x1, y1, x2, y2) in enumerate(boxes):
        item["image"][:, int(y1) : int(y2), int(x1) : int(x2)] += 90 + 100 * i
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first = last = None
    for _ in range(60):
        losses = backward(model, [item])
        last = sum(losses.values()).item()
        first = first or last
        optimizer.step()
        optimizer.zero_grad()
    assert last < 0.6 * first
    model.eval()
    with torch.no_grad():
        (found,) = model([{"image": item["image"], "height": 192, "width": 256}])
    found = found["instances"]
    assert found.image_size == (192, 256)  # the size asked for, twice the input's
    best = [found[found.pred_classes == k].pred_boxes.tensor[0] / 2 for k in (0, 1)]
    torch.testing.assert_close(torch.stack(best), torch.tensor(boxes), atol=8.0, rtol=0)


def grids_of(size):
    return [(-(-size[0] // s), -(-size[1] // s)) for s in STRIDES]


def raw_predictions(model, size, n=1):
    """Random outputs of a head for n images of a size."""
    channels, quality = (5, model.loss.coder.num_channels), model.loss.quality is not None
    levels = [[torch.randn(n, c, *g) for g in grids_of(size)] for c in (*channels, 1)]
    return Predictions(*levels[:2], levels[2] if quality else [])


def losses_of(model, sizes, padded, predictions, items):
    images = ImageList(torch.zeros(len(sizes), 3, *padded), sizes)
    features = [torch.zeros(len(sizes), 1, *g) for g in grids_of(padded)]
    return model.forward_training(images, features, predictions, [x["instances"] for x in items])


@pytest.mark.parametrize("row", ["atss", "atss_qfl", "clq", "distribution"])
def test_the_padding_of_the_batch_takes_no_part(row):
    """An image alone, and with a larger one beside it: same outputs at its own cells, nonsense beyond them.

    Its boxes lie at its lower right, so that cells beyond its padding are among the nearest. The other image is empty
    and predicted so; it counts as one positive.
    """
    model = build(row)
    size, own, padded = (70, 100), (96, 128), (192, 224)
    item, empty = sample(size, [(30, 20, 99, 69), (60, 40, 99, 69)]), sample(padded)
    alone, beside = raw_predictions(model, own), raw_predictions(model, padded, n=2)
    for level, mine in zip(itertools.chain(*beside), itertools.chain(*alone), strict=True):
        level[0] = 40.0
        level[0, :, : mine.shape[2], : mine.shape[3]] = mine[0]
    for level in beside.cls_logits:
        level[1] = -60.0
    expected = losses_of(model, [size], own, alone, [item])
    (matched, _) = match_atss(grids_of(own), STRIDES, item["instances"].gt_boxes.tensor)
    n = int((matched >= 0).sum())
    assert n > 3
    weighted = {"loss_box", "loss_dfl"} if row in ("atss", "distribution") else set()
    for sizes, items, order in (([size, padded], [item, empty], [0, 1]), ([padded, size], [empty, item], [1, 0])):
        swapped = Predictions(*([x[order] for x in levels] for levels in beside))
        losses = losses_of(model, sizes, padded, swapped, items)
        for name, value in expected.items():
            factor = 1.0 if name in weighted else n / (n + 1)
            torch.testing.assert_close(losses[name], value * factor)


def test_boxes_and_classes_go_to_the_image_they_belong_to():
    """The loss of two images is that of each alone, weighted by its positives; an empty one counts as one."""
    model = build("clq")
    items = [sample((96, 128), [BOX, (60, 30, 120, 90)]), sample((96, 128)), sample((96, 128), [(5, 40, 60, 95)])]
    items[2]["instances"].gt_classes += 3
    out = raw_predictions(model, (96, 128), n=3)
    numbers, parts = [], []
    for i, item in enumerate(items):
        matched, _ = match_atss(grids_of((96, 128)), STRIDES, item["instances"].gt_boxes.tensor)
        numbers.append(max(int((matched >= 0).sum()), 1))
        alone = Predictions(*([x[i : i + 1] for x in levels] for levels in out))
        parts.append(losses_of(model, [(96, 128)], (96, 128), alone, [item]))
    together = losses_of(model, [(96, 128)] * 3, (96, 128), out, items)
    for name, value in together.items():
        expected = sum(n * p[name] for n, p in zip(numbers, parts, strict=True)) / sum(numbers)
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("row", ROWS)
def test_scores_of_detections_are_those_of_the_row(row):
    model = build(row, "MODEL.CLQ.SCORE_THRESH", 0.0, "TEST.DETECTIONS_PER_IMAGE", 20).eval()
    with torch.no_grad():
        (out,) = model([sample((96, 128))])
    found = out["instances"]
    assert len(found) == 20
    assert found.scores.diff().max() <= 0
    if "loss_quality" in ROWS[row][2]:
        exponent = 1.0 if row == "atss" else 0.3
        torch.testing.assert_close(found.scores, found.cls_scores * found.pred_quality**exponent)
    else:
        assert not found.has("pred_quality")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("BOX.CODING", "ltrb", "ltrb is not one of delta, distribution"),
        ("BOX.WEIGHT_BY", "iou", "iou is not one of none, centerness, score"),
        ("CLS.LOSS", "ce", "ce is not one of focal, qfl"),
        ("QUALITY.NAME", "lqe", "lqe is not one of none, centerness, iou"),
        ("QUALITY.ALPHA", 0.0, "alpha .* must be positive"),
        ("QUALITY.TARGET", "gt", "pred_box or anchor, not gt"),
        ("ALIGN.NAME", "dcn", "dcn is not one of none, learned, geometric"),
        ("ALIGN.BACKEND", "cuda", "torchvision or grid_sample or gather, not cuda"),
        ("CONV_DIM", 40, "40 channels"),
    ],
)
def test_wrong_settings_are_named(key, value, said):
    with pytest.raises(UserError, match=said) as error:
        build("clq", f"MODEL.CLQ.{key}", value)
    assert "MODEL.CLQ." in str(error.value)
    assert "\n" not in str(error.value)
