"""Who is there, and when the others were seen last."""

from datetime import UTC, datetime, timedelta

from fedround_server.coordinator.elsewhere import KEPT
from fedround_server.coordinator.presence import Presence
from fedround_server.domain.replica import UserPresence

T0 = datetime(2026, 1, 1, tzinfo=UTC)
T1, T2, T3 = (T0 + timedelta(seconds=seconds) for seconds in (1, 2, 3))


def test_a_user_that_listens_is_there_until_its_last_subscription_ends() -> None:
    presence = Presence()
    assert presence.last_seen("a", T0) is None
    with presence.listening("a", lambda: T2):
        with presence.listening("a", lambda: T1):
            assert presence.last_seen("a", T0) == T0
        assert presence.is_listening("a", T0)
        assert presence.last_seen("a", T3) == T3
    assert not presence.is_listening("a", T0)
    assert presence.last_seen("a", T3) == T2


def test_changes_are_reported_once_and_listeners_always() -> None:
    presence = Presence()
    presence.see("a", T0)
    presence.see("b", T0)
    presence.see("a", T1)
    with presence.listening("c", lambda: T3):
        assert presence.take_news(T2) == {"a": T1, "b": T0, "c": T2}
        assert presence.take_news(T3) == {"c": T3}
    presence.see("b", T2)
    presence.forget("b")
    assert presence.take_news(T3) == {"c": T3}


def test_changes_that_could_not_be_stored_are_reported_again() -> None:
    presence = Presence()
    presence.see("a", T0)
    presence.see("b", T0)
    news = presence.take_news(T1)
    presence.see("a", T2)
    presence.forget("b")
    presence.give_back(news)
    assert presence.take_news(T3) == {"a": T2}


def test_who_has_checked_in_is_there_until_it_is_overdue() -> None:
    presence = Presence()
    presence.see("a", T0)
    presence.expect("a", T2)
    assert presence.is_listening("a", T1)
    assert presence.is_connected("a", T1)
    assert presence.listeners(T1) == {"a"}
    # Not seen since: that would hide from the actor when it was last there.
    assert presence.last_seen("a", T1) == T0
    assert not presence.is_listening("a", T2)
    assert presence.listeners(T2) == frozenset()
    presence.expect("a", T3)
    assert presence.is_listening("a", T2)
    with presence.listening("b", lambda: T2):
        assert presence.listeners(T2) == {"a", "b"}


def test_who_does_not_come_back_is_no_longer_counted() -> None:
    presence = Presence()
    for user_id, until in (("a", T1), ("b", T2), ("c", T3)):
        presence.expect(user_id, until)
    presence.forget("c")
    assert presence.num_expected() == 2
    presence.take_news(T1)
    assert presence.num_expected() == 1
    assert presence.has_checked_in("b")
    assert not presence.has_checked_in("a")


def test_when_users_were_seen_at_replicas_that_ended_is_kept_until_it_is_of_no_use() -> None:
    presence = Presence()
    elsewhere = presence.elsewhere
    elsewhere.update("old", [UserPresence(user_id, False, T0) for user_id in "abcde"])
    elsewhere.keep(["new"], T1)
    assert len(elsewhere._seen) == 5
    assert presence.last_seen("a", T1) == T0
    # Seen elsewhere, connected elsewhere, seen here, removed.
    elsewhere.update("new", [UserPresence("a", False, T2), UserPresence("b", True, None)])
    presence.see("c", T2)
    presence.forget("d")
    assert elsewhere._seen == {"e": T0}
    assert [presence.last_seen(user_id, T3) for user_id in "abcde"] == [T2, T3, T2, None, T0]
    elsewhere.keep([], T0 + KEPT)
    assert elsewhere._seen == {"a": T2, "b": T0 + KEPT}


def test_an_earlier_time_at_another_replica_does_not_replace_a_later_one() -> None:
    presence = Presence()
    presence.elsewhere.update("old", [UserPresence("a", False, T2)])
    presence.elsewhere.keep(["new"], T2)
    presence.elsewhere.update("new", [UserPresence("a", False, T1)])
    assert presence.last_seen("a", T3) == T2
