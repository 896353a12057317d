"""Configs as MMDetection writes them into its checkpoints, composed from parts of its published ones."""

import functools

import clq
from clq.checkpoint.mmdet_config import check_settings, head_of
from clq.checkpoint.mmdet_config_text import read_config
from clq.checkpoint.mmdet_test_settings import selection_keys
from mmdet_models import CONFIGS

_ANCHORS = (
    "anchor_generator=dict(type='AnchorGenerator', ratios=[1.0], octave_base_scale=8, scales_per_octave=1, "
    "strides=[8, 16, 32, 64, 128])"
)
_CODER = (
    "bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[0.1, 0.1, 0.2, 0.2])"
)
_QUALITY_LOSS = "loss_cls=dict(type='QualityFocalLoss', use_sigmoid=False, beta=2.0, loss_weight=1.0)"
_ATSS = "assigner=dict(type='ATSSAssigner', topk=9)"
# Class of a head -> its settings except for class, numbers of classes and channels; settings of its training.
HEADS = {
    "ATSSHead": (f"{_ANCHORS}, {_CODER}", _ATSS),
    "GFLHead": (f"{_ANCHORS}, reg_max=16", _ATSS),
    "GFocalHead": (f"{_ANCHORS}, {_QUALITY_LOSS}, reg_max=16, reg_topk=4, reg_channels=64, add_mean=True", _ATSS),
    "CLQ_Head_align_iou_pred": (f"{_ANCHORS}, {_QUALITY_LOSS}, reg_max=16, reg_topk=4, add_mean=True", _ATSS),
    "VFNetHead": ("strides=[8, 16, 32, 64, 128], center_sampling=False, use_atss=True, use_vfl=True", _ATSS),
    "TOODHead": (
        f"anchor_type='anchor_free', {_ANCHORS}, {_CODER}",
        f"initial_epoch=4, initial_{_ATSS}, assigner=dict(type='TaskAlignedAssigner', topk=13), alpha=1, beta=6",
    ),
}
_TEXT = """model = dict(
    type='{model}',
    backbone=dict(
        type='ResNet', depth=50, num_stages=4, out_indices=(0, 1, 2, 3), frozen_stages=1,
        norm_cfg=dict(type='BN', requires_grad=True), norm_eval=True, style='pytorch'),
    neck=dict(
        type='FPN', in_channels=[256, 512, 1024, 2048], out_channels=256, start_level=1,
        add_extra_convs='on_output', num_outs=5{relu}),
    bbox_head=dict(
        type='{kind}', num_classes={classes}, in_channels=256, stacked_convs=4, feat_channels=256, {head}),
    train_cfg=dict({train}, allowed_border=-1, pos_weight=-1, debug=False),
    test_cfg=dict(
        nms_pre=1000, min_bbox_size=0, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.6), max_per_img=100))
"""
_DATA = {
    "2.x": """img_norm_cfg = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
data = dict(
    samples_per_gpu=2,
    test=dict(type='CocoDataset', pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='MultiScaleFlipAug', img_scale=(1333, 800), flip=False, transforms=[
            dict(type='Resize', keep_ratio=True),
            dict(type='Normalize', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
            dict(type='Pad', size_divisor=32)])]))
load_from = None
workflow = [('train', 1)]
gpu_ids = range(0, 1)
""",
    "3.x": """test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(keep_ratio=True, scale=(1333, 800), type='Resize'),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_shape'))]
test_dataloader = dict(batch_size=1, dataset=dict(type='CocoDataset', pipeline=test_pipeline))
train_cfg = dict(max_epochs=12, type='EpochBasedTrainLoop', val_interval=1)
test_cfg = dict(type='TestLoop')
""",
}
_PREPROCESSOR = """data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True,
        pad_size_divisor=32),
    backbone=dict("""


def config_text(kind, classes=80, version="2.x"):
    """The config of a published detector that has a head of this class."""
    head, train = HEADS.get(kind, HEADS["ATSSHead"])
    relu = ", relu_before_extra_convs=True" if kind == "VFNetHead" else ""
    model = {"kind": kind, "model": kind.removesuffix("Head"), "classes": classes}
    text = _TEXT.format(**model, relu=relu, head=head, train=train)
    if version == "3.x":
        text = text.replace("backbone=dict(", _PREPROCESSOR, 1)
    return text + _DATA[version]


AS_PUBLISHED = {
    "MODEL.CLQ.SCORE_THRESH": 0.05,
    "MODEL.CLQ.NMS_THRESH": 0.6,
    "MODEL.CLQ.TOPK_CANDIDATES": 1000,
    "TEST.DETECTIONS_PER_IMAGE": 100,
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TEST": 1333,
}
OURS = {
    "ATSSHead": "ATSS/mmdet_atss_R_50_FPN_1x.yaml",
    "GFLHead": "GFL/mmdet_gfl_R_50_FPN_1x.yaml",
    "GFocalHead": "GFLV2/mmdet_gflv2_R_50_FPN_1x.yaml",
    "CLQ_Head_align_iou_pred": "CLQ/mmdet_clq_R_101_FPN_2x_ms.yaml",
    "VFNetHead": "VFNET/mmdet_vfnet_R_50_FPN_1x.yaml",
    "TOODHead": "TOOD/mmdet_tood_R_50_FPN_1x.yaml",
}


@functools.cache
def our_config(kind):
    return clq.setup_cfg(str(CONFIGS / OURS[kind]), ["MODEL.DEVICE", "cpu"])


def check(text):
    """Compares the settings of a text with this project's config and returns its settings of the test as keys.

    Messages call the file a.pth.
    """
    config = read_config("a.pth", text)
    kind = head_of(config).kind
    check_settings("a.pth", config, our_config(kind), OURS[kind])
    return selection_keys("a.pth", config)


def changed(text, changes):
    """A text in which strings, all of which must be there, are replaced by others."""
    for before, after in changes.items():
        assert before in text, before
        text = text.replace(before, after)
    return text
