"""Whole detectors: the variants of the project on a pyramid of five convolutions."""

import pytest
import torch
from clq.errors import UserError
from clq.modeling.meta_arch.clq import flatten
from clq.modeling.structures import Predictions
from detectron2.utils.events import EventStorage
from tiny_detectors import VARIANTS, build, sample
from torchvision.ops import box_iou


def test_flattened_locations_go_from_fine_to_coarse_and_row_major():
    """Each location's channels hold (level, row, column)."""
    sizes = [(5, 7), (3, 4), (2, 2), (1, 2), (1, 1)]

    def level(index, h, w):
        rows, cols = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        return torch.stack((torch.full((h, w), index), rows, cols)).float().unsqueeze(0)

    maps = [level(i, h, w) for i, (h, w) in enumerate(sizes)]
    maps = [torch.cat((m, m + 100)) for m in maps]  # two images
    flat = flatten(Predictions(maps, maps, [], []))
    expected = [[i, y, x] for i, (h, w) in enumerate(sizes) for y in range(h) for x in range(w)]
    assert flat.cls_logits[0].tolist() == expected
    assert torch.equal(flat.cls_logits[1], flat.cls_logits[0] + 100)
    assert flat.quality_logits is None and flat.coarse_box_pred is None


def random_boxes(number):
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
    "500 boxes": lambda: [sample((160, 160), random_boxes(500))],
    "smaller than the largest stride": lambda: [sample((40, 30), [(5, 5, 25, 35)])],
    "a single cell": lambda: [sample((7, 5), [(0, 0, 5, 7)])],
    "sizes that differ": lambda: [sample((40, 200), [BOX]), sample((160, 33), [(2, 80, 30, 150)])],
}


def backward(model, batch, autocast=False):
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    return losses


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_and_gradients_are_finite_at_every_edge(variant, autocast):
    """The losses have the same names for any batch, and every parameter has a finite gradient."""
    model, extra = build(variant), VARIANTS[variant][2]
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
            # In these the class score depends on the boxes, by their distributions or by offsets that learn from it.
            if variant not in ("gflv2", "vfnet", "clq", "atss_clq", "simota"):
                assert not any(p.grad.any() for name, p in model.named_parameters() if "box_pred" in name)
        elif edge not in ("a pixel", "a single cell", "a pixel on a grid point"):
            assert all(objects.values()), (edge, objects)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_few_steps_fit_one_batch_and_it_is_found_again(variant):
    """The image has two objects of different brightness, and after the training the detector finds both."""
    model = build(variant, "MODEL.CLQ.SCORE_THRESH", 0.2)
    boxes = [(4.0, 8.0, 44.0, 48.0), (52.0, 4.0, 92.0, 60.0)]
    item = sample((64, 96), boxes)
    item["image"] *= 0.1
    for i, (x1, y1, x2, y2) in enumerate(boxes):
        item["image"][:, int(y1) : int(y2), int(x1) : int(x2)] += 90 + 100 * i
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
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
        (found,) = model([{"image": item["image"], "height": 128, "width": 192}])
    found = found["instances"]
    assert found.image_size == (128, 192)  # as requested, twice the size of the input
    best = [found[found.pred_classes == k].pred_boxes.tensor[0] / 2 for k in (0, 1)]
    # A bound in pixels would depend on how sums are rounded: 60 steps at a constant rate end somewhere near the boxes.
    assert box_iou(torch.stack(best), torch.tensor(boxes)).diagonal().min() > 0.75


@pytest.mark.parametrize("variant", VARIANTS)
def test_detections_carry_the_scores_of_their_variant(variant):
    model = build(variant, "MODEL.CLQ.SCORE_THRESH", 0.0, "TEST.DETECTIONS_PER_IMAGE", 20).eval()
    with torch.no_grad():
        (out,) = model([sample((96, 128))])
    found = out["instances"]
    assert len(found) == 20
    assert found.scores.diff().max() <= 0
    if variant.startswith("tood"):
        torch.testing.assert_close(found.scores, (found.cls_scores * found.pred_quality).sqrt())
    elif "loss_quality" in VARIANTS[variant][2] or variant == "gflv2":
        exponent = 1.0 if variant in ("atss", "max_iou", "gflv2") else 0.3
        torch.testing.assert_close(found.scores, found.cls_scores * found.pred_quality**exponent)
    else:
        assert not found.has("pred_quality")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("BOX.CODING", "xywh", "xywh: must be one of delta, distance, ltrb, distribution"),
        ("BOX.WEIGHT_BY", "area", "area: must be one of none, centerness, score, iou, alignment_metric"),
        ("BOX.WEIGHT_BY", "alignment_metric", "needs MODEL.CLQ.ASSIGN.NAME task"),
        ("REFINE.NAME", "star", "needs MODEL.CLQ.BOX.CODING distance"),
        ("REFINE.NAME", "sampling", "needs MODEL.CLQ.BOX.CODING ltrb"),
        ("TOWERS", "none", "none: must be one of separate, shared, interactive"),
        ("ASSIGN.NAME", "hungarian", "hungarian: must be one of atss, task, simota, max_iou"),
        ("ASSIGN.WARMUP", 1.5, "ASSIGN.WARMUP 1.5: must be between 0 and 1"),
        ("CLS.LOSS", "ce", "ce: must be one of focal, qfl"),
        ("QUALITY.NAME", "lqe", "lqe: must be one of none, centerness, iou"),
        ("QUALITY.ALPHA", 0.0, "QUALITY.ALPHA 0.0: must be above 0"),
        ("QUALITY.TOWER", "both", "QUALITY.TOWER both: must be one of cls, reg"),
        ("ALIGN.OFFSET_GROUPS", 3, "OFFSET_GROUPS 3: must divide the 32 channels"),
        ("ALIGN.GRADIENT", 1.5, "GRADIENT 1.5: must be between 0 and 1"),
        ("ALIGN.OFFSET_STD", -0.1, "OFFSET_STD -0.1: must be at least 0"),
        ("BOX.WEIGHT_FLOOR", -1.0, "WEIGHT_FLOOR -1.0: must be at least 0"),
        ("TOPK_COUNTS", "boxes", "boxes: must be one of pairs, locations"),
        ("ACTIVATION", "gelu", "gelu: must be one of relu, leaky_relu"),
        ("ALIGN.NAME", "dcn", "dcn: must be one of none, learned, geometric"),
        ("ALIGN.BACKEND", "cuda", "ALIGN.BACKEND cuda: must be one of auto, torchvision, grid_sample, gather"),
        ("CONV_DIM", 40, "CONV_DIM 40: must be a multiple of 32"),
    ],
)
def test_wrong_settings_are_named(key, value, message):
    with pytest.raises(UserError, match=message) as error:
        build("clq", f"MODEL.CLQ.{key}", value)
    assert "MODEL.CLQ." in str(error.value)
    assert "\n" not in str(error.value)


def test_the_config_sets_the_initial_scale_of_the_offsets():
    weights = [build("clq", "MODEL.CLQ.ALIGN.OFFSET_STD", std).head.align.offsets.conv.weight for std in (0.1, 0.02)]
    torch.testing.assert_close(weights[0], 5 * weights[1])


def test_the_quality_dgqp_needs_distributions():
    with pytest.raises(UserError, match=r"QUALITY\.NAME dgqp: the quality comes from distributions"):
        build("atss", "MODEL.CLQ.QUALITY.NAME", "dgqp")
