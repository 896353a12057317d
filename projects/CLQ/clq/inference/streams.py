"""Work that other threads do ahead of the detector or behind it. Queues are bounded, and the order is kept."""

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

S = TypeVar("S")
T = TypeVar("T")

_SECONDS_TO_STOP = 0.1


class Ahead(Generic[S, T]):
    """Applies a function to items in threads, ahead of the thread that takes the results.

    It is a context manager, which ends the threads. One that waits for the next item is abandoned.

    Args:
        items: the items; a thread of its own iterates over them, because the next one may come late.
        function: function that is called with each item.
        threads: number of threads that call it.
        ahead: number of results that wait to be taken, at most.
    """

    def __init__(self, items: Iterable[S], function: Callable[[S], T], *, threads: int, ahead: int):
        self._items, self._function = items, function
        self._queue: queue.Queue[Future[T] | None] = queue.Queue(ahead)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="ahead")
        self._stopped = False
        self._ended = False

    def __enter__(self) -> "Ahead[S, T]":
        threading.Thread(target=self._feed, name="feeder", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    def take(self, count: int, patience: float | None = None) -> list[T]:
        """Takes the next results.

        Args:
            count: number of results.
            patience: seconds to wait for each but the first; fewer results are taken if it takes longer. None waits for
                all of them.

        Returns:
            The results in the order of their items; none at the end.

        Raises:
            Exception: what the function has raised for one of these items, or the iteration over them.
        """
        taken: list[T] = []
        while len(taken) < count and not self._ended:
            try:
                future = self._queue.get(timeout=patience if taken else None)
            except queue.Empty:
                break
            if future is None:
                self._ended = True
            else:
                taken.append(future.result())
        return taken

    def _feed(self) -> None:
        try:
            for item in self._items:
                if self._stopped or not self._put(self._pool.submit(self._function, item)):
                    return
            self._put(None)
        except Exception as e:
            failed: Future[T] = Future()
            failed.set_exception(e)
            self._put(failed)

    def _put(self, future: Future[T] | None) -> bool:
        """Appends to the queue, unless nobody will take from it any more."""
        while not self._stopped:
            with contextlib.suppress(queue.Full):
                self._queue.put(future, timeout=_SECONDS_TO_STOP)
                return True
        return False


class Behind(Generic[T]):
    """Calls functions in threads, and passes on what they return, in order and in the calling thread.

    It is a context manager, at whose end everything is done; after an exception, what has not begun is dropped.

    Args:
        done: function that receives each returned value.
        threads: number of threads.
        waiting: number of calls that wait for a thread, at most.
    """

    def __init__(self, done: Callable[[T], None], *, threads: int, waiting: int):
        self._done, self._waiting = done, threads + waiting
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="behind")
        self._futures: deque[Future[T]] = deque()

    def __enter__(self) -> "Behind[T]":
        return self

    def __exit__(self, kind: Any, *exception: object) -> None:
        try:
            if kind is None:
                self._pass_on(0)
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, function: Callable[..., T], *args: object) -> None:
        """Calls a function in a thread. Raises what an earlier function has raised."""
        self._futures.append(self._pool.submit(function, *args))
        self._pass_on(self._waiting)

    def _pass_on(self, left: int) -> None:
        while len(self._futures) > left or (self._futures and self._futures[0].done()):
            self._done(self._futures.popleft().result())


def group_by_shape(shapes: Sequence[tuple[int, int]], batch_size: int) -> list[list[int]]:
    """Divides images into batches of one shape each, in which the images do not change each other's padding.

    Args:
        shapes: (height, width) of each image with the padding that it has alone.
        batch_size: number of images in a batch, at most.

    Returns:
        For each batch the indices of its images, increasing.
    """
    of_shape: dict[tuple[int, int], list[int]] = {}
    for i, shape in enumerate(shapes):
        of_shape.setdefault(shape, []).append(i)
    return [
        members[start : start + batch_size]
        for members in of_shape.values()
        for start in range(0, len(members), batch_size)
    ]
