"""Each setting that weights do not show is compared."""

import pytest
from clq.errors import UserError
from mmdet_texts import HEADS, OURS, changed, check, config_text

NORM = "norm_cfg=dict(type='GN', num_groups={}, requires_grad=True), feat_channels=256"
# What is changed in a config, the setting with its value as the error shows it, and our value.
FOR_ALL = [
    ("style='pytorch'", "style='caffe'", "model.backbone.style = 'caffe'", "'pytorch'"),
    ("norm_eval=True", "strides=(1, 2, 2, 1)", r"model.backbone.strides = \[1, 2, 2, 1\]", r"\[1, 2, 2, 2\]"),
    ("norm_eval=True", "dilations=(1, 1, 1, 2)", r"model.backbone.dilations = \[1, 1, 1, 2\]", r"\[1, 1, 1, 1\]"),
    ("norm_eval=True", "conv_cfg=dict(type='ConvWS')", r"model.backbone.conv_cfg = {'type': 'ConvWS'}", "None"),
    ("type='BN'", "type='BN', eps=0.001", "model.backbone.norm_cfg.eps = 0.001", "1e-05"),
    ("type='FPN'", "type='mmdet.PAFPN'", "model.neck.type = 'PAFPN'", "'FPN'"),
    ("start_level=1", "start_level=0", r"model.neck.stages = \[0, 1, 2, 3\]", r"\[1, 2, 3\]"),
    ("num_outs=5", "num_outs=6", "model.neck.num_outs = 6", "5"),
    ("num_outs=5", "num_outs=5, end_level=3", "model.neck.end_level = 3", "-1"),
    ("'on_output'", "'on_input'", "model.neck.add_extra_convs = 'on_input'", "'on_output'"),
    ("'on_output'", "True", "model.neck.add_extra_convs = 'on_input'", "'on_output'"),
    ("add_extra_convs='on_output', ", "", "model.neck.add_extra_convs = False", "'on_output'"),
    ("num_outs=5", "num_outs=5, act_cfg=dict(type='ReLU')", "model.neck.act_cfg = {'type': 'ReLU'}", "None"),
    ("num_outs=5", "num_outs=5, upsample_cfg=dict(mode='bilinear')", "upsample_cfg.mode = 'bilinear'", "'nearest'"),
    ("feat_channels=256", NORM.format(16), "model.bbox_head.norm_cfg.num_groups = 16", "32"),
    ("feat_channels=256", "conv_cfg=dict(type='DCNv2')", "model.bbox_head.conv_cfg = {'type': 'DCNv2'}", "None"),
    ("stacked_convs=4", "norm_cfg=dict(type='BN')", "model.bbox_head.norm_cfg.type = 'BN'", "'GN'"),
    ("ATSSAssigner', topk=9", "ATSSAssigner', topk=15", "assigner.topk = 15", "9"),
    ("type='ATSSAssigner'", "type='SimOTAAssigner'", "assigner.type = 'SimOTAAssigner'", "'ATSSAssigner'"),
    ("'LoadImageFromFile'", "'LoadImageFromFile', channel_order='rgb'", "data.test: channel_order = 'rgb'", "'bgr'"),
    ("'LoadImageFromFile'", "'LoadImageFromFile', color_type='grayscale'", "color_type = 'grayscale'", "'color'"),
    ("'LoadImageFromFile'", "'LoadImageFromFile', color_type='unchanged'", "color_type = 'unchanged'", "'color'"),
    ("to_rgb=True),", "to_rgb=False),", "data.test: to_rgb = False", "True"),
    ("std=[58.395, 57.12, 57.375], to_rgb=True)\n", "std=[1.0, 1.0, 1.0])\n", "img_norm_cfg: std", r"\[58.395, 57.12"),
    ("mean=[123.675, 116.28, 103.53], std=[58", "mean=[0, 0, 0], std=[58", "mean = \\[0, 0, 0\\]", r"\[123.675"),
    ("num_outs=5", "num_outs=5, relu_before_extra_convs=True", "model.neck.relu_before_extra_convs = True", "False"),
    ("type='AnchorGenerator'", "type='LegacyAnchorGenerator'", "type = 'LegacyAnchorGenerator'", "'AnchorGenerator'"),
    ("scales_per_octave=1", "center_offset=0.5", "model.bbox_head.anchor_generator.center_offset = 0.5", "0.0"),
    ("octave_base_scale=8", "octave_base_scale=4", "anchor_generator.octave_base_scale = 4", "8.0"),
    ("octave_base_scale=8, scales_per_octave=1", "scales=[4]", "anchor_generator.octave_base_scale = 4", "8.0"),
    ("octave_base_scale=8, scales_per_octave=1", "scales=[8, 10]", r"anchor_generator.scales = \[8, 10\]", "None"),
    ("scales_per_octave=1", "scales_per_octave=3", "anchor_generator.scales_per_octave = 3", "1"),
    ("ratios=[1.0], ", "ratios=[0.5, 1.0, 2.0], ", r"anchor_generator.ratios = \[0.5, 1.0, 2.0\]", r"\[1.0\]"),
    ("strides=[8, 16, 32, 64, 128]", "strides=[4, 8, 16, 32, 64]", r"strides = \[4, 8, 16, 32, 64\]", r"\[8, 16"),
    ("ratios=[1.0]", "ratios=[1.0], base_sizes=[9, 18, 36, 72, 144]", r"base_sizes = \[9, 18", "None"),
]
DGQP = [
    ("reg_topk=4", "reg_topk=5", "model.bbox_head.reg_topk = 5", "4"),
    ("add_mean=True", "add_mean=False", "model.bbox_head.add_mean = False", "True"),
]
STARTS = "bbox_head=dict(\n        "
# Class of a head -> changes. Those for all heads are tried with one of them.
CHANGES = {
    "ATSSHead": [
        ("target_stds=[0.1, 0.1, 0.2, 0.2]", "target_stds=[1.0, 1.0, 1.0, 1.0]", r"target_stds = \[1.0", r"\[0.1, 0.1"),
        (", target_stds=[0.1, 0.1, 0.2, 0.2]", "", r"target_stds = \[1.0, 1.0, 1.0, 1.0\]", r"\[0.1, 0.1, 0.2, 0.2\]"),
        ("target_means=[0.0,", "target_means=[0.1,", r"bbox_coder.target_means = \[0.1", r"\[0.0, 0.0, 0.0, 0.0\]"),
        ("type='DeltaXYWHBBoxCoder'", "type='TBLRBBoxCoder'", "bbox_coder.type = 'TBLRBBoxCoder'", "'DeltaXYWHBBoxCo"),
        ("'DeltaXYWHBBoxCoder'", "'DeltaXYWHBBoxCoder', add_ctr_clamp=True", "add_ctr_clamp = True", "False"),
        (STARTS, STARTS + "anchor_strides=[8], ", "anchor_generator.type = that of MMDetection 1.x", "'AnchorGen"),
    ],
    "GFLHead": FOR_ALL,
    "GFocalHead": DGQP,
    "CLQ_Head_align_iou_pred": [FOR_ALL[0]],
    "VFNetHead": [
        (", relu_before_extra_convs=True", "", "model.neck.relu_before_extra_convs = False", "True"),
        ("strides=[8, 16, 32, 64, 128], ", "", r"model.bbox_head.strides = \[4, 8, 16, 32, 64\]", r"\[8, 16, 32"),
        ("use_vfl=True", "bbox_norm_type='stride'", "model.bbox_head.bbox_norm_type = 'stride'", "'reg_denom'"),
        ("use_vfl=True", "use_vfl=False", "model.bbox_head.use_vfl = False", "True"),
        ("use_atss=True", "use_atss=False", "model.bbox_head.use_atss = False", "True"),
        ("use_vfl=True", "gradient_mul=1.0", "model.bbox_head.gradient_mul = 1.0", "0.1"),
        (
            "use_vfl=True",
            "regress_ranges=((-1, 32), (32, 64), (64, 128), (128, 256), (256, 1e8))",
            r"model.bbox_head.regress_ranges = \[32, 64, 128, 256, 512\]",
            r"\[64, 128, 256, 512, 1024\]",
        ),
        (
            "use_vfl=True",
            "anchor_generator=dict(type='AnchorGenerator', ratios=[1.0], scales=[8], strides=[8, 16, 32, 64, 128], "
            "center_offset=0.5)",
            "anchor_generator.center_offset = 0.5",
            "0.0",
        ),
    ],
    "TOODHead": [
        ("TaskAlignedAssigner', topk=13", "TaskAlignedAssigner', topk=9", "model.train_cfg.assigner.topk = 9", "13"),
        (
            "initial_assigner=dict(type='ATSSAssigner', topk=9",
            "initial_assigner=dict(topk=5",
            "l_assigner.topk = 5",
            "9",
        ),
        ("'anchor_free'", "'anchor_based'", "model.bbox_head.anchor_type = 'anchor_based'", "'anchor_free'"),
        ("alpha=1", "alpha=0.5", "model.train_cfg.alpha = 0.5", "1.0"),
        ("beta=6", "beta=4", "model.train_cfg.beta = 4", "6.0"),
    ],
}
REFUSED = [(kind, *case) for kind in HEADS for case in CHANGES[kind]]


@pytest.mark.parametrize("kind, before, after, theirs, ours", REFUSED)
def test_settings_that_weights_do_not_show_must_agree_with_our_config(kind, before, after, theirs, ours):
    text = changed(config_text(kind), {before: after})
    with pytest.raises(UserError, match=f"a.pth: .*{theirs}.*, but {OURS[kind]} has {ours}") as e:
        check(text)
    assert "\n" not in str(e.value)
