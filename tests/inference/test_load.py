"""``clq.load`` from a folder, a file, and a config with weights, and what a predictor takes and returns."""

import json
import shutil
from pathlib import Path

import clq
import numpy as np
import pytest
import torch
from clq.checkpoint.detector_info import KEY, info_of
from clq.checkpoint.storage import save_safetensors
from clq.errors import UserError
from clq.inference.predictor import Predictor
from detectron2.engine import DefaultPredictor
from PIL import Image


@pytest.fixture(scope="module")
def image(tiny):
    return Path(tiny).parent / "shapes_val" / "0.png"


@pytest.fixture(scope="module")
def predictor(trained):
    return clq.load(trained, device="cpu")


@pytest.fixture(scope="module")
def expected(trained, image):
    """The detections of a predictor that is made from the saved config and weights."""
    cfg = clq.setup_cfg(str(trained / "config.yaml"), ["MODEL.WEIGHTS", str(trained / "model_final.pth")])
    return Predictor(cfg)(image)


def assert_same(result, expected):
    assert len(result) == len(expected) > 0
    np.testing.assert_array_equal(result.boxes, expected.boxes)
    np.testing.assert_array_equal(result.scores, expected.scores)
    assert result.names == expected.names


def test_the_folder_of_a_training_is_enough(predictor, image, expected):
    assert_same(predictor(image), expected)
    assert predictor.categories.names == ("blue", "red") and predictor.categories.ids == (3, 7)


@pytest.mark.parametrize("name", ["model_final.pth", "model_final.safetensors"])
def test_a_file_is_enough_wherever_it_is(trained, tmp_path, image, expected, name):
    shutil.copy(trained / name, tmp_path)
    moved = clq.load(tmp_path / name)
    assert_same(moved(image), expected)
    assert moved.categories.names == ("blue", "red")


def test_a_config_takes_the_classes_of_the_weights(trained, tiny, tmp_path, image, expected):
    config = Path(tiny).read_text().replace("shapes_train", "elsewhere")  # a training set that does not exist here
    (tmp_path / "config.yaml").write_text(config)
    loaded = clq.load(tmp_path / "config.yaml", trained / "model_final.pth")
    assert_same(loaded(image), expected)


def without_info(trained, path):
    checkpoint = torch.load(trained / "model_final.pth", weights_only=True)
    torch.save({"model": checkpoint["model"]}, path)


def test_a_file_of_an_older_version_takes_the_config_beside_it(trained, tmp_path, image, expected):
    without_info(trained, tmp_path / "model_final.pth")
    with pytest.raises(UserError, match=r"model_final\.pth: does not say which detector .* no config\.yaml beside it"):
        clq.load(tmp_path / "model_final.pth")
    shutil.copy(trained / "config.yaml", tmp_path)
    assert_same(clq.load(tmp_path / "model_final.pth")(image), expected)
    assert_same(clq.load(tmp_path)(image), expected)


def test_the_best_checkpoint_of_a_folder_is_taken(trained, tmp_path, image, expected):
    shutil.copy(trained / "model_final.pth", tmp_path / "model_best.pth")
    (tmp_path / "model_final.pth").write_bytes(b"would not load")
    assert_same(clq.load(tmp_path)(image), expected)


