import copy
import logging
import pickle
import urllib.error
from pathlib import Path

import clq
import pytest
import torch
import torchvision
from clq.checkpoint.checkpointer import Checkpointer, torchvision_to_detectron2
from clq.errors import UserError
from detectron2.modeling import build_model
from torchvision.models.feature_extraction import create_feature_extractor

CONFIG = str(Path(__file__).parents[2] / "configs/CLQ/clq_R_50_FPN_1x.yaml")
# Official file names: the code must find these in torch.hub's cache without a network.
FILES = {"resnet18": "resnet18-f37072fd.pth", "resnext50_32x4d": "resnext50_32x4d-7cdf4587.pth"}
R18 = ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
X50 = ["MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.NUM_GROUPS", 32, "MODEL.RESNETS.WIDTH_PER_GROUP", 4]


def tiny_model(*opts, classes=3, body=R18):
    c = "MODEL.CLQ."
    small = [c + "CONV_DIM", 32, c + "NUM_CONVS", 1, c + "NUM_CLASSES", classes, "MODEL.FPN.OUT_CHANNELS", 32]
    cfg = clq.setup_cfg(CONFIG, [*body, *small, "DATASETS.TRAIN", [], "MODEL.DEVICE", "cpu", *opts])
    return build_model(cfg).eval()


@pytest.fixture(scope="module")
def trained():
    """A "trained" detector of 3 classes; only read."""
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


