from pathlib import Path

import clq
import pytest
import torch
from clq.modeling.optimize.fold_bn import fold_batch_norms
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_backbone
from torch import nn

BASE = str(Path(__file__).parents[3] / "configs/Base-Dense-R50-FPN.yaml")
R18 = ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.FPN.OUT_CHANNELS", 16]
SHUFFLENET = [
    *("MODEL.BACKBONE.NAME", "build_shufflenet_pan_backbone", "MODEL.BACKBONE.FREEZE_AT", 0),
    *("MODEL.FPN.IN_FEATURES", ["stage2", "stage3"]),
]
BACKBONES = {
    "frozen": R18,
    "batch norm": [*R18, "MODEL.RESNETS.NORM", "BN", "MODEL.FPN.NORM", "BN"],
    "group norm": [*R18, "MODEL.FPN.NORM", "GN", "MODEL.FPN.OUT_CHANNELS", 32],
    "shufflenet": [*SHUFFLENET, "MODEL.CLQ.IN_FEATURES", ["p3", "p4"]],
}
NORMS = FrozenBatchNorm2d, nn.BatchNorm2d


def randomize(backbone):
    """Gives every normalization random statistics and parameters, and returns the backbone in double precision."""
    torch.manual_seed(0)
    for module in backbone.modules():
        if isinstance(module, NORMS):
            for tensor in (module.running_var, module.weight.data):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.running_mean, module.bias.data):
                tensor.normal_(std=0.3)
    return backbone.double().eval()


@pytest.mark.parametrize("name", BACKBONES)
def test_a_folded_backbone_computes_the_same_without_a_batch_norm(name):
    backbone = randomize(build_backbone(clq.setup_cfg(BASE, BACKBONES[name])))
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = backbone(image)
        assert fold_batch_norms(backbone) is backbone
        found = backbone(image)
    assert not any(isinstance(module, NORMS) for module in backbone.modules())
    assert any(isinstance(module, nn.GroupNorm) for module in backbone.modules()) == (name == "group norm")
    for level, feature in found.items():
        torch.testing.assert_close(feature, expected[level], atol=1e-9, rtol=1e-9)


def test_a_convolution_and_its_batch_norm_are_folded_by_hand():
    """(3 x + 1 - 2) / sqrt(4) * 5 + 7 is 7.5 x + 4.5."""
    conv, norm = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0.0)
    for tensor, value in zip((conv.weight, conv.bias, norm.running_mean, norm.running_var), (3, 1, 2, 4), strict=True):
        tensor.data.fill_(value)
    norm.weight.data.fill_(5), norm.bias.data.fill_(7)
    folded = fold_batch_norms(nn.Sequential(conv, norm).eval())
    assert (folded[0].weight.item(), folded[0].bias.item()) == (7.5, 4.5)
    assert folded(torch.ones(1, 1, 1, 1)).item() == 12


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(ValueError, match="eval"):
        fold_batch_norms(nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)))
