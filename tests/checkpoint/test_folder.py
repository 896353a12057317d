"""Which checkpoint of a folder is resumed, and what may not be overwritten."""

import pytest
import torch
from clq.checkpoint.folder import checkpoint_to_resume, checkpoints, refuse_overwriting
from clq.checkpoint.storage import save_torch
from clq.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """Checkpoints of the iterations 9, 19 and 1000000, and the best one; ``last_checkpoint`` names iteration 19."""
    for name in ("model_0000009", "model_0000019", "model_1000000", "model_best"):
        save_torch({"model": {"w": torch.ones(100)}}, str(tmp_path / f"{name}.pth"))
    (tmp_path / "last_checkpoint").write_text("model_0000019.pth")
    return tmp_path


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[content.index(torch.ones(100).numpy().tobytes()) + 7] ^= 1
    path.write_bytes(content)


def test_checkpoints_are_listed_from_the_newest(folder):
    assert checkpoints(str(folder)) == ["model_1000000.pth", "model_0000019.pth", "model_0000009.pth"]
    (folder / "model_final.pth").touch()
    assert checkpoints(str(folder))[0] == "model_final.pth"
    assert checkpoints(str(folder / "gone")) == []


def test_the_last_checkpoint_is_resumed(folder):
    assert checkpoint_to_resume(str(folder)) == str(folder / "model_0000019.pth")


def test_without_last_checkpoint_the_newest_is_resumed(folder):
    (folder / "last_checkpoint").unlink()
    assert checkpoint_to_resume(str(folder)) == str(folder / "model_1000000.pth")


@pytest.mark.parametrize("damage", [cut, flip_a_bit])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_resumed(damage, folder, caplog):
    (folder / "last_checkpoint").write_text("model_1000000.pth")
    damage(folder / "model_1000000.pth")
    assert checkpoint_to_resume(str(folder)) == str(folder / "model_0000019.pth")
    assert f"{folder}/model_1000000.pth: is damaged" in caplog.text


def test_a_folder_without_a_whole_checkpoint_is_refused(folder):
    for name in checkpoints(str(folder)):
        cut(folder / name)
    with pytest.raises(UserError, match=r"has no checkpoint to resume from \(model_0000019\.pth is damaged, model_1"):
        checkpoint_to_resume(str(folder))


@pytest.mark.parametrize("name", ["../model_0000009.pth", "/etc/passwd", "..", "sub/model_0000009.pth"])
def test_a_checkpoint_outside_of_the_folder_is_refused(name, folder):
    (folder / "last_checkpoint").write_text(name)
    with pytest.raises(UserError, match=r"last_checkpoint: names .* which is not a file of its folder"):
        checkpoint_to_resume(str(folder))


def test_an_empty_folder_has_none(tmp_path):
    assert checkpoint_to_resume(str(tmp_path)) is None
    refuse_overwriting(str(tmp_path))


def test_a_folder_with_a_training_is_not_overwritten(folder):
    with pytest.raises(UserError, match=r"holds a training \(model_1000000\.pth\); continue it with --resume"):
        refuse_overwriting(str(folder))
