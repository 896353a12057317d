"""MMDetection's config in a checkpoint: what it must share with ours."""

import pytest
from clq.errors import UserError
from mmdet_texts import AS_PUBLISHED, HEADS, OURS, changed, check, config_text


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("version", ["2.x", "3.x"])
def test_the_published_configs_are_as_ours(kind, version):
    assert check(config_text(kind, version=version)) == AS_PUBLISHED


NORM = "norm_cfg=dict(type='GN', num_groups={}, requires_grad=True), feat_channels=256"
# Of every variant: what is changed, the setting that the error names, theirs and ours as it shows them.
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
]
ANCHORS = [
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
WITH_RELU = [
    ("num_outs=5", "num_outs=5, relu_before_extra_convs=True", "model.neck.relu_before_extra_convs = True", "False")
]
STARTS = "bbox_head=dict(\n        "
OF = {
    "ATSSHead": [
        *WITH_RELU,
        *ANCHORS,
        ("target_stds=[0.1, 0.1, 0.2, 0.2]", "target_stds=[1.0, 1.0, 1.0, 1.0]", r"target_stds = \[1.0", r"\[0.1, 0.1"),
        (", target_stds=[0.1, 0.1, 0.2, 0.2]", "", r"target_stds = \[1.0, 1.0, 1.0, 1.0\]", r"\[0.1, 0.1, 0.2, 0.2\]"),
        ("target_means=[0.0,", "target_means=[0.1,", r"bbox_coder.target_means = \[0.1", r"\[0.0, 0.0, 0.0, 0.0\]"),
        ("type='DeltaXYWHBBoxCoder'", "type='TBLRBBoxCoder'", "bbox_coder.type = 'TBLRBBoxCoder'", "'DeltaXYWHBBoxCo"),
        ("'DeltaXYWHBBoxCoder'", "'DeltaXYWHBBoxCoder', add_ctr_clamp=True", "add_ctr_clamp = True", "False"),
        (STARTS, STARTS + "anchor_strides=[8], ", "anchor_generator.type = that of MMDetection 1.x", "'AnchorGen"),
    ],
    "GFLHead": [*WITH_RELU, *ANCHORS],
    "GFocalHead": [*WITH_RELU, *ANCHORS, *DGQP],
    "CLQ_Head_align_iou_pred": [*WITH_RELU, *ANCHORS],
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
        *WITH_RELU,
        *ANCHORS,
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
REFUSED = [(kind, *case) for kind in HEADS for case in [*FOR_ALL, *OF[kind]]]


@pytest.mark.parametrize("kind, before, after, theirs, ours", REFUSED)
def test_what_no_weight_shows_must_be_as_in_the_variants_config(kind, before, after, theirs, ours):
    text = changed(config_text(kind), {before: after})
    with pytest.raises(UserError, match=f"a.pth: .*{theirs}.*, where {OURS[kind]} has {ours}") as e:
        check(text)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("before, after", [("num_classes=80", "num_classes=20"), ("reg_max=16", "reg_max=7")])
def test_a_config_of_other_weights_is_named_as_the_mistake(before, after):
    setting, theirs = after.split("=")
    why = f"its config has model.bbox_head.{setting} = {theirs}, where its weights have {before.split('=')[1]}"
    with pytest.raises(UserError, match=f"a.pth: {why}; correct the config in its meta"):
        check(changed(config_text("GFLHead"), {before: after}))


def test_how_3x_reads_images_is_compared():
    text = config_text("GFLHead", version="3.x")
    assert check(changed(text, {"'LoadImageFromFile'": "'mmdet.LoadImageFromFile', backend_args=None"})) == AS_PUBLISHED
    with pytest.raises(UserError, match=r"test_pipeline: channel_order = 'rgb', where .* has 'bgr'"):
        check(changed(text, {"'LoadImageFromFile'": "'mmdet.LoadImageFromFile', channel_order='rgb'"}))


def test_long_values_are_cut_in_messages():
    with pytest.raises(UserError, match=r"strides = \[1, 2, .*\.\.\., where") as e:
        check(changed(config_text("GFLHead"), {"norm_eval=True": f"strides={list(range(1, 9999))}"}))
    assert len(str(e.value)) < 500


def test_the_preprocessor_of_3x_is_compared():
    text = config_text("GFLHead", version="3.x")
    with pytest.raises(UserError, match=r"model.data_preprocessor: bgr_to_rgb = False, where .* has True"):
        check(changed(text, {", bgr_to_rgb=True": ""}))  # its default
    with pytest.raises(UserError, match=r"data_preprocessor = None, where .* has 'mean"):
        check(changed(text, {"DetDataPreprocessor": "Other"}))


LATERALS = {"out_indices=(0, 1, 2, 3)": "out_indices=(1, 2, 3)", " start_level=1,": ""}
GROUPS = "dict(type='GN', num_groups=32, requires_grad=True)"
# The same detectors, written in other ways; the last have nothing of what MMDetection has defaults for.
EQUAL = [
    ("ATSSHead", {"octave_base_scale=8, scales_per_octave=1": "scales=[8]"}),
    ("ATSSHead", {"scales_per_octave=1": "center_offset=0.0, base_sizes=[8, 16, 32, 64, 128]"}),
    ("GFLHead", {"'on_output'": "True, extra_convs_on_inputs=False"}),
    ("GFLHead", LATERALS),
    ("GFLHead", {"num_outs=5": "num_outs=5, relu_before_extra_convs=False, norm_cfg=None, conv_cfg=None"}),
    ("GFLHead", {"feat_channels=256": f"feat_channels=256, norm_cfg={GROUPS}", "reg_max=16": "reg_max=16.0"}),
    ("GFLHead", {"type='ATSSAssigner'": "type='mmdet.ATSSAssigner'", "type='FPN'": "type='mmdet.FPN'"}),
    ("GFLHead", {"norm_cfg=dict(type='BN', requires_grad=True), norm_eval=True, style='pytorch'": ""}),
    ("GFLHead", {"octave_base_scale=8, scales_per_octave=1": "octave_base_scale=8", ", reg_max=16": ""}),
    ("VFNetHead", {"use_vfl=True": "regress_ranges=((-1, 64), (64, 128), (128, 256), (256, 512), (512, 1e8))"}),
    ("TOODHead", {"anchor_type='anchor_free', ": "", ", alpha=1, beta=6": ""}),
    (
        "GFLHead",
        {"    train_cfg=dict(": ")\ntrain_cfg = dict(", ", debug=False),\n    test_cfg=dict(": ")\ntest_cfg = dict("},
    ),
]


@pytest.mark.parametrize("kind, changes", EQUAL)
def test_other_ways_to_write_the_same_are_told(kind, changes):
    text = changed(config_text(kind), changes)
    if "\ntest_cfg" in text:  # beside the model, as before 2.7
        text = text.replace("max_per_img=100))", "max_per_img=100)")
    assert check(text) == AS_PUBLISHED


def test_nothing_in_a_config_executes(tmp_path):
    text = config_text("GFLHead") + f"custom = open({str(tmp_path / 'made')!r}, 'w')\n"
    assert check(text) == AS_PUBLISHED
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"reg_max = int\('16'\), where its weights have 16"):  # no value of ours
        check(changed(text, {"reg_max=16": "reg_max=int('16')"}))


def test_a_config_built_otherwise_is_refused():
    text = changed(config_text("VFNetHead"), {"use_vfl=True": "regress_ranges=5"})
    with pytest.raises(UserError, match=r"a.pth: the config in its meta is not built as MMDetection's are"):
        check(text)
    text = changed(
        config_text("GFLHead"), {"neck=dict(": "neck=[dict(", "num_outs=5)": "num_outs=5), dict(type='DyHead')]"}
    )
    with pytest.raises(UserError, match=r"model.neck.type = "):
        check(text)
