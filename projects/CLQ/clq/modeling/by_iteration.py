"""A part of a training that is exchanged for another one at some iteration."""

from collections.abc import Callable
from typing import Generic, TypeVar

from detectron2.utils.events import get_event_storage

Part = TypeVar("Part", bound=Callable)


class ByIteration(Generic[Part]):
    """Calls one part until an iteration and another part from then on; TOOD's assigners and losses change so.

    The iteration is the trainer's own count. It is therefore right after a resume, and no hook has to tell the model.

    Args:
        before: the part called in the iterations below ``start``.
        after: the part called from iteration ``start`` on.
        start: first iteration of ``after``, counted from 0.
    """

    def __init__(self, before: Part, after: Part, start: int):
        self.before = before
        self.after = after
        self.start = start

    @property
    def current(self) -> Part:
        """The part of this iteration. It needs Detectron2's event storage, which every trainer opens."""
        return self.after if get_event_storage().iter >= self.start else self.before

    def __call__(self, *args, **kwargs):
        """Calls the part of this iteration."""
        return self.current(*args, **kwargs)
