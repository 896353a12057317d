"""torchvision's ImageNet weights as MODEL.WEIGHTS."""

import urllib.error

import pytest
import torch
import torchvision
from clq.checkpoint.checkpointer import Checkpointer
from clq.checkpoint.torchvision_weights import torchvision_to_detectron2
from clq.errors import UserError
from tiny_models import R18, tiny_model
from torchvision.models.feature_extraction import create_feature_extractor

# Names of the official files, which must be found in torch.hub's cache without a network.
FILES = {"resnet18": "resnet18-f37072fd.pth", "resnext50_32x4d": "resnext50_32x4d-7cdf4587.pth"}
X50 = ["MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.NUM_GROUPS", 32, "MODEL.RESNETS.WIDTH_PER_GROUP", 4]


def random_torchvision(name):
    """A backbone with different batch norm statistics in every layer, so that swapped names change its features."""
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
    """The folder of an empty torch.hub cache, without a network."""

    def offline(url, *args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_names_are_those_given_by_hand():
    renamed = {
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
    values = {key: torch.tensor(float(i)) for i, key in enumerate([*renamed, *dropped])}
    converted = torchvision_to_detectron2(values)
    assert converted == {f"backbone.bottom_up.{name}": values[key] for key, name in renamed.items()}
    with pytest.raises(UserError, match=r"features\.conv0\.weight: neither a backbone of torchvision"):
        torchvision_to_detectron2({"conv1.weight": torch.ones(1), "features.conv0.weight": torch.ones(1)})


@pytest.mark.parametrize("name, opts", [("resnet18", R18), ("resnext50_32x4d", X50)])
def test_a_backbone_gives_the_features_of_torchvision(name, opts, hub):
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


def test_the_official_file_is_downloaded_once(hub, monkeypatch):
    reference, asked = random_torchvision("resnet18"), []

    def download(url, path, hash_prefix, progress):
        asked.append((url.rsplit("/", 1)[-1], hash_prefix))
        torch.save(reference.state_dict(), path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        model = tiny_model()
        Checkpointer(model).load("torchvision://resnet18", checkpointables=[])
        torch.testing.assert_close(model.backbone.bottom_up.stem.conv1.weight, reference.conv1.weight)
    assert asked == [(FILES["resnet18"], "f37072fd")]  # the second time it is in the cache


def test_a_missing_network_and_an_unknown_name_are_reported(hub):
    model = tiny_model()
    with pytest.raises(UserError, match=r"^torchvision://resnet18: could not be fetched .*no network.*; download it"):
        Checkpointer(model).load("torchvision://resnet18")
    with pytest.raises(UserError, match=r"^torchvision://resnet19: no such backbone; use one of resnet18, "):
        Checkpointer(model).load("torchvision://resnet19")
