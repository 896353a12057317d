"""Weights that fit a model are loaded; all others are reported in one line."""

import copy
import logging
import pickle
from pathlib import Path

import clq
import pytest
import torch
import torchvision
from clq.checkpoint.checkpointer import Checkpointer
from clq.errors import UserError
from detectron2.modeling import build_model
from tiny_models import tiny_model


@pytest.fixture(scope="module")
def trained():
    """A detector of 3 classes whose weights are not the initial ones; tests only read it."""
    torch.manual_seed(0)
    model = tiny_model()
    for p in model.head.parameters():
        torch.nn.init.normal_(p)
    return model


@pytest.fixture(scope="module")
def checkpoint(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("output")
    Checkpointer(trained, str(folder)).save("model_final", iteration=7)
    return str(folder / "model_final.pth")


def fails(path, model, match, **kwargs):
    """Checks that loading ``path`` ends in one line that starts with what the user wrote."""
    with pytest.raises(UserError, match=match) as e:
        Checkpointer(copy.deepcopy(model), **kwargs).load(path, checkpointables=[])
    assert "\n" not in str(e.value)
    assert str(e.value).startswith(path or "MODEL.WEIGHTS")


@pytest.mark.parametrize("name", ["resnet34", "resnext50_32x4d"])
def test_another_backbone_is_refused(name, tmp_path, trained):
    path = tmp_path / "backbone.pth"
    torch.save(getattr(torchvision.models, name)(weights=None).state_dict(), path)
    fails(str(path), trained, r"another backbone .*unknown, such as backbone\.bottom_up\.res\d.*MODEL\.RESNETS")


def test_an_incomplete_backbone_is_refused(tmp_path, trained):
    weights = torchvision.models.resnet18(weights=None).state_dict()
    del weights["layer3.1.conv2.weight"]
    torch.save(weights, tmp_path / "backbone.pth")
    fails(str(tmp_path / "backbone.pth"), trained, r"1 missing, such as backbone\.bottom_up\.res4\.1\.conv2\.weight\)")


def test_pickles_of_detectron2s_model_zoo_are_read(tmp_path, trained):
    """They hold arrays whose names are matched by suffix. An unknown classifier is ignored; an unknown block is not."""
    backbone = {k: v.numpy() + 1 for k, v in trained.backbone.bottom_up.state_dict().items()}
    data = {"model": {**backbone, "stem.fc.bias": torch.ones(1000).numpy()}, "__author__": "torchvision"}
    path = tmp_path / "R-18.pkl"
    path.write_bytes(pickle.dumps({**data, "matching_heuristics": True}))
    model = tiny_model()
    Checkpointer(model).load(str(path), checkpointables=[])
    for key, value in model.backbone.bottom_up.state_dict().items():
        assert torch.equal(value, torch.from_numpy(backbone[key])), key
    data["model"]["res4.2.conv1.weight"] = backbone["res4.1.conv1.weight"]  # a block that ResNet-18 does not have
    path.write_bytes(pickle.dumps({**data, "matching_heuristics": True}))
    fails(str(path), model, r"comes from another backbone \(1 unknown, such as res4\.2\.conv1\.weight\)")


@pytest.mark.parametrize("wrapped", [True, False], ids=["trainer's", "state_dict alone"])
def test_a_checkpoint_of_this_project_is_restored(wrapped, trained, checkpoint, tmp_path):
    if not wrapped:
        torch.save(trained.state_dict(), tmp_path / "plain.pth")
        checkpoint = str(tmp_path / "plain.pth")
    model = tiny_model()
    extra = Checkpointer(model, strict=True).load(checkpoint)
    assert extra == ({"iteration": 7} if wrapped else {})
    for (key, ours), theirs in zip(model.state_dict().items(), trained.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), key


def test_training_from_other_classes_initializes_only_the_class_layer(trained, checkpoint, caplog):
    model = tiny_model(classes=5)
    initial = {k: v.clone() for k, v in model.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        Checkpointer(model).resume_or_load(checkpoint, resume=False)
    theirs = trained.state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(value, (initial if "cls_logits" in key else theirs)[key]), key
    (warning,) = (r.getMessage() for r in caplog.records)
    message = f"{checkpoint}: trained for 3 classes, but this model has 5; the class layer is initialized again"
    assert warning.startswith(message)


def test_evaluating_with_other_classes_is_refused(checkpoint):
    fails(checkpoint, tiny_model(classes=5), "trained for 3 classes, but this model has 5; use", strict=True)


def test_resuming_with_other_classes_is_refused(checkpoint):
    checkpointer = Checkpointer(tiny_model(classes=5), str(Path(checkpoint).parent))
    with pytest.raises(UserError, match=r"model_final\.pth: trained for 3 classes, but this model has 5"):
        checkpointer.resume_or_load("", resume=True)
    checkpointer.resume_or_load(checkpoint, resume=False)  # a start, afterwards, is lenient again


def test_evaluating_without_the_weights_of_a_head_is_refused(tmp_path, trained):
    path = str(tmp_path / "backbone.pth")
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), path)
    fails(path, trained, "holds no detection head", strict=True)
    fails("", trained, "is empty; give a checkpoint", strict=True)
    assert Checkpointer(trained).load("") == {}  # training from scratch is allowed


