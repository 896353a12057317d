"""A config key of the project, and the kinds of values that a key can take."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from clq.errors import UserError


class Values(Protocol):
    """A kind of values, of which a key accepts no others."""

    def describe(self) -> str:
        """The values in words that follow "must be", such as "at least 1"."""

    def accepts(self, value: object) -> bool:
        """Whether a value, which has the type of the key's default, is one of them."""


@dataclass(frozen=True)
class Number:
    """Finite numbers within bounds.

    Attributes:
        minimum, maximum: bounds that belong to the range.
        above, below: bounds that do not belong to the range.
        also: further numbers, which have a meaning of their own.
    """

    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    also: tuple[float, ...] = ()

    def describe(self) -> str:
        if self.minimum is not None and self.maximum is not None:
            text = f"between {self.minimum:g} and {self.maximum:g}"
        else:
            bounds = {"above": self.above, "at least": self.minimum, "below": self.below, "at most": self.maximum}
            text = " and ".join(f"{name} {bound:g}" for name, bound in bounds.items() if bound is not None)
        return ", or ".join([text, *(f"{number:g}" for number in self.also)])

    def accepts(self, value: object) -> bool:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            return False
        within = (
            (self.minimum is None or value >= self.minimum)
            and (self.maximum is None or value <= self.maximum)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )
        return within or value in self.also


@dataclass(frozen=True)
class Numbers:
    """Lists of numbers of which each has a place and a name.

    Attributes:
        names: name of each number, such as height and width.
        each: range of each number.
        integers: whether all numbers must be integers.
        ascending: whether no number may be smaller than the one before it.
        distinct: whether no two numbers may be equal.
        may_be_empty: whether the empty list is accepted too.
    """

    names: tuple[str, ...]
    each: Number
    integers: bool = False
    ascending: bool = False
    distinct: bool = False
    may_be_empty: bool = False

    def describe(self) -> str:
        kind = "integers" if self.integers else "finite numbers"
        order = (", in ascending order" if self.ascending else "") + (", all different" if self.distinct else "")
        empty = ", or []" if self.may_be_empty else ""
        return f"[{', '.join(self.names)}], {kind} that are {self.each.describe()}{order}{empty}"

    def accepts(self, value: object) -> bool:
        if not isinstance(value, Sequence) or isinstance(value, str):
            return False
        if not value:
            return self.may_be_empty
        return (
            len(value) == len(self.names)
            and all(self.each.accepts(number) for number in value)
            and (not self.integers or all(isinstance(number, int) for number in value))
            and (not self.ascending or list(value) == sorted(value))
            and (not self.distinct or len(set(value)) == len(value))
        )


@dataclass(frozen=True)
class Names:
    """Lists of different names.

    Attributes:
        may_be_empty: whether the empty list is accepted too.
    """

    may_be_empty: bool = False

    def describe(self) -> str:
        return "a list of different names" if self.may_be_empty else "a list of one or more different names"

    def accepts(self, value: object) -> bool:
        if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) and name for name in value):
            return False
        return len(set(value)) == len(value) and (self.may_be_empty or len(value) > 0)


@dataclass(frozen=True)
class OneOf:
    """A choice of names.

    Attributes:
        meanings: each name with a sentence on what it chooses.
        renamed: names of earlier versions with their names of today. :func:`~clq.config.setup_cfg` replaces them.
    """

    meanings: Mapping[str, str]
    renamed: Mapping[str, str] = field(default_factory=dict)

    def describe(self) -> str:
        return f"one of {', '.join(name or repr(name) for name in self.meanings)}"

    def accepts(self, value: object) -> bool:
        return value in self.meanings


def _always() -> bool:
    return True


@dataclass(frozen=True)
class Key:
    """A key that this project adds to Detectron2's config.

    Attributes:
        path: its dotted path.
        default: its value unless a config sets another. Its type is the type of all values.
        meaning: what it sets, in whole sentences.
        values: the values that it accepts; None where the type is all that can be checked without other keys.
        exists: whether it is part of a config, which may depend on the installed version of Detectron2.
    """

    path: str
    default: bool | int | float | str | list
    meaning: str
    values: Values | None = None
    exists: Callable[[], bool] = _always

    def requirement(self, value: object) -> str | None:
        """What a value must be, in words that follow "must be", if the key does not accept it; otherwise None."""
        if not _has_type_of(self.default, value):
            return f"of type {type(self.default).__name__}, such as {self.default!r}"
        if self.values is None or self.values.accepts(value):
            return None
        if isinstance(value, float) and not math.isfinite(value):
            return f"finite and {self.values.describe()}"
        return self.values.describe()

    def check(self, value: object) -> None:
        """Checks a value.

        Raises:
            UserError: the key does not accept it.
        """
        if requirement := self.requirement(value):
            shown = list(value) if isinstance(value, tuple) else value
            raise UserError(f"{self.path} {shown}: must be {requirement}.")


def _has_type_of(default: object, value: object) -> bool:
    """Whether a value can take the place of a default: an integer can be a float, and a tuple a list."""
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    kinds = {float: (int, float), list: (list, tuple)}
    return isinstance(value, kinds.get(type(default), type(default)))
