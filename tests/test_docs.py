"""The documents name what exists: links, files, commands' configs, classes and functions, config keys."""

import functools
import importlib
import importlib.util
import re
from pathlib import Path

import clq
import pytest
from clq.utils.config_tree import get_key

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), ROOT / "projects/CLQ/README.md"]
# Paths in a document are relative to one of these folders.
FOLDERS = [ROOT, ROOT / "projects/CLQ", ROOT / "projects/CLQ/clq", ROOT / "projects/CLQ/clq/modeling", ROOT / "configs"]
PATH = re.compile(r"(?<![\w/.-])[\w.-]+(?:/[\w.-]+)+\.(?:py|yaml|md|jpg|png)\b")
MADE_BY_COMMANDS = ("output/", "datasets/", "data/")
KEY = re.compile(r"\b(?:MODEL|SOLVER|INPUT|TEST|DATASETS|DATALOADER|LOGGING)(?:\.[A-Z0-9_]+)+\b")
each = functools.partial(pytest.mark.parametrize, "document", ids=lambda path: str(path.relative_to(ROOT)))
all_documents = each(DOCUMENTS)
# The changelog also names what no longer exists. docs/CONFIG.md is generated; tests/config holds its table of keys
# against the config and the builders.
documents_of_today = each([path for path in DOCUMENTS if path.name not in ("CHANGELOG.md", "CONFIG.md")])


def code_spans(document):
    """Contents of the `code` spans in the text of a document, without its code blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", document.read_text(), flags=re.M | re.S))


@functools.cache
def anchors(document):
    """The anchors that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@all_documents
def test_links_resolve(document):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", document.read_text()):
        if target.startswith("http"):
            continue
        path = (document.parent / target).resolve() if target else document
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


@all_documents
def test_files_exist(document):
    text = re.sub(r"https?://\S+", "", document.read_text())
    text = re.sub(r"\]\([^)]*\)", "", text)  # links: see above
    for path in PATH.findall(text):
        if not path.startswith(MADE_BY_COMMANDS):
            # A yaml example names its _BASE_ relative to a folder of configs/.
            place = "configs/" + path.removeprefix("../") if path.startswith("../") else path
            assert any((folder / place).exists() for folder in FOLDERS), path


@documents_of_today
def test_classes_exist(document):
    """Names in CamelCase are classes of the package or values in a config, such as FrozenBN."""
    known = {
        name
        for path in ROOT.glob("projects/CLQ/clq/**/*.py")
        for name in re.findall(r"^class (\w+)", path.read_text(), re.M)
    }
    for path in ROOT.glob("configs/**/*.yaml"):
        known.update(re.findall(r"\b[A-Z]\w+\b", path.read_text()))
    name = re.compile(r"(?=\w*[a-z])([A-Z]\w*[A-Z]\w*)(?:\.(?!py$)\w+)*")
    named = {found[1] for span in code_spans(document) if (found := name.fullmatch(span))}
    assert named <= known


@documents_of_today
def test_dotted_names_exist(document):
    """Names such as `losses.giou_loss` (of clq.modeling) and `clq.CLQ`; also of modules, such as `clq.doctor`."""
    modules = {path.stem for path in (ROOT / "projects/CLQ/clq/modeling").iterdir() if not path.stem.startswith("_")}
    for name in code_spans(document):
        if re.fullmatch(r"\w+(\.\w+)+", name) and name.split(".")[0] in {*modules, "clq", "Predictions", "Targets"}:
            assert resolves(name), name


def resolves(name):
    """Whether a dotted name leads from ``clq``, ``clq.modeling`` or its structures to something."""
    first = name.split(".")[0]
    if first in ("Predictions", "Targets"):
        name = f"structures.{name}"
    parts = name.split(".") if first == "clq" else ["clq", "modeling", *name.split(".")]
    found = clq
    for i, part in enumerate(parts[1:], start=2):
        if not hasattr(found, part) and importlib.util.find_spec(".".join(parts[:i])) is None:
            return False
        found = getattr(found, part) if hasattr(found, part) else importlib.import_module(".".join(parts[:i]))
    return True


@documents_of_today
def test_config_keys_exist(document):
    cfg = clq.setup_cfg(None, ["MODEL.DEVICE", "cpu"])
    text = re.sub(r".*there is no config key.*", "", document.read_text())  # a message about a misspelled one
    for key in KEY.findall(text):
        get_key(cfg, key)
    for span in code_spans(document):  # also short ones, such as `BOX.WEIGHT_FLOOR 0`
        key = re.match(r"[A-Z][A-Z0-9_]*(?:\.[A-Z0-9_]+)+\b", span)
        if key and not KEY.match(span):
            get_key(cfg.MODEL.CLQ, key[0])


def test_the_changelogs_new_modules_exist():
    text = (ROOT / "CHANGELOG.md").read_text()
    table = text[text.index("| old module | new module |") :].split("\n\n")[0]
    new = [module for line in table.splitlines()[2:] for module in re.findall(r"`([\w.]+)`", line.split("|")[2])]
    assert len(new) > 30
    for module in new:
        assert importlib.util.find_spec(module), module
