"""Reads the text of a config that MMDetection stores in a checkpoint, without executing it.

MMDetection writes such a text as plain assignments. Another statement could change a value that was assigned before,
so a text with another statement is refused.
"""

import ast
from collections.abc import Iterable, Iterator

from clq.errors import UserError

_CHARACTERS = 1_000_000  # length of the longest text that is read; Python needs up to a kilobyte per character
_VALUES = 200_000  # most values that a text may stand for; the values of a name count each time it is used
_DEPTH = 100  # deepest nesting of values
_BITS = 64  # most bits of an integer
_NAMES = "dict", "inf", "nan"  # names that have a meaning in such a text
_DANGEROUS = "__import__", "eval", "exec", "globals", "locals", "vars"  # functions that can change any name
_SHOWN = 60  # most characters of a statement in a message


class Unread:
    """An expression of a config that is not a plain value, such as ``range(0, 1)``. It equals no other value."""

    def __init__(self, text: str) -> None:
        self.text = " ".join(text.split())

    def __repr__(self) -> str:
        return self.text


class _Refused(Exception):
    """A config cannot be read; the message continues a sentence that starts with "the config in its meta"."""


def read_config(path: str, text: str) -> dict:
    """Reads the values that a config assigns.

    Args:
        path: path of the checkpoint, for error messages.
        text: text of the config, in which ``_base_`` is merged; empty for a checkpoint without a config.

    Returns:
        Nested dicts and lists of plain values and :class:`Unread`. A value that the text uses several times is one
        object, so the values must not be changed.

    Raises:
        UserError: the text is not a config that MMDetection has merged and written.
    """
    reader = _Reader()
    try:
        if len(text) > _CHARACTERS:
            raise _Refused(f"is longer than {_CHARACTERS:,} characters")
        for statement in ast.parse(text).body:
            reader.read(statement)
        if text and not isinstance(reader.values.get("model"), dict):
            raise _Refused("has no model = dict(...)")
        if "_base_" in reader.values:
            raise _Refused("has a _base_ that is not merged")
    except (_Refused, SyntaxError, ValueError, RecursionError, MemoryError, TypeError) as e:
        line = f", line {e.lineno}" if isinstance(e, SyntaxError) else ""
        why = e if isinstance(e, _Refused) else f"is not valid Python{line}"
        raise UserError(
            f"{path}: the config in its meta {why}; remove config (2.x) or cfg (3.x) from its meta if its weights "
            "alone are to decide which detector it is."
        ) from e
    return reader.values


class _Reader:
    """Reads one statement after the other.

    Attributes:
        values: values of the assigned names.
    """

    def __init__(self) -> None:
        self.values: dict[str, object] = {}
        self._sizes: dict[str, tuple[int, int]] = {}  # number of values and depth of each name
        self._count = self._deepest = 0

    def read(self, statement: ast.stmt) -> None:
        """Reads an assignment to names, skips docstrings and imports, and refuses all other statements."""
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            for alias in statement.names:
                self.values.pop(self._bound(alias.asname or alias.name.split(".")[0], statement), None)
            return
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            return
        targets = getattr(statement, "targets", None) or [getattr(statement, "target", None)]
        if not isinstance(statement, (ast.Assign, ast.AnnAssign)) or not all(isinstance(t, ast.Name) for t in targets):
            raise _Refused(f"has a statement that is not an assignment to a name ({_shown(statement)})")
        if any(map(_assigns, ast.walk(statement))):
            raise _Refused(f"assigns within an expression ({_shown(statement)})")
        if isinstance(statement, ast.AnnAssign):
            self._unread(statement.annotation)
        if statement.value is None:
            return
        before, self._deepest = self._count, 0
        value = self._value(statement.value, 1)
        for target in targets:
            self.values[self._bound(target.id, statement)] = value
            self._sizes[target.id] = self._count - before, self._deepest

    def _bound(self, name: str, statement: ast.stmt) -> str:
        """The name, if a statement may assign to it."""
        if name in _NAMES or name == "*":
            raise _Refused(f"gives {name} another meaning ({_shown(statement)})")
        return name

    def _value(self, node: ast.expr, depth: int) -> object:
        """The value of an expression; :class:`Unread` if it is not plain."""
        self._grow(1, depth)
        if isinstance(node, ast.Constant):
            if isinstance(node.value, int) and node.value.bit_length() > _BITS:
                raise _Refused(f"has an integer of {node.value.bit_length()} bits")
            return node.value
        if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
            return [self._value(x, depth + 1) for x in node.elts]
        if isinstance(node, ast.Dict):
            return self._merged(node, zip(node.keys, node.values, strict=True), depth + 1)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
            pairs = ((ast.Constant(k.arg) if k.arg else None, k.value) for k in node.keywords)
            return self._merged(node, pairs, depth + 1)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            value = self._value(node.operand, depth + 1)
            return -value if isinstance(value, (int, float)) else self._unread(node)
        if isinstance(node, ast.Name) and node.id in self.values:
            count, deep = self._sizes[node.id]
            self._grow(count, depth + deep)
            return self.values[node.id]
        if isinstance(node, ast.Name) and node.id in ("inf", "nan"):
            return float(node.id)
        return self._unread(node)

    def _merged(self, node: ast.expr, pairs: Iterable[tuple[ast.expr | None, ast.expr]], depth: int) -> dict | Unread:
        """The dict of an expression with these keys and values; a key of None stands for ``**value``."""
        merged: dict = {}
        for key, value in pairs:
            read = self._value(value, depth)
            if key is not None:
                merged[self._value(key, depth)] = read
            elif isinstance(read, dict):
                merged.update(read)
            else:
                return self._unread(node)
        return merged

    def _unread(self, node: ast.expr) -> Unread:
        """The unread expression; raises _Refused if it has a call that could change the value of a name."""
        nodes = list(ast.walk(node))
        if any(isinstance(x, (ast.Call, ast.Await, ast.Yield, ast.YieldFrom)) for x in nodes):
            names = {x.id for x in nodes if isinstance(x, ast.Name)}
            if names & set(_DANGEROUS) or any(isinstance(self.values.get(n), (dict, list, Unread)) for n in names):
                raise _Refused(f"has a call that can change its other values ({_shown(node)})")
        return Unread(ast.unparse(node))

    def _grow(self, count: int, depth: int) -> None:
        """Counts values that are used at a depth."""
        self._count, self._deepest = self._count + count, max(self._deepest, depth)
        if self._count > _VALUES:
            raise _Refused(f"stands for more than {_VALUES:,} values")
        if self._deepest > _DEPTH:
            raise _Refused(f"has values that are nested more than {_DEPTH} deep")


def _assigns(node: ast.AST) -> bool:
    """Whether a part of an expression assigns, like ``x := 1`` or the loop of ``[0 for x['y'] in z]``."""
    stored = isinstance(node, (ast.Subscript, ast.Attribute)) and not isinstance(node.ctx, ast.Load)
    return stored or isinstance(node, ast.NamedExpr)


def _shown(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    if len(text) > _SHOWN:
        text = f"{text[:_SHOWN]}..."
    return f"line {node.lineno}: {text}" if hasattr(node, "lineno") else text


def dicts_in(node: object) -> Iterator[dict]:
    """Yields all dicts in nested dicts and lists, outer ones first."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from dicts_in(child)