def test_a_checkpoint_says_nothing_about_the_machine_that_trained_it(trained, tiny):
    info = info_of(torch.load(trained / "model_final.pth", weights_only=True), "x")
    assert str(trained) not in info.config and str(Path(tiny).parent) not in info.config


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere"], "nowhere: no such config file"),
        (["CLQ/clq_R_50_FPN_1y"], "no config of the project has this name; did you mean .*CLQ/clq_R_50_FPN_1x"),
        (["nowhere.pth"], r"nowhere\.pth: no such file; give a checkpoint"),
        (["CLQ/clq_R_50_FPN_1x", "nowhere.pth"], r"nowhere\.pth: no such file"),
        (["a.pth", "b.pth"], r"a\.pth: is a file of weights, and b\.pth is given as well"),
        (["."], "has no checkpoint"),
    ],
)
def test_what_is_missing_is_named(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        clq.load(*arguments)


@pytest.mark.parametrize(
    "info",
    [3, "{", {}, {"config": 1, "class_names": ["a"], "category_ids": [1]}]
    + [
        {"config": "", "class_names": names, "category_ids": ids}
        for names, ids in ((["a"], [1, 2]), ([], []), ([1], [1]))
    ],
)
def test_damaged_information_is_refused(info):
    with pytest.raises(UserError, match=r"a\.pth: what it says about its detector is damaged"):
        info_of({KEY: info}, "a.pth")


def test_a_config_in_a_checkpoint_cannot_do_more_than_a_file(trained, tmp_path):
    weights = torch.load(trained / "model_final.pth", weights_only=True)["model"]
    for config, message in (("!!python/object/apply:os.getcwd []", "plain yaml"), ("A: 1", "no config key A")):
        info = {"config": config, "class_names": ["a"], "category_ids": [1]}
        save_safetensors(weights, str(tmp_path / "a.safetensors"), {KEY: json.dumps(info)})
        with pytest.raises(UserError, match=rf"a\.safetensors, in its config: .*{message}"):
            clq.load(tmp_path / "a.safetensors")


def test_all_kinds_of_images_give_the_same_detections(predictor, image, expected):
    opened = Image.open(image)
    array = np.asarray(opened.convert("RGB"))
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    for kind in (image, str(image), opened, array, tensor):
        assert_same(predictor(kind), expected)
    results = predictor([image, array, tensor], batch_size=2)
    assert [r.path for r in results] == [str(image), None, None]
    for result in results:
        np.testing.assert_allclose(result.boxes, expected.boxes, atol=1e-3)
    assert predictor([]) == []


def test_a_pil_image_is_turned_upright(predictor, image, tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # turned by 90 degrees
    Image.open(image).convert("RGB").crop((0, 0, 96, 64)).save(tmp_path / "a.jpg", exif=exif, quality=100)
    result = predictor(Image.open(tmp_path / "a.jpg"))
    assert result.image.shape == (96, 64, 3)
    assert_same(result, predictor(tmp_path / "a.jpg"))


@pytest.mark.parametrize(
    "wrong, message",
    [
        (np.zeros((8, 9, 3)), "array of shape .8, 9, 3. and type float64: .*; scale its values to 0 to 255"),
        (np.zeros((8, 9, 3), np.int64), "type int64: .*; scale its values"),
        (np.zeros((8, 9), np.uint8), "repeat grey values in three channels"),
        (np.zeros((8, 9, 4), np.uint8), "drop the fourth channel"),
        (np.zeros((8, 9, 2), np.uint8), "make it three channels"),
        (np.zeros((3, 8, 9), np.uint8), r"the channels come last: image\.transpose\(1, 2, 0\)"),
        (np.zeros((1, 8, 9, 3), np.uint8), "pass a list of images"),
        (np.zeros((0, 9, 3), np.uint8), "it has no pixels"),
        (torch.zeros(8, 9, 3, dtype=torch.uint8), r"the channels come first: image\.permute\(2, 0, 1\)"),
        (torch.zeros(3, 8, 9), "tensor of shape .3, 8, 9. and type float32: .*; scale its values"),
        (Image.new("I;16", (9, 8)), "PIL image of mode I;16"),
        (b"bytes", "bytes: pass a path, a PIL image"),
        (None, "NoneType: pass a path"),
    ],
)
def test_what_is_no_image_is_refused_with_what_to_pass(predictor, wrong, message):
    with pytest.raises(UserError, match=message) as e:
        predictor(wrong)
    assert "\n" not in str(e.value)


def test_batch_size_must_be_positive(predictor, image):
    with pytest.raises(UserError, match="batch_size 0: must be at least 1"):
        predictor([image], batch_size=0)


def test_detectron2s_predictor_finds_the_same(trained, image, expected):
    cfg = clq.setup_cfg(str(trained / "config.yaml"), ["MODEL.WEIGHTS", str(trained / "model_final.pth")])
    found = DefaultPredictor(cfg)(np.asarray(Image.open(image).convert("RGB"))[:, :, ::-1])["instances"]
    np.testing.assert_allclose(found.pred_boxes.tensor.numpy(), expected.boxes, atol=1e-2)  # norms are folded here
    np.testing.assert_allclose(found.scores.numpy(), expected.scores, atol=1e-4)


def test_the_example_of_a_lazy_config_builds_the_detector():
    text = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
    example = text.split("In a LazyConfig")[1].split("```python\n")[1].split("```")[0]
    names = {}
    exec(example.replace("import clq\n", ""), {"clq": clq}, names)
    assert isinstance(names["detector"], clq.CLQ)
    assert names["detector"].head.cls_logits.out_channels == 3


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_damaged_file_is_named(trained, tmp_path, name):
    content = (trained / f"model_final{Path(name).suffix}").read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=rf"{name}: is damaged or not a checkpoint"):
        clq.load(tmp_path / name)
    save_safetensors({"x": torch.zeros(1)}, str(tmp_path / "b.safetensors"), {KEY: "{"})
    with pytest.raises(UserError, match=r"b\.safetensors: what it says about its detector is damaged"):
        clq.load(tmp_path / "b.safetensors")
