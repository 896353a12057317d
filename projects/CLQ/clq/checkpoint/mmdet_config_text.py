"""The text of a config that MMDetection keeps in a checkpoint, read without executing it.

MMDetection writes such a text as plain assignments. Another statement could change what was assigned before, so a text
with one is refused instead of being taken for what it is not.
"""

import ast
from collections.abc import Iterator

from clq.errors import UserError

_CHARACTERS = 1_000_000  # the longest text that is read; Python needs up to a kilobyte for each
_VALUES = 200_000  # the most values that it may stand for, those behind its names counted each time they are used
_DEPTH = 100  # the deepest that values may lie in each other
_BITS = 64  # of the largest integer
_NAMES = "dict", "inf", "nan"  # with a meaning of their own in such a text
_REACHING = "__import__", "eval", "exec", "globals", "locals", "vars"  # calls that can change any name
_SHOWN = 60  # characters of a statement in a message


class Unread:
    """An expression of a config that is no plain value, such as ``range(0, 1)``; equal to no value of ours."""

    def __init__(self, text: str) -> None:
        self.text = " ".join(text.split())

    def __repr__(self) -> str:
        return self.text


class _Refused(Exception):
    """Why a config cannot be read; the message goes on after "the config in its meta"."""


def read_config(path: str, text: str) -> dict:
    """The values of a config's assignments: nested dicts and lists of plain values, and :class:`Unread`.

    A value that a text uses in several places is one object, so none may be changed.

    Args:
        path: path of the checkpoint, for errors.
        text: the config, with its ``_base_`` merged; empty for a checkpoint without one.

    Raises:
        UserError: no config that MMDetection has merged and written.
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
        why = e if isinstance(e, _Refused) else f"is no Python that can be read{line}"
        raise UserError(
            f"{path}: the config in its meta {why}; remove config (2.x) or cfg (3.x) from its meta to have it taken at "
            "its weights' word."
        ) from e
    return reader.values


class _Reader:
    """Reads statement after statement.

    Attributes:
        values: what the names stand for.
    """

    def __init__(self) -> None:
        self.values: dict[str, object] = {}
        self._sizes: dict[str, tuple[int, int]] = {}  # of what a name stands for: number of values, depth
        self._count = self._deepest = 0

    def read(self, statement: ast.stmt) -> None:
        """Takes an assignment to names; skips docstrings and imports, and refuses the rest."""
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            for alias in statement.names:
                self.values.pop(self._bound(alias.asname or alias.name.split(".")[0], statement), None)
            return
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            return
        targets = getattr(statement, "targets", None) or [getattr(statement, "target", None)]
        if not isinstance(statement, (ast.Assign, ast.AnnAssign)) or not all(isinstance(t, ast.Name) for t in targets):
            raise _Refused(f"has a statement that is no assignment to a name ({_shown(statement)})")
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
        if name in _NAMES or name == "*":
            raise _Refused(f"gives {name} another meaning ({_shown(statement)})")
        return name

    def _value(self, node: ast.expr, depth: int) -> object:
        """What an expression stands for, if it is plain."""
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
            pairs = ((k.arg and ast.Constant(k.arg), k.value) for k in node.keywords)
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

    def _merged(self, node: ast.expr, pairs: Iterator[tuple[ast.expr | None, ast.expr]], depth: int) -> dict | Unread:
        merged: dict = {}
        for key, value in pairs:
            read = self._value(value, depth)
            if key is None and not isinstance(read, dict):  # **value, of unknown content
                return self._unread(node)
            merged.update(read if key is None else {self._value(key, depth): read})
        return merged

    def _unread(self, node: ast.expr) -> Unread:
        """The expression as it is written; raises _Refused if it calls what could change the value of a name."""
        nodes = list(ast.walk(node))
        if any(isinstance(x, (ast.Call, ast.Await, ast.Yield, ast.YieldFrom)) for x in nodes):
            names = {x.id for x in nodes if isinstance(x, ast.Name)}
            if names & set(_REACHING) or any(isinstance(self.values.get(n), (dict, list, Unread)) for n in names):
                raise _Refused(f"has a call that can change other values of it ({_shown(node)})")
        return Unread(ast.unparse(node))

    def _grow(self, count: int, depth: int) -> None:
        self._count, self._deepest = self._count + count, max(self._deepest, depth)
        if self._count > _VALUES:
            raise _Refused(f"stands for more than {_VALUES:,} values")
        if self._deepest > _DEPTH:
            raise _Refused(f"has values that lie in each other more than {_DEPTH} deep")


def _assigns(node: ast.AST) -> bool:
    """Whether a part of an expression does: ``x := 1``, or the loop of ``[0 for x['y'] in z]``."""
    stored = isinstance(node, (ast.Subscript, ast.Attribute)) and not isinstance(node.ctx, ast.Load)
    return stored or isinstance(node, ast.NamedExpr)


def _shown(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    if len(text) > _SHOWN:
        text = f"{text[:_SHOWN]}..."
    return f"line {node.lineno}: {text}" if hasattr(node, "lineno") else text


def dicts_in(node: object) -> Iterator[dict]:
    """All dicts in nested dicts and lists, outer ones first."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from dicts_in(child)
