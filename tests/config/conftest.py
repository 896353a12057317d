import clq
import pytest


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes yaml files into the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(**files):
        for name, content in files.items():
            (tmp_path / f"{name}.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


@pytest.fixture
def refusal():
    """The one line with which setup_cfg refuses its arguments."""

    def refusal(*args):
        with pytest.raises(clq.UserError) as e:
            clq.setup_cfg(*args)
        assert "\n" not in str(e.value)
        return str(e.value)

    return refusal
