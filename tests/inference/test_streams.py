"""Threads keep the order, hold a bounded number of items, pass on errors, and do not wait for a slow source."""

import itertools
import threading
import time

import pytest
from clq.inference.streams import Ahead, Behind, group_by_shape


def test_results_keep_their_order():
    def slow_for_even(i):
        time.sleep(0.01 * (i % 2 == 0))
        return i * i

    with Ahead(range(11), slow_for_even, threads=3, ahead=4) as ahead:
        assert ahead.take(4) == [0, 1, 4, 9]
        assert ahead.take(20) == [i * i for i in range(4, 11)]
        assert ahead.take(1) == ahead.take(1) == []


def test_only_a_few_items_are_taken_ahead():
    taken = []
    with Ahead((taken.append(i) or i for i in itertools.count()), str, threads=2, ahead=3) as ahead:
        for count in (1, 2, 3):
            assert len(ahead.take(1)) == 1
            time.sleep(0.05)
            assert len(taken) <= count + 3 + 1  # one more has been submitted and waits for its place


def test_a_slow_source_does_not_keep_others_waiting():
    more = threading.Event()

    def source():
        yield from "ab"
        assert more.wait(10)
        yield "c"

    with Ahead(source(), str, threads=1, ahead=4) as ahead:
        assert ahead.take(8, patience=0.2) == ["a", "b"]
        more.set()
        assert ahead.take(8, patience=10) == ["c"]


@pytest.mark.parametrize("where", ["source", "function"])
def test_errors_reach_the_thread_that_takes(where):
    def source():
        yield 1
        if where == "source":
            raise ValueError("broken")
        yield 0

    with Ahead(source(), lambda i: 1 // i if where == "function" else i, threads=1, ahead=2) as ahead:
        assert ahead.take(1) == [1]
        with pytest.raises(ValueError if where == "source" else ZeroDivisionError):
            ahead.take(1)


def test_what_is_done_behind_is_passed_on_in_order():
    def slow_for_even(i):
        time.sleep(0.02 * (i % 2 == 0))
        return i

    done, main = [], threading.current_thread()
    with Behind(lambda i: done.append((i, threading.current_thread() is main)), threads=3, waiting=2) as behind:
        for i in range(9):
            behind.submit(slow_for_even, i)
            assert i + 1 - len(done) <= 5
    assert done == [(i, True) for i in range(9)]


def test_an_error_behind_ends_the_work():
    with pytest.raises(ZeroDivisionError), Behind(print, threads=1, waiting=1) as behind:
        for i in (1, 0, 1, 1, 1):
            behind.submit(lambda i: 1 // i, i)


def test_batches_are_of_one_shape():
    wide, tall = (800, 1216), (1216, 800)
    assert group_by_shape([wide, tall, wide, tall, wide], 2) == [[0, 2], [4], [1, 3]]
    assert group_by_shape([wide, (800, 1184)], 2) == [[0], [1]]
    assert group_by_shape([], 4) == []
