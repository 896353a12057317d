"""What mkdocs does besides (mkdocs.yml names this file as a hook): pages whose files are outside of docs/.

The README is the front page. Every other file of the repository that a page links to becomes a page that shows its
text, so links lead to the same file on the site as they do in the repository, and the site needs no other host.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

import docs_api
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {  # file: its page
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "MODEL_ZOO.md": "model_zoo.md",
    "SECURITY.md": "security.md",
    "projects/CLQ/README.md": "method.md",
}
_NAMED = re.compile(r"(?<=\[)[\w./-]*\.md(?=\]\(([^)#\s]+))")  # the name of a page as the text of its link
_LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)")
_CODE = re.compile(r"^(`{3,}).*?^\1 *$|`[^`\n]+`", re.M | re.S)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of :data:`OUTSIDE`, and one for every other file that a page links to."""
    for path, page in OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
    for path, page in docs_api.PAGES.items():
        files.append(File.generated(config, path, content=docs_api.markdown(page)))
    linked = {path for page in files.documentation_pages() for path in _links_of(page)}
    for path in sorted(linked - {_path(page.src_uri) for page in files}):
        if (ROOT / path).is_file():  # mkdocs reports those that do not exist
            files.append(File.generated(config, _page(path), content=_listing(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Makes the links of a page those of the site, and gives those that show a file's name the title of its page."""
    here = page.file.src_uri

    def rewrite(text: str) -> str:
        text = _NAMED.sub(lambda named: _title(_target(here, named[1]), named[0]), text)
        return _LINK.sub(lambda link: posixpath.relpath(_target(here, link[1]), posixpath.dirname(here) or "."), text)

    return _outside_code(markdown, rewrite)


def _title(page: str, otherwise: str) -> str:
    """The first heading of a page."""
    path = ROOT / _path(page)
    heading = re.search(r"^# (.*)", path.read_text(), re.M) if path.is_file() else None
    return heading[1] if heading else otherwise


def _target(page: str, link: str) -> str:
    """The page of the site that a link in the file of a page leads to."""
    return _page(posixpath.normpath(posixpath.join(posixpath.dirname(_path(page)), link)))


def _links_of(page: File) -> Iterator[str]:
    """The files that a page links to, relative to the root of the repository."""
    folder = posixpath.dirname(_path(page.src_uri))
    found: list[str] = []
    _outside_code(page.content_string, lambda text: found.extend(_LINK.findall(text)) or text)
    return (posixpath.normpath(posixpath.join(folder, link)) for link in found)


def _outside_code(markdown: str, change) -> str:
    """Markdown, changed where it is not code."""
    parts, end = [], 0
    for code in _CODE.finditer(markdown):
        parts += [change(markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, change(markdown[end:])])


def _page(path: str) -> str:
    """The page, or file, of the site that shows a file of the repository."""
    if path in OUTSIDE:
        return OUTSIDE[path]
    return path.removeprefix("docs/") if path.startswith("docs/") else f"source/{path}.md"


def _path(page: str) -> str:
    """The file of the repository that a page, or file, of the site shows."""
    for path, outside in OUTSIDE.items():
        if page == outside:
            return path
    return page.removeprefix("source/").removesuffix(".md") if page.startswith("source/") else f"docs/{page}"


def _listing(path: str) -> str:
    """A page with the text of a file, which the search leaves out."""
    language = {".py": "python", ".yaml": "yaml"}.get(Path(path).suffix, "text")
    text = (ROOT / path).read_text()
    return f"---\nsearch: {{exclude: true}}\n---\n# {Path(path).name}\n\n`{path}`\n\n~~~~{language}\n{text}\n~~~~\n"
