"""Who is there, and when the others were seen last."""

from datetime import UTC, datetime, timedelta

from fedround_server.coordinator.presence import Presence

T0 = datetime(2026, 1, 1, tzinfo=UTC)
T1, T2, T3 = (T0 + timedelta(seconds=seconds) for seconds in (1, 2, 3))


def test_a_user_that_listens_is_there_until_its_last_subscription_ends() -> None:
    presence = Presence()
    assert presence.last_seen("a", T0) is None
    with presence.listening("a", lambda: T2):
        with presence.listening("a", lambda: T1):
            assert presence.last_seen("a", T0) == T0
        assert presence.is_listening("a")
        assert presence.last_seen("a", T3) == T3
    assert not presence.is_listening("a")
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
