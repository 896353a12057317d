import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import clq
import pytest
from clq.errors import UserError
from clq.utils.files import remove_temporary_files, write_atomically

KILLED_WHILE_WRITING = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from clq.utils.files import write_atomically
with write_atomically(sys.argv[1]) as f:
    f.write(b"half")
    f.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_file_has_its_content_when_the_block_ends(tmp_path):
    path = tmp_path / "a.txt"
    with write_atomically(path, "w") as f:
        f.write("grün")
        assert not path.exists()
    assert path.read_text(encoding="utf-8") == "grün"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_an_error_leaves_the_old_content_and_no_temporary_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), write_atomically(path) as f:
        f.write(b"new")
        raise KeyError
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


def test_a_full_disk_is_one_line_and_leaves_the_old_content(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    message = r"a: cannot be written \(No space left on device\); free space"
    with pytest.raises(UserError, match=message), write_atomically(path) as f:
        f.write(b"new")
        raise OSError(28, "No space left on device")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


def test_a_folder_that_is_gone_is_one_line(tmp_path):
    message = r"gone/a: cannot be written \(No such file or directory\)"
    with pytest.raises(UserError, match=message), write_atomically(tmp_path / "gone" / "a"):
        pass


def test_a_kill_leaves_the_old_content_and_a_temporary_file_that_the_next_start_removes(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    # The child sees these two modules only (-SE: no site packages, no PYTHONPATH): importing all takes seconds.
    package, stub = Path(clq.__file__).parent, tmp_path / "lib" / "clq"
    (stub / "utils").mkdir(parents=True)
    for name in ("errors.py", "utils/files.py"):
        shutil.copy(package / name, stub / name)
    done = subprocess.run([sys.executable, "-SE", "-c", KILLED_WHILE_WRITING, str(path), str(tmp_path / "lib")])
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old" and len(list(tmp_path.glob(".a.*"))) == 1
    remove_temporary_files(str(tmp_path))
    assert path.read_bytes() == b"old" and not list(tmp_path.glob(".a.*"))
