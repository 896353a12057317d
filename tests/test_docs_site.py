"""The site of the documentation: every page is in its navigation, and the links of the repository lead to its pages.

`make docs` builds the site and fails at a broken link; this needs no mkdocs but for the hook.
"""

import re
from pathlib import Path

import clq
import pytest

ROOT = Path(__file__).parents[1]


def test_the_navigation_has_every_page_of_docs():
    nav = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    listed = set(re.findall(r"([\w./]+\.md)$", nav, re.M))
    assert {path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md")} <= listed


def test_the_api_describes_every_public_name(script):
    described = {name for page in script("tools/docs_api.py").PAGES.values() for name in page.names}
    assert {f"clq.{name}" for name in clq.library.__all__} <= described


@pytest.fixture
def hook(script):
    pytest.importorskip("mkdocs", reason="mkdocs imports the hook")
    return script("tools/docs_site.py")


@pytest.mark.parametrize(
    ("page", "link", "target"),
    [
        ("index.md", "docs/install.md", "install.md"),
        ("index.md", "projects/CLQ/README.md", "method.md"),
        ("method.md", "../../docs/results.md", "results.md"),
        ("commands.md", "../MODEL_ZOO.md", "model_zoo.md"),
        ("weights.md", "nanodet.jpg", "nanodet.jpg"),
        ("model_zoo.md", "configs/CLQ/clq_R_50_FPN_1x.yaml", "source/configs/CLQ/clq_R_50_FPN_1x.yaml.md"),
    ],
)
def test_links_of_the_repository_lead_to_the_same_file_on_the_site(hook, page, link, target):
    assert hook._target(page, link) == target


def test_links_are_rewritten_outside_of_code_only(hook):
    class Page:
        class file:
            src_uri = "method.md"

    text = "See [docs/results.md](../../docs/results.md#the-sample), [here](https://a.b/c.md) and `[x](../../a)`.\n"
    code = "```\n[x](../../docs/results.md)\n```\n"
    assert hook.on_page_markdown(text + code, Page, None, None) == (
        "See [Measured results](results.md#the-sample), [here](https://a.b/c.md) and `[x](../../a)`.\n" + code
    )


def test_what_docstrings_have_of_sphinx_becomes_markdown(script):
    griffe = pytest.importorskip("griffe", reason="the site's reader of docstrings")
    roles = script("tools/docs_roles.py")
    code = 'def f():\n    """Calls :func:`g`, :class:`~a.b.C`, :mod:`no`."""\ndef g(): ...'
    module = griffe.visit("m", Path("m.py"), code)
    roles.Roles().on_package(pkg=module)
    assert module["f"].docstring.value == (
        'Calls <autoref identifier="m.g" optional>`g`</autoref>, '
        '<autoref identifier="a.b.C" optional>`C`</autoref>, <autoref identifier="no" optional>`no`</autoref>.'
    )
    assert roles._markdown(module, "Such as::\n\n    x\n\n>>> 1\n1\n\nend") == (
        "Such as:\n\n    x\n\n```pycon\n>>> 1\n1\n```\n\nend"
    )
