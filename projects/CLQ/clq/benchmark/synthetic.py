"""Generated images, ground truths and predictions to measure on, all drawn from torch's random generator."""

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor


def random_boxes(count: int, height: int, width: int) -> Tensor:
    """Draws (count, 4) boxes inside the image, XYXY, with sides of 8 to about 400 pixels, uniform on a log scale."""
    size = 8 * 50 ** torch.rand(count, 2)
    center = torch.rand(count, 2) * torch.tensor([width, height])
    limit = torch.tensor([width, height]).float()
    return torch.cat(((center - size / 2).clamp(min=0), (center + size / 2).minimum(limit)), 1)


def random_image(height: int, width: int) -> dict:
    """Makes a noise image with 20 boxes, in Detectron2's format."""
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(random_boxes(20, height, width))
    instances.gt_classes = torch.zeros(20, dtype=torch.int64)
    return {"image": torch.randint(0, 256, (3, height, width), dtype=torch.uint8), "instances": instances}


def make_candidates(cls_logits: list[Tensor], count: int) -> None:
    """Overwrites class logits so that a given number of them scores 0.5 to 0.98, and all others almost 0.

    The locations and classes of these candidates are random. A larger bias would not do instead: with random weights,
    all candidates of an image are at a few locations, and how many pass a threshold differs between detectors.

    Args:
        cls_logits: class logits of each level, of any shape; changed in place.
        count: number of candidates; if there are fewer logits, all of them become candidates.
    """
    flat = torch.full((sum(x.numel() for x in cls_logits),), -20.0)
    where = torch.randperm(len(flat))[:count]
    flat[where] = 4 * torch.rand(len(where))
    for level, values in zip(cls_logits, flat.split([x.numel() for x in cls_logits]), strict=True):
        level.copy_(values.view(level.shape))
