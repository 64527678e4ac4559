"""Alarms of the client's clock."""

import threading
import time
import weakref

import pytest

from fedround_client.alarms import Alarms

pytestmark = pytest.mark.timeout(30)


class Call:
    """A function that waits until it is called."""

    def __init__(self):
        self.called = threading.Event()

    def __call__(self):
        self.called.set()


def test_alarms_begin_when_they_are_due_in_whatever_order_they_were_set():
    alarms, late, early = Alarms(), Call(), Call()
    alarms.call_at(time.monotonic() + 3600, Call())
    alarms.call_at(time.monotonic() + 0.2, late)
    alarms.call_at(time.monotonic(), early)
    assert early.called.wait(10)
    assert late.called.wait(10)


def test_a_call_that_lasts_does_not_delay_others():
    alarms, other, ended = Alarms(), Call(), threading.Event()
    alarms.call_at(time.monotonic(), lambda: ended.wait(20))
    alarms.call_at(time.monotonic(), other)
    assert other.called.wait(10)
    ended.set()


def test_a_cancelled_alarm_does_not_begin_and_releases_its_function():
    alarms, cancelled, other = Alarms(), Call(), Call()
    called, alarm = cancelled.called, alarms.call_at(time.monotonic() + 0.05, cancelled)
    released = weakref.ref(cancelled)
    alarm.cancel()
    del cancelled
    assert released() is None
    alarms.call_at(time.monotonic() + 0.1, other)
    assert other.called.wait(10)
    assert not called.is_set()


def test_cancelled_alarms_do_not_accumulate():
    alarms = Alarms()
    for _ in range(1000):
        alarms.call_at(time.monotonic() + 3600, Call()).cancel()
    assert len(alarms._pending) < 100
