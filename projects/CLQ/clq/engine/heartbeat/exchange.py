"""The exchange of signs of life and of the first failure through the job's store."""

import json
import threading
import time
from collections.abc import Callable
from datetime import timedelta

from torch.distributed import PrefixStore, TCPStore

from clq.engine.heartbeat.board import Place

PERIOD = 0.5  # seconds between two exchanges
_PATIENCE = 5.0  # seconds to wait for the store to take a report, and for the cause of an exception
NEXT_STEP = "see that it can run, and start the job again with --resume"
_FAILURE = "failure"  # key of the first failure


class Exchange:
    """Exchanges records with the other ranks, in a thread because a request to a lost machine does not return.

    Args:
        place: place of the rank in the job.
        key: prefix of this job's keys in the store.
        timeout: seconds for which the store, and the next rank, may be silent.
        record: function for what the other ranks may know of this one: ``name``, ``iteration``, ``location``, ``idle``
            (seconds) and ``left`` (whether it has ended as it should).
        now: function for the time in seconds.
    """

    def __init__(self, place: Place, key: str, timeout: float, record: Callable[[], dict], now: Callable[[], float]):
        self._place, self._key, self._timeout, self._record, self._now = place, key, timeout, record, now
        self._answered = self._next_changed = now()
        self._closed: float | None = None  # since when the store refuses connections
        self._next: dict = {}  # record of the next rank
        self._deadlock: str | None = None
        self._failure: dict | None = None  # the first of the job
        self._report: dict | None = None  # to be published
        self._due = threading.Event()
        self._num_exchanges = 0
        threading.Thread(target=self._run, daemon=True).start()

    @property
    def is_cut(self) -> bool:
        """Whether the store has not answered lately."""
        return self._now() - self._answered >= _PATIENCE

    @property
    def is_closed(self) -> bool:
        """Whether the store refuses connections, because the process that serves it has ended."""
        return self._closed is not None

    def fault(self) -> str | None:
        """A failure that another rank published, or the fault of the store, of the next rank or of all, in one line."""
        if self._failure is not None:
            return self._failure["message"]
        closed = self._closed  # another thread may reset it
        if self._now() - self._answered >= self._timeout or (closed and self._now() - closed >= _PATIENCE):
            return self.cut()
        if self._now() - self._next_changed >= self._timeout and not self._next.get("left") and not self.is_cut:
            name = self._next.get("name", f"rank {(self._place.rank + 1) % self._place.world_size}")
            last = self._next.get("iteration", -1)
            return (
                f"{name} has been silent for {self._timeout:g} s, last in iteration {last}: its machine is down or the "
                f"network is cut; {NEXT_STEP}."
            )
        return self._deadlock

    def cut(self) -> str:
        """The fault of a store that is closed, or does not answer."""
        record, place = self._record(), self._place
        who = f"{record['name']}, in iteration {record['iteration']}, has"
        where = f"{place.address}:{place.port}, where the ranks meet"
        if self.is_closed:
            return (
                f"{who} lost the connection to {where}: the first machine has ended its part of the job; {NEXT_STEP}."
            )
        silence = f"{self._now() - self._answered:.0f} s"
        return (
            f"{who} had no answer for {silence} from {where}: the first machine is down or the network is cut; "
            f"{NEXT_STEP}."
        )

    def publish(self, failure: dict, await_cause: bool) -> tuple[dict, bool]:
        """Publishes a failure unless there is one already.

        Args:
            failure: a dict with ``message``, in one line, ``rank``, ``machine`` and ``status``.
            await_cause: whether the failure may follow from that of another rank, whose report is then awaited.

        Returns:
            The first failure of the job, and whether the store could be asked.
        """
        if await_cause:
            self._await_failure()
        self._report = failure
        self._due.set()
        self._await_failure()
        return self._failure or failure, self._failure is not None

    def finish(self) -> None:
        """Lets the other ranks know that this one leaves, if they can be reached."""
        before, end = self._num_exchanges, time.monotonic() + _PATIENCE
        while self._num_exchanges < before + 2 and time.monotonic() < end:  # the first may have begun already
            self._due.set()
            time.sleep(0.01)

    def _await_failure(self) -> None:
        end = time.monotonic() + _PATIENCE
        while self._failure is None and time.monotonic() < end:
            time.sleep(0.05)

    def _run(self) -> None:
        place, timeout = self._place, timedelta(seconds=self._timeout)
        while True:
            try:
                server = TCPStore(place.address, place.port, is_master=False, wait_for_workers=False, timeout=timeout)
                store = PrefixStore(self._key, server)
                while True:
                    self._exchange(store)
                    self._due.wait(PERIOD)
                    self._due.clear()
            except Exception:  # of many types; fault() reports a connection that stays lost
                self._closed = self._closed or self._now()
                time.sleep(PERIOD)

    def _exchange(self, store: PrefixStore) -> None:
        record = self._record()
        store.set(str(self._place.rank), json.dumps({**record, "count": self._num_exchanges}))
        if self._report is not None:
            store.compare_set(_FAILURE, "", json.dumps(self._report))
        if store.check([_FAILURE]):
            self._failure = json.loads(store.get(_FAILURE))
        found = self._read(store, (self._place.rank + 1) % self._place.world_size)
        if found != self._next:
            self._next, self._next_changed = found, self._now()
        if self._place.rank == 0 and record["idle"] >= self._timeout:
            self._deadlock = self._find_deadlock([self._read(store, i) for i in range(self._place.world_size)])
        self._answered, self._closed = self._now(), None
        self._num_exchanges += 1

    @staticmethod
    def _read(store: PrefixStore, rank: int) -> dict:
        return json.loads(store.get(str(rank))) if store.check([str(rank)]) else {}

    def _find_deadlock(self, records: list[dict]) -> str | None:
        if not all(record.get("left") or record.get("idle", 0.0) >= self._timeout for record in records):
            return None
        where = "; ".join(
            f"{record['name']} has left" if record.get("left") else f"{record['name']} in {record['location']}"
            for record in records
        )
        return f"all ranks have waited for one another for {self._timeout:g} s: {where}. {NEXT_STEP.capitalize()}."
