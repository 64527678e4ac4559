"""Alarms of the client's clock."""

import os
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


def test_alarms_begin_in_the_child_of_a_fork():
    alarms, own = Alarms(), Call()
    alarms.call_at(time.monotonic() + 3600, Call())
    child = os.fork()
    if not child:
        alarms.call_at(time.monotonic(), own)
        os._exit(0 if own.called.wait(10) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_an_alarm_for_which_there_is_no_thread_begins_later_and_others_still_do(monkeypatch):
    monkeypatch.setattr("fedround_client.alarms._RETRY_SECONDS", 0.05)
    alarms, first, second, failed = Alarms(), Call(), Call(), []
    start = threading.Thread.start

    def start_none_for_an_alarm(thread):
        if thread.name == "alarm" and not failed:
            failed.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_none_for_an_alarm)
    alarms.call_at(time.monotonic(), first)
    assert first.called.wait(10)
    alarms.call_at(time.monotonic(), second)
    assert second.called.wait(10)
    assert failed


def test_a_thread_that_could_not_be_started_is_started_for_the_next_alarm(monkeypatch):
    def fail(_):
        raise RuntimeError("can't start new thread")

    alarms, call = Alarms(), Call()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError):
            alarms.call_at(time.monotonic() + 3600, Call())
    alarms.call_at(time.monotonic(), call)
    assert call.called.wait(10)
