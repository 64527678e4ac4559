"""Calls of verbs that wait: in order, in groups, and each group with one thread at a time."""

from contextvars import copy_context
from typing import Any

from fedround_server.store.db.group_commit import Call, Joint
from fedround_server.store.db.waiting_calls import WaitingCalls


def call(name: str, group: str = "") -> Call:
    """A call that is run with those of its group; by itself without one."""
    joint = Joint(group, (), lambda _first, _more: []) if group else None
    answer: Any = None
    return Call(lambda: None, name, "", answer, copy_context(), joint)


def waiting(*calls: Call) -> WaitingCalls:
    found = WaitingCalls()
    for one in calls:
        found.add(one)
    return found


def names(calls: list[Call]) -> list[str]:
    return [one.name for one in calls]


def test_all_are_taken_in_order_with_those_of_their_group() -> None:
    calls = waiting(call("1", "a"), call("2"), call("3", "a"), call("4"))
    assert names(calls.take_all(3)) == ["1", "3", "2"]
    assert names(calls.take_all(3)) == ["4"]
    assert calls.take_all(3) == []


def test_no_group_is_taken_whose_calls_are_being_run() -> None:
    calls = waiting(call("1", "a"), call("2"))
    first = calls.take_group(10)
    calls.add(call("3", "a"))
    calls.add(call("4", "b"))
    second, third = calls.take_group(10), calls.take_group(10)
    assert [names(taken) for taken in (first, second, third)] == [["1"], ["2"], ["4"]]
    assert calls.take_group(10) == []
    assert calls.finish(first)
    assert not calls.finish(second)
    assert names(calls.take_group(10)) == ["3"]


def test_more_of_a_group_are_taken_up_to_a_number() -> None:
    calls = waiting(call("1", "a"))
    first = calls.take_group(3)
    for name in "2345":
        calls.add(call(name, "a"))
    assert names(calls.take_more(first, 3)) == ["2", "3"]
    assert calls.finish(first)
    assert names(calls.take_group(3)) == ["4", "5"]