@pytest.mark.parametrize(
    "opts, match",
    [
        (["MODEL.CLQ.ALIGN.NAME", "none"], r"comes from another model \(\d unknown, such as head\.align"),
        (["MODEL.CLQ.NUM_CONVS", 2], r"comes from another model \(\d+ missing, such as head\."),
        (["MODEL.CLQ.CONV_DIM", 64], r"comes from another model \(.*of another shape, such as head\..* instead of "),
    ],
)
def test_evaluating_another_variant_is_refused(opts, match, checkpoint):
    fails(checkpoint, tiny_model(*opts), match + ".*use the config that it was trained with", strict=True)


@pytest.mark.parametrize("strict", [True, False])
def test_weights_of_which_none_fits_are_refused(strict, tmp_path):
    path = str(tmp_path / "other.pth")
    torch.save({"encoder.weight": torch.ones(2)}, path)
    fails(path, tiny_model(), "none of its weights fits this model .*1 unknown, such as encoder.weight", strict=strict)


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_files_that_are_not_checkpoints_are_refused(tmp_path, trained):
    fails(str(tmp_path / "nowhere.pth"), trained, r"no such file; give a checkpoint .* as MODEL\.WEIGHTS")
    fails(str(tmp_path), trained, "is a folder, not a file; give")
    for name in ("text.pth", "text.pkl"):
        (tmp_path / name).write_text("hello")
        fails(str(tmp_path / name), trained, "is damaged or not a checkpoint")
    for content in ([1, 2], {"epoch": 3}, {"meta": {}, "state_dict": {"bbox_head.scale": torch.ones(1)}}):
        torch.save(content, tmp_path / "other.pth")
        fails(str(tmp_path / "other.pth"), trained, r"holds no weights .*clq\.convert_mmdet")
    torch.save({"model": Touch(tmp_path / "executed")}, tmp_path / "code.pth")
    fails(str(tmp_path / "code.pth"), trained, "holds Python objects besides weights")
    assert not (tmp_path / "executed").exists()


def test_resuming_from_a_deleted_checkpoint_is_refused(tmp_path, trained):
    (tmp_path / "last_checkpoint").write_text("model_0000099.pth")
    with pytest.raises(UserError, match=r"has no checkpoint to resume from \(model_0000099\.pth does not exist\)"):
        Checkpointer(trained, str(tmp_path)).resume_or_load("", resume=True)


def per_level(classes):
    return tiny_model("MODEL.CLQ.HEAD_PER_LEVEL", True, classes=classes)


def test_class_layers_of_separate_heads_are_initialized_too(tmp_path, caplog):
    path, model = str(tmp_path / "heads.pth"), per_level(5)
    weights = per_level(3).state_dict()
    torch.save({"model": weights}, path)
    fails(path, model, "trained for 3 classes, but this model has 5; use", strict=True)
    before = model.head.heads[1].cls_logits.weight.clone()
    with caplog.at_level(logging.WARNING):
        Checkpointer(model).load(path)
    warnings = [r.getMessage() for r in caplog.records if "class layer is initialized" in r.getMessage()]
    assert len(warnings) == 1 and "of another shape" not in caplog.text
    assert torch.equal(model.head.heads[1].cls_logits.weight, before)
    assert torch.equal(model.head.heads[1].box_pred.weight, weights["head.heads.1.box_pred.weight"])


NANODET = str(Path(__file__).parents[2] / "configs/NANODET/nanodet_m_320.yaml")


def shufflenet(norm):
    opts = ["MODEL.SHUFFLENET.NAME", "shufflenet_v2_x0_5", "MODEL.SHUFFLENET.NORM", norm, "MODEL.CLQ.NUM_CLASSES", 3]
    return build_model(clq.setup_cfg(NANODET, [*opts, "DATASETS.TRAIN", [], "MODEL.DEVICE", "cpu"]))


@pytest.mark.parametrize("strict", [False, True])
def test_frozen_norms_take_the_weights_of_norms_that_learned(strict, tmp_path):
    path, learned, model = str(tmp_path / "learned.pth"), shufflenet("BN").state_dict(), shufflenet("FrozenBN")
    norms = {key.rpartition(".")[0] for key in learned if key.startswith("backbone") and key.endswith("running_var")}
    for key in learned:
        if key.rpartition(".")[0] in norms and learned[key].is_floating_point():
            learned[key].uniform_(0.5, 1.5)
    torch.save({"model": learned}, path)
    Checkpointer(model, strict=strict).load(path)
    for key, value in model.state_dict().items():
        assert torch.equal(value, learned[key]), key
