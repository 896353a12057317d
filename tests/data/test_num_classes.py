"""The number of classes of a model, and the messages about wrong ones."""

import pytest
from clq.config import setup_cfg
from clq.data.num_classes import fill_num_classes, resolve_num_classes
from clq.errors import UserError


def config(train, num_classes, entries=()):
    opts = {"COCO_JSON": list(entries), "TRAIN": train}
    opts = [word for key, value in opts.items() for word in (f"DATASETS.{key}", repr(value))]
    return setup_cfg(None, [*opts, "MODEL.META_ARCHITECTURE", "CLQ", "MODEL.CLQ.NUM_CLASSES", str(num_classes)])


def test_number_of_classes_comes_from_the_training_set(make):
    entry = make("pets")
    assert resolve_num_classes(config(("pets",), -1, [entry])) == 2
    assert resolve_num_classes(config(("pets",), 2, [entry])) == 2
    assert resolve_num_classes(config(("coco_2017_train",), -1)) == 80  # from the metadata; the files do not exist


def test_an_explicit_number_is_used_if_the_training_set_cannot_be_read():
    assert resolve_num_classes(config((), 4)) == 4
    assert resolve_num_classes(config(("declared_nowhere",), 4)) == 4


@pytest.mark.parametrize(
    "train, num_classes, message",
    [
        (("coco_2017_train",), 79, "NUM_CLASSES is 79 but data set coco_2017_train has 80 classes; set it to -1 or 80"),
        ((), -1, "NUM_CLASSES is -1 and DATASETS.TRAIN is empty; set either"),
        (("declared_nowhere",), -1, "NUM_CLASSES is -1, .*no data set declared_nowhere"),
        ((), 0, "NUM_CLASSES 0: must be at least 1, or -1"),
    ],
)
def test_wrong_numbers_of_classes_are_refused(train, num_classes, message):
    with pytest.raises(UserError, match=message):
        resolve_num_classes(config(train, num_classes))


@pytest.mark.parametrize(
    "architecture, key", [("RetinaNet", "RETINANET"), ("FCOS", "RETINANET"), ("GeneralizedRCNN", "ROI_HEADS")]
)
def test_detectron2s_own_models_read_the_number_from_their_own_key(architecture, key):
    key = f"MODEL.{key}.NUM_CLASSES"
    opts = ["MODEL.META_ARCHITECTURE", architecture, "DATASETS.TRAIN", ["coco_2017_train"], "MODEL.CLQ.NUM_CLASSES", 3]
    cfg = setup_cfg(None, ["MODEL.DEVICE", "cpu", *opts, key, -1])
    fill_num_classes(cfg)
    assert cfg.MODEL[key.split(".")[1]].NUM_CLASSES == resolve_num_classes(cfg) == 80
    assert cfg.MODEL.CLQ.NUM_CLASSES == 3
    with pytest.raises(UserError, match=rf"^{key} is 79 but data set coco_2017_train has 80 classes"):
        fill_num_classes(setup_cfg(None, [*opts, key, 79]))