def random_torchvision(name):
    """A body with batch norm statistics of its own in every layer, so that swapped names cannot go unseen."""
    model = getattr(torchvision.models, name)(weights=None).eval()
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            for tensor in (m.weight.data, m.running_var):
                tensor.uniform_(0.5, 1.2)
            for tensor in (m.bias.data, m.running_mean):
                tensor.normal_(std=0.2)
    return model


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty torch.hub cache, and a network that does not answer."""

    def offline(url, *args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def fails(path, model, match, **kwargs):
    """The error of loading ``path``: one line that starts with what the user wrote."""
    with pytest.raises(UserError, match=match) as e:
        Checkpointer(copy.deepcopy(model), **kwargs).load(path, checkpointables=[])
    assert "\n" not in str(e.value)
    assert str(e.value).startswith(path or "MODEL.WEIGHTS")


def test_names_by_hand():
    left = {
        "conv1.weight": "stem.conv1.weight",
        "bn1.running_mean": "stem.conv1.norm.running_mean",
        "layer1.0.conv1.weight": "res2.0.conv1.weight",
        "layer1.0.bn2.bias": "res2.0.conv2.norm.bias",
        "layer2.0.downsample.0.weight": "res3.0.shortcut.weight",
        "layer4.0.downsample.1.running_var": "res5.0.shortcut.norm.running_var",
        "layer3.22.conv3.weight": "res4.22.conv3.weight",
        "layer3.22.bn3.weight": "res4.22.conv3.norm.weight",
    }
    dropped = ["fc.weight", "fc.bias", "bn1.num_batches_tracked", "layer2.0.downsample.1.num_batches_tracked"]
    values = {key: torch.tensor(float(i)) for i, key in enumerate([*left, *dropped])}
    converted = torchvision_to_detectron2(values)
    assert converted == {f"backbone.bottom_up.{name}": values[key] for key, name in left.items()}
    with pytest.raises(UserError, match=r"features\.conv0\.weight: no body of torchvision"):
        torchvision_to_detectron2({"conv1.weight": torch.ones(1), "features.conv0.weight": torch.ones(1)})


@pytest.mark.parametrize("name, opts", [("resnet18", R18), ("resnext50_32x4d", X50)])
def test_torchvision_body_gives_torchvision_features(name, opts, hub):
    torch.manual_seed(0)
    reference = random_torchvision(name)
    torch.save(reference.state_dict(), hub / FILES[name])
    levels = ["res2", "res3", "res4", "res5"]
    model = tiny_model("MODEL.RESNETS.OUT_FEATURES", levels, body=opts)
    Checkpointer(model).load(f"torchvision://{name}", checkpointables=[])
    features = create_feature_extractor(reference, {f"layer{i + 1}": f for i, f in enumerate(levels)})
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        ours, theirs = model.backbone.bottom_up(image), features(image)
    for level in levels:
        scale = theirs[level].abs().max()
        assert scale > 0.1
        torch.testing.assert_close(ours[level] / scale, theirs[level] / scale, atol=1e-5, rtol=0)


def test_torchvision_downloads_its_own_file(hub, monkeypatch):
    reference, asked = random_torchvision("resnet18"), []

    def download(url, path, hash_prefix, progress):
        asked.append((url.rsplit("/", 1)[-1], hash_prefix))
        torch.save(reference.state_dict(), path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        model = tiny_model()
        Checkpointer(model).load("torchvision://resnet18", checkpointables=[])
        torch.testing.assert_close(model.backbone.bottom_up.stem.conv1.weight, reference.conv1.weight)
    assert asked == [(FILES["resnet18"], "f37072fd")]  # once: the second time it is in the cache


def test_torchvision_without_network_or_of_unknown_name(hub, trained):
    fails("torchvision://resnet18", trained, "could not be fetched .*no network.*; download it")
    fails("torchvision://resnet19", trained, "no such body; use one of resnet18, ")


@pytest.mark.parametrize("name", ["resnet34", "resnext50_32x4d"])
def test_another_body_is_refused(name, tmp_path, trained):
    path = tmp_path / "body.pth"
    torch.save(getattr(torchvision.models, name)(weights=None).state_dict(), path)
    fails(str(path), trained, r"of another backbone .*unknown, such as backbone\.bottom_up\.res\d.*MODEL\.RESNETS")


def test_incomplete_body_is_refused(tmp_path, trained):
    weights = torchvision.models.resnet18(weights=None).state_dict()
    del weights["layer3.1.conv2.weight"]
    torch.save(weights, tmp_path / "body.pth")
    fails(str(tmp_path / "body.pth"), trained, r"1 missing, such as backbone\.bottom_up\.res4\.1\.conv2\.weight\)")


def test_model_zoo_pickle(tmp_path, trained):
    """Numpy arrays under bare names, matched by suffix. A classifier left over is no mistake, a block is one."""
    body = {k: v.numpy() + 1 for k, v in trained.backbone.bottom_up.state_dict().items()}
    data = {"model": {**body, "stem.fc.bias": torch.ones(1000).numpy()}, "__author__": "torchvision"}
    path = tmp_path / "R-18.pkl"
    path.write_bytes(pickle.dumps({**data, "matching_heuristics": True}))
    model = tiny_model()
    Checkpointer(model).load(str(path), checkpointables=[])
    for key, value in model.backbone.bottom_up.state_dict().items():
        assert torch.equal(value, torch.from_numpy(body[key])), key
    data["model"]["res4.2.conv1.weight"] = body["res4.1.conv1.weight"]  # a block that ResNet-18 has not
    path.write_bytes(pickle.dumps({**data, "matching_heuristics": True}))
    fails(str(path), model, r"of another backbone \(1 unknown, such as res4\.2\.conv1\.weight\)")


@pytest.mark.parametrize("wrapped", [True, False], ids=["trainer's", "state_dict alone"])
def test_own_checkpoint_comes_back_whole(wrapped, trained, checkpoint, tmp_path):
    if not wrapped:
        torch.save(trained.state_dict(), tmp_path / "plain.pth")
        checkpoint = str(tmp_path / "plain.pth")
    model = tiny_model()
    extra = Checkpointer(model, strict=True).load(checkpoint)
    assert extra == ({"iteration": 7} if wrapped else {})
    for (key, ours), theirs in zip(model.state_dict().items(), trained.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), key


def test_training_from_other_classes_renews_the_class_layer_alone(trained, checkpoint, caplog):
    model = tiny_model(classes=5)
    initial = {k: v.clone() for k, v in model.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        Checkpointer(model).resume_or_load(checkpoint, resume=False)
    theirs = trained.state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(value, (initial if "cls_logits" in key else theirs)[key]), key
    (warning,) = (r.getMessage() for r in caplog.records)
    assert warning.startswith(f"{checkpoint}: trained for 3 classes, but this model has 5: the class layer starts anew")


def test_evaluating_with_other_classes_is_refused(checkpoint):
    fails(checkpoint, tiny_model(classes=5), "trained for 3 classes, but this model has 5; use", strict=True)


def test_resuming_with_other_classes_is_refused(checkpoint):
    checkpointer = Checkpointer(tiny_model(classes=5), str(Path(checkpoint).parent))
    with pytest.raises(UserError, match=r"model_final\.pth: trained for 3 classes, but this model has 5"):
        checkpointer.resume_or_load("", resume=True)
    checkpointer.resume_or_load(checkpoint, resume=False)  # a start, afterwards, is lenient again


def test_evaluating_a_backbone_or_nothing_is_refused(tmp_path, trained):
    path = str(tmp_path / "body.pth")
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), path)
    fails(path, trained, "holds no detection head", strict=True)
    fails("", trained, "is empty: name the checkpoint", strict=True)
    assert Checkpointer(trained).load("") == {}  # training from scratch is no mistake


@pytest.mark.parametrize(
    "opts, match",
    [
        (["MODEL.CLQ.ALIGN.NAME", "none"], r"of another model \(\d unknown, such as head\.align"),
        (["MODEL.CLQ.NUM_CONVS", 2], r"of another model \(\d+ missing, such as head\."),
        (["MODEL.CLQ.CONV_DIM", 64], r"of another model \(.*of another shape, such as head\..* instead of "),
    ],
)
def test_evaluating_another_row_is_refused(opts, match, checkpoint):
    fails(checkpoint, tiny_model(*opts), match + ".*use the config that it was trained with", strict=True)


@pytest.mark.parametrize("strict", [True, False])
def test_weights_of_something_else_are_refused(strict, tmp_path):
    path = str(tmp_path / "other.pth")
    torch.save({"encoder.weight": torch.ones(2)}, path)
    fails(path, tiny_model(), "none of its weights fits this model .*1 unknown, such as encoder.weight", strict=strict)


class Touch:
    """Executes on unpickling, where that is allowed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_files_that_are_no_checkpoints(tmp_path, trained):
    fails(str(tmp_path / "nowhere.pth"), trained, r"no such file; give a checkpoint .* as MODEL\.WEIGHTS")
    fails(str(tmp_path), trained, "is a folder, not a file in it")
    for name in ("text.pth", "text.pkl"):
        (tmp_path / name).write_text("hello")
        fails(str(tmp_path / name), trained, "is damaged, or no checkpoint")
    for content in ([1, 2], {"epoch": 3}, {"meta": {}, "state_dict": {"bbox_head.scale": torch.ones(1)}}):
        torch.save(content, tmp_path / "other.pth")
        fails(str(tmp_path / "other.pth"), trained, r"holds no weights .*clq\.convert_mmdet")
    torch.save({"model": Touch(tmp_path / "executed")}, tmp_path / "code.pth")
    fails(str(tmp_path / "code.pth"), trained, "holds Python objects besides weights")
    assert not (tmp_path / "executed").exists()


def test_resuming_from_a_deleted_checkpoint(tmp_path, trained):
    (tmp_path / "last_checkpoint").write_text("model_0000099.pth")
    with pytest.raises(UserError, match=r"model_0000099\.pth: no such file"):
        Checkpointer(trained, str(tmp_path)).resume_or_load("", resume=True)


def per_level(classes):
    return tiny_model("MODEL.CLQ.HEAD_PER_LEVEL", True, classes=classes)


def test_class_layers_of_heads_for_each_level_are_known_as_such(tmp_path, caplog):
    path, model = str(tmp_path / "heads.pth"), per_level(5)
    weights = per_level(3).state_dict()
    torch.save({"model": weights}, path)
    fails(path, model, "trained for 3 classes, but this model has 5; use", strict=True)
    before = model.head.heads[1].cls_logits.weight.clone()
    with caplog.at_level(logging.WARNING):
        Checkpointer(model).load(path)
    said = [r.getMessage() for r in caplog.records if "class layer starts anew" in r.getMessage()]
    assert len(said) == 1 and "of another shape" not in caplog.text
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
