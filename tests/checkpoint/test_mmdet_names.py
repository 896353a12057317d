"""MMDetection's names of weights and those of this project."""

import logging

import clq
import pytest
import torch
from mmdet_models import (
    R18,
    build_small,
    detector,
    load,
    resnet18_shapes,
)


def test_the_weights_of_a_whole_detector_fill_a_model_of_its_size(caplog):
    torch.manual_seed(0)
    weights, model = detector(resnet18_shapes()), build_small("ATSS/mmdet_atss_R_50_FPN_1x.yaml", *R18)
    with caplog.at_level(logging.WARNING):
        converted = clq.convert_mmdet(weights)
    assert not caplog.records  # the counters of batches have no counterpart and need none
    load(model, converted)
    ours, pairs = (
        model.state_dict(),
        {
            "backbone.layer3.1.conv2.weight": "backbone.bottom_up.res4.1.conv2.weight",
            "backbone.layer2.0.downsample.1.running_var": "backbone.bottom_up.res3.0.shortcut.norm.running_var",
            "neck.lateral_convs.0.conv.weight": "backbone.fpn_lateral3.weight",
            "neck.fpn_convs.2.conv.bias": "backbone.fpn_output5.bias",
            "neck.fpn_convs.3.conv.weight": "backbone.top_block.p6.weight",
            "neck.fpn_convs.4.conv.weight": "backbone.top_block.p7.weight",
            "bbox_head.cls_convs.1.gn.bias": "head.cls_tower.1.norm.bias",
            "bbox_head.reg_convs.0.conv.weight": "head.reg_tower.0.weight",
            "bbox_head.atss_centerness.bias": "head.quality_pred.bias",
        },
    )
    for theirs, name in pairs.items():
        assert torch.equal(ours[name], weights[theirs]), name
    assert ours["head.scales"].tolist() == [weights[f"bbox_head.scales.{i}.scale"].item() for i in range(5)]


def test_scales_keep_the_order_of_their_levels():
    weights = {f"scales.{i}.scale": torch.tensor([float(i)]) for i in (10, 2, 0, 1, 3, 4, 5, 6, 7, 8, 9)}
    assert clq.convert_mmdet(weights)["scales"].tolist() == list(range(11))


@pytest.mark.parametrize(
    "key",
    [
        "bbox_head.inter_convs.0.conv.conv_offset.weight",
        "bbox_head.reg_conf.0.gn.weight",
        "backbone.layer1.0.attention.weight",
        "neck.fpn_convs.5.conv.weight",
        "neck.lateral_convs.0.bn.weight",
        "roi_head.fc.weight",
        "atss_cls_old.weight",
    ],
)
def test_weights_without_a_counterpart_are_listed_and_left_out(key, caplog):
    with caplog.at_level(logging.WARNING):
        converted = clq.convert_mmdet({key: torch.zeros(1), "atss_cls.bias": torch.ones(2)})
    assert list(converted) == ["cls_logits.bias"]
    assert "1 weights have no counterpart" in caplog.text
    assert key in caplog.text


def test_a_whole_checkpoint_is_converted_like_its_weights():
    weights = detector()
    converted = clq.convert_mmdet({"meta": {"epoch": 12}, "state_dict": weights})
    expected = clq.convert_mmdet(weights)
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[k], expected[k]) for k in expected)
