import pytest
import torch
from clq.checkpoint.mmdet import convert_checkpoint


@pytest.fixture
def convert(tmp_path):
    """Converts a file with this content; its path is in ``convert.path``."""

    def convert(content):
        torch.save(content, convert.path)
        return convert_checkpoint(convert.path)

    convert.path = str(tmp_path / "a.pth")
    return convert
