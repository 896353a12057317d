"""Generated images, ground truths and predictions, to measure on; all numbers come from torch's generator."""

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor


def random_boxes(count: int, height: int, width: int) -> Tensor:
    """(count, 4) boxes of 8 to about 400 pixels, all sizes equally likely on a log scale, inside the image."""
    size = 8 * 50 ** torch.rand(count, 2)
    center = torch.rand(count, 2) * torch.tensor([width, height])
    limit = torch.tensor([width, height]).float()
    return torch.cat(((center - size / 2).clamp(min=0), (center + size / 2).minimum(limit)), 1)


def random_image(height: int, width: int) -> dict:
    """A noise image with 20 boxes, in Detectron2's format."""
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(random_boxes(20, height, width))
    instances.gt_classes = torch.zeros(20, dtype=torch.int64)
    return {"image": torch.randint(0, 256, (3, height, width), dtype=torch.uint8), "instances": instances}


def make_candidates(cls_logits: list[Tensor], count: int) -> None:
    """Overwrites class logits: so many, at random places and of random classes, score 0.5 to 0.98, all others nothing.

    A larger bias alone would not do: random weights put all candidates of an image into a few places, and the number
    of them that pass a threshold would differ from detector to detector.

    Args:
        cls_logits: per level, of any shape.
        count: or all of them where there are fewer.
    """
    flat = torch.full((sum(x.numel() for x in cls_logits),), -20.0)
    where = torch.randperm(len(flat))[:count]
    flat[where] = 4 * torch.rand(len(where))
    for level, values in zip(cls_logits, flat.split([x.numel() for x in cls_logits]), strict=True):
        level.copy_(values.view(level.shape))
