"""An extension of griffe for the site (mkdocs.yml names it): makes Markdown of what docstrings have of Sphinx."""

import contextlib
import re

import griffe

_EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\n).+)*", re.M)  # up to an empty line
_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`(~?)([\w.]+)`")


class Roles(griffe.Extension):
    """Rewrites docstrings once their package has been read."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: object) -> None:
        """Visits every object of a package."""
        _visit(pkg)


def _visit(parent: griffe.Object) -> None:
    for member in [parent, *parent.members.values()]:
        if not member.is_alias and member.docstring:
            member.docstring.value = _markdown(member, member.docstring.value)
        if not member.is_alias and member is not parent and (member.is_module or member.is_class):
            _visit(member)


def _markdown(place: griffe.Object, text: str) -> str:
    """Makes links of roles, and code of examples and of what follows a double colon."""
    text = _EXAMPLE.sub(r"```pycon\n\g<0>\n```", text)
    text = re.sub(r"::$", ":", text, flags=re.M)
    return _ROLE.sub(lambda role: _link(place, role), text)


def _link(place: griffe.Object, role: re.Match[str]) -> str:
    """A link to what a role names, which is plain code where the site does not describe it."""
    name = role[2]
    shown = name.rpartition(".")[2] if role[1] else name
    first, dot, rest = name.partition(".")
    path = name
    if first != place.package.name:  # which is also the name of a module in it
        with contextlib.suppress(griffe.NameResolutionError):
            path = place.resolve(first) + dot + rest
    return f'<autoref identifier="{path}" optional>`{shown}`</autoref>'
