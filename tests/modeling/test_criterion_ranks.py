"""The losses of several processes average to those of one."""

from datetime import timedelta

import pytest
import torch
from clq.modeling.structures import FlatPredictions, Targets
from hand_made_batch import atss, clq, gfl
from torch import tensor


def three_images():
    """Random predictions, with 5, 0 and 2 positives in three images."""
    torch.manual_seed(0)
    image, location = tensor([0, 0, 0, 0, 0, 2, 2]), tensor([0, 1, 2, 3, 4, 1, 3])
    corner = torch.rand(6, 2) * 50
    anchors = torch.cat((corner, corner + 20), 1)
    targets = Targets(
        image,
        location,
        torch.ones(7) > 0,
        anchors[location] + tensor([-4.0, -2, 3, 5]),
        location % 2,
        torch.ones(3, 6) > 0,
        tensor(8.0),
    )
    return [torch.randn(3, 6, c) for c in (2, 4, 1, 32)], targets, anchors, torch.full((6,), 8.0)


def losses_of_images(first, last):
    """Losses of ATSS, CLQ and GFL on the images from ``first`` to before ``last``, as if they were the whole batch."""
    (cls, deltas, quality, bins), targets, anchors, strides = three_images()
    keep = (targets.image >= first) & (targets.image < last)
    own = targets._replace(
        image=targets.image[keep] - first,
        valid=targets.valid[first:last],
        num_pos=tensor([5.0, 1.0, 2.0])[first:last].sum(),
        **{name: getattr(targets, name)[keep] for name in ("location", "is_positive", "gt_boxes", "gt_classes")},
    )
    results = []
    # The fourth has a floor that is larger than the sum of the weights; the last has no positives to divide by.
    none = own._replace(num_pos=tensor(0.0))
    cases = (
        (atss(), deltas, own),
        (clq(), deltas, own),
        (gfl(), bins, own),
        (gfl(50.0), bins, own),
        (atss(), deltas, none),
    )
    for loss, boxes, targets in cases:
        predictions = FlatPredictions(*(x[first:last] for x in (cls + 1, boxes, quality)))
        predictions = predictions if loss.quality_target else predictions._replace(quality_logits=None)
        results.append({name: x.item() for name, x in loss(predictions, targets, anchors, strides).items()})
    return results


def on_rank(rank, folder, first, last):
    """Saves the losses of one of two processes on its images."""
    where, timeout = f"file://{folder}/rendezvous", timedelta(minutes=3)
    torch.distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=2, timeout=timeout)
    try:
        torch.save(losses_of_images(first, last), f"{folder}/{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_average_to_the_losses_of_one(tmp_path):
    """One rank has image 0, the other has images 1 and 2: DDP averages their gradients to those of one big batch."""
    other = torch.multiprocessing.get_context("fork").Process(target=on_rank, args=(1, tmp_path, 1, 3))
    other.start()
    on_rank(0, tmp_path, 0, 1)
    other.join()
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for together, one, two in zip(losses_of_images(0, 3), *ranks, strict=True):
        assert {name: (one[name] + two[name]) / 2 for name in together} == pytest.approx(together, rel=1e-4)
