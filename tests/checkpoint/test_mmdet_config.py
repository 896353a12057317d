"""MMDetection's config in a checkpoint must agree with this project's config, however it is written."""

import pytest
from clq.errors import UserError
from mmdet_texts import AS_PUBLISHED, HEADS, changed, check, config_text


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("version", ["2.x", "3.x"])
def test_the_published_configs_agree_with_ours(kind, version):
    assert check(config_text(kind, version=version)) == AS_PUBLISHED


@pytest.mark.parametrize("before, after", [("num_classes=80", "num_classes=20"), ("reg_max=16", "reg_max=7")])
def test_a_config_that_contradicts_the_weights_is_the_mistake(before, after):
    setting, theirs = after.split("=")
    why = f"its config has model.bbox_head.{setting} = {theirs}, but its weights have {before.split('=')[1]}"
    with pytest.raises(UserError, match=f"a.pth: {why}; correct the config in its meta"):
        check(changed(config_text("GFLHead"), {before: after}))


def test_the_reading_of_images_in_3x_is_compared():
    text = config_text("GFLHead", version="3.x")
    assert check(changed(text, {"'LoadImageFromFile'": "'mmdet.LoadImageFromFile', backend_args=None"})) == AS_PUBLISHED
    with pytest.raises(UserError, match=r"test_pipeline: channel_order = 'rgb', but .* has 'bgr'"):
        check(changed(text, {"'LoadImageFromFile'": "'mmdet.LoadImageFromFile', channel_order='rgb'"}))


def test_long_values_are_shortened_in_messages():
    with pytest.raises(UserError, match=r"strides = \[1, 2, .*\.\.\., but") as e:
        check(changed(config_text("GFLHead"), {"norm_eval=True": f"strides={list(range(1, 9999))}"}))
    assert len(str(e.value)) < 500


def test_the_preprocessor_of_3x_is_compared():
    text = config_text("GFLHead", version="3.x")
    with pytest.raises(UserError, match=r"model.data_preprocessor: bgr_to_rgb = False, but .* has True"):
        check(changed(text, {", bgr_to_rgb=True": ""}))  # the default is False
    with pytest.raises(UserError, match=r"data_preprocessor = None, but .* has 'mean"):
        check(changed(text, {"DetDataPreprocessor": "Other"}))


LATERALS = {"out_indices=(0, 1, 2, 3)": "out_indices=(1, 2, 3)", " start_level=1,": ""}
GROUPS = "dict(type='GN', num_groups=32, requires_grad=True)"
# The same detectors, written in other ways or without the settings that have defaults.
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
def test_other_ways_to_write_the_same_settings_agree(kind, changes):
    text = changed(config_text(kind), changes)
    if "\ntest_cfg" in text:  # beside the model, as in versions before 2.7
        text = text.replace("max_per_img=100))", "max_per_img=100)")
    assert check(text) == AS_PUBLISHED


def test_nothing_in_a_config_executes(tmp_path):
    text = config_text("GFLHead") + f"custom = open({str(tmp_path / 'made')!r}, 'w')\n"
    assert check(text) == AS_PUBLISHED
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"reg_max = int\('16'\), but its weights have 16"):
        check(changed(text, {"reg_max=16": "reg_max=int('16')"}))


def test_a_config_with_another_structure_is_refused():
    text = changed(config_text("VFNetHead"), {"use_vfl=True": "regress_ranges=5"})
    with pytest.raises(UserError, match=r"a.pth: the config in its meta is not structured like MMDetection's"):
        check(text)
    text = changed(
        config_text("GFLHead"), {"neck=dict(": "neck=[dict(", "num_outs=5)": "num_outs=5), dict(type='DyHead')]"}
    )
    with pytest.raises(UserError, match=r"model.neck.type = "):
        check(text)
