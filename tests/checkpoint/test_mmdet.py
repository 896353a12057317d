"""What is no whole detector of MMDetection that this project has is refused in one line."""

from pathlib import Path

import pytest
import torch
from clq.checkpoint.foreign import weights_of
from clq.checkpoint.mmdet import convert_checkpoint
from clq.errors import UserError
from mmdet_models import clq_head, detector, gfl_head, resnet_shapes
from mmdet_texts import config_text


def without(part, weights=None):
    return {key: value for key, value in (weights or detector()).items() if part not in key}


ONE = torch.ones(1)
REFUSED = {
    "no ATSS, GFL, GFLv2, VFNet, TOOD or CLQ of MMDetection .its head has fcos_cls": {"bbox_head.fcos_cls.weight": ONE},
    "lqe_layer, of CLQ's authors' later head": {
        **{f"bbox_head.{layer}.weight": ONE for layer in ("conv_cls", "conv_reg", "conv_centerness", "lqe_layer")},
        "bbox_head.feature_alignment.conv_offset.weight": ONE,
    },
    "is CLQ without feature alignment .* train it here with configs/ablations/clq_wo_align": detector(
        head=clq_head(80, align=False)
    ),
    r"1 weights .* missing: head\.align\.offsets\.conv\.weight; give": without(
        "conv_offset", detector(head=clq_head(80))
    ),
    r"align\.offsets\.conv\.weight is of another shape": {
        **detector(head=clq_head(80)),
        "bbox_head.feature_alignment.conv_offset.weight": torch.ones(72, 5, 1, 1),
    },
    "holds no weights; give a checkpoint of MMDetection": {},
    "it has no bbox_head": {"roi_head.fc.weight": ONE},
    "no place here: neck.fpn_convs.5": {"neck.fpn_convs.5.conv.weight": ONE, **detector()},
    "no place here: backbone.stem.0.weight": {"backbone.stem.0.weight": ONE, **detector()},  # a ResNet's own v1d
    "no place here: bbox_head.cls_convs.1.conv.conv_offset": {
        "bbox_head.cls_convs.1.conv.conv_offset.weight": ONE,
        **detector(),
    },
    "weights and plain values alone": {**detector(), "hooks": Path("x")},
    "with 5 blocks in layer3": detector(resnet_shapes((3, 4, 5, 3))),
    "several groups": detector(resnet_shapes(offset_channels=(0, 36, 36, 36))),
    r"place here: 'neck\.\\nx', neck\.0, .*, neck\.8, and 41 more; give": {
        "neck.\nx": ONE,
        **{f"neck.{i}": ONE for i in range(50)},
        **detector(),
    },
    "holds a list": [1],
    'holds a list as "state_dict"': {"state_dict": [1]},
    "holds 3, which is no weight": {"state_dict": {3: ONE}},
    "holds 'epoch', which is no weight": {**detector(), "epoch": 12},
    r"scales\.2\.scale is of shape \[2\], not one number": {**detector(), "bbox_head.scales.2.scale": torch.ones(2)},
    "shapes that no detector's are of": {**detector(), "bbox_head.atss_cls.weight": torch.ones(7)},
    "lacks backbone.fpn_lateral3.weight": without("neck."),
    "lacks head.cls_logits.weight": without("atss_cls.weight"),
    "lacks res2.0.conv2.weight": without("backbone.layer1"),
    r"1 weights of its detector are missing: head\.scales; give the checkpoint of the whole detector\.": without(
        "scales"
    ),
    r"2 weights .* missing: head\.quality_pred\.0\.bias, head": without("reg_conf.0", detector(head=gfl_head(80))),
    r"head\.scales is of another shape .* \[4\] instead of \[5\]": without("scales.4"),
    r"1 of its weights are not finite: head\.box_pred\.bias; its training diverged or .* fetch it again\.": {
        **detector(),
        "bbox_head.atss_reg.bias": torch.tensor([0.0, 1.0, float("nan"), 2.0]),
    },
}


@pytest.mark.parametrize("why", REFUSED)
def test_others_are_refused(why, convert):
    with pytest.raises(UserError, match=f"{convert.path}: .*{why}") as e:
        convert(REFUSED[why])
    assert len(str(e.value).splitlines()) == 1
    with pytest.raises(UserError, match=r"gone\.pth: no such file"):
        convert_checkpoint("gone.pth")


@pytest.mark.parametrize("kind", ["PAAHead", "LADHead", "mmdet.models.dense_heads.PAAHead"])
def test_another_detector_of_the_same_layers_is_refused_by_its_config(kind, convert):
    with pytest.raises(UserError, match=f"is of {kind.split('.')[-1]}, which this project does not have"):
        convert({"meta": {"config": config_text(kind)}, "state_dict": detector()})
    convert({"meta": {"config": config_text("ATSSHead", 7)}, "state_dict": detector()})  # the same, with its own head


# Of a tensor that is no weight: what it is, as the error says it.
ODD = {
    "a sparse_coo tensor": lambda: torch.eye(3).to_sparse(),
    "a sparse_csr tensor": lambda: torch.eye(3).to_sparse_csr(),
    "a tensor without values .meta.": lambda: torch.ones(3, device="meta"),
    "of quint8": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8),
    "of complex64": lambda: torch.ones(3, dtype=torch.complex64),
    "of int64": lambda: torch.ones(3, dtype=torch.int64),
    "of bool": lambda: torch.ones(3, dtype=torch.bool),
    "of float8_e5m2": lambda: torch.ones(3).to(torch.float8_e5m2),
}


@pytest.mark.filterwarnings("ignore:Sparse", "ignore:.*quantize")
@pytest.mark.parametrize("what", ODD)
@pytest.mark.parametrize("key", ["bbox_head.atss_cls.bias", "backbone.bn1.num_batches_tracked"])
def test_tensors_that_are_no_weights_are_named(what, key):
    if what == "of int64" and key.endswith("num_batches_tracked"):
        return
    with pytest.raises(UserError, match=rf"^a\.pth: {key} is {what}.*; save the weights as plain float32 tensors\.$"):
        weights_of("a.pth", {"state_dict": {key: ODD[what]()}}, "MMDetection")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precision_become_float32(dtype, convert, caplog):
    weights = detector()
    weights["bbox_head.atss_cls.bias"] = torch.tensor([0.5, -2.0, 0, 1, 2, 3, 4], dtype=dtype)
    converted, _, _ = convert(weights)
    assert {w.dtype for w in converted.values()} == {torch.float32}
    assert converted["head.cls_logits.bias"].tolist() == [0.5, -2, 0, 1, 2, 3, 4]
    assert f"holds weights in {str(dtype).removeprefix('torch.')}, which become float32" in caplog.text
