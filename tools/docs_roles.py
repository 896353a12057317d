"""An extension of griffe for the site (mkdocs.yml names it): roles of Sphinx in docstrings become links."""

import re

import griffe

_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`(~?)([\w.]+)`")


class Roles(griffe.Extension):
    """Rewrites docstrings once their package has been read."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: object) -> None:
        """Visits every object of a package."""
        _visit(pkg)


def _visit(parent: griffe.Object) -> None:
    for member in [parent, *parent.members.values()]:
        if not member.is_alias and member.docstring:
            member.docstring.value = _ROLE.sub(lambda role, at=member: _link(at, role), member.docstring.value)
        if not member.is_alias and member is not parent and (member.is_module or member.is_class):
            _visit(member)


def _link(place: griffe.Object, role: re.Match[str]) -> str:
    """A link to what a role names, which is plain code where the site does not describe it."""
    name = role[2]
    shown = name.rpartition(".")[2] if role[1] else name
    first, _, rest = name.partition(".")
    try:
        path = place.resolve(first) + (f".{rest}" if rest else "")
    except griffe.NameResolutionError:
        path = name
    return f'<autoref identifier="{path}" optional>`{shown}`</autoref>'
