"""Config keys inferred from the weights of a detector."""

import clq
import pytest
from clq.checkpoint.infer_config import backbone_keys, head_keys
from clq.checkpoint.mmdet_names import convert
from clq.errors import UserError
from mmdet_models import (
    CLASSES,
    CONFIGS,
    DEPTH,
    WIDTH,
    clq_head,
    detector,
    gfl_head,
    res2net_shapes,
    resnet_shapes,
    zero_weights,
)


def keys_of(head, *, distributions):
    return head_keys(convert(detector(head=head)).weights, distributions=distributions)


def test_the_sizes_of_a_head_are_inferred():
    keys = keys_of(gfl_head(quality=False), distributions=True)
    assert keys == {
        "MODEL.FPN.OUT_CHANNELS": WIDTH,
        "MODEL.CLQ.NUM_CLASSES": CLASSES,
        "MODEL.CLQ.CONV_DIM": WIDTH,
        "MODEL.CLQ.NUM_CONVS": DEPTH,
        "MODEL.CLQ.BOX.REG_MAX": 16,
    }
    assert keys_of(clq_head(), distributions=True) == {**keys, "MODEL.CLQ.ALIGN.OFFSET_GROUPS": 4}
    assert "MODEL.CLQ.BOX.REG_MAX" not in keys_of(None, distributions=False)


def test_a_backbone_with_groups_is_inferred():
    keys = backbone_keys("a.pth", convert(detector(resnet_shapes((3, 4, 23, 3), width=2, groups=4))).weights)
    resnet = {key.removeprefix("MODEL.RESNETS."): value for key, value in keys.items()}
    assert (resnet["DEPTH"], resnet["NUM_GROUPS"], resnet["WIDTH_PER_GROUP"]) == (101, 4, 2)
    assert (resnet["STEM_OUT_CHANNELS"], resnet["RES2_OUT_CHANNELS"]) == (8, 16)
    assert resnet["DEFORM_ON_PER_STAGE"] == [False] * 4


@pytest.mark.parametrize(
    "shapes, message",
    [
        (resnet_shapes((3, 4, 5, 3)), "has 5 blocks in layer3, as no ResNet .*18, 34, 50, 101, 152 layers"),
        (resnet_shapes(offset_channels=(0, 36, 36, 36)), "several groups of offsets, .*with one group"),
    ],
)
def test_a_backbone_that_detectron2_does_not_have_is_refused(shapes, message):
    with pytest.raises(UserError, match=rf"^a\.pth: .*{message}\.$"):
        backbone_keys("a.pth", convert(detector(shapes)).weights)


def test_the_backbone_of_a_published_detector_is_inferred(convert):
    shapes = res2net_shapes((3, 4, 23, 3), 64, 256, 26, offset_channels=(0, 0, 27, 27))
    _, (config,), keys = convert(detector(shapes, gfl_head(80), zero_weights))
    assert config == "configs/GFLV2/mmdet_gflv2_R_50_FPN_1x.yaml"
    assert keys["MODEL.CLQ.CONV_DIM"] == keys["MODEL.FPN.OUT_CHANNELS"] == WIDTH
    wanted = clq.setup_cfg(str(CONFIGS / "GFLV2/gflv2_R2_101_DCN_FPN_2x_ms.yaml"))
    ours = clq.setup_cfg(str(CONFIGS.parent / config), [word for pair in keys.items() for word in pair])
    assert ours.MODEL.RESNETS == wanted.MODEL.RESNETS
    assert ours.MODEL.BACKBONE == wanted.MODEL.BACKBONE
