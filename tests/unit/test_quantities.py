"""Durations and sizes as people read them."""

from fedround_client.command.quantities import duration_text, size_text


def test_durations() -> None:
    texts = [duration_text(seconds) for seconds in (-1, 0, 59.4, 59.5, 60, 185, 7620, 86_400, 100_000)]
    assert texts == ["0 s", "0 s", "59 s", "1 min", "1 min", "3 min 5 s", "2 h 7 min", "1 d", "1 d 3 h"]


def test_sizes() -> None:
    texts = [size_text(size) for size in (0, 999, 999.6, 1500, 99_600, 2.5e6, 3e9, 2e15, 4e18)]
    assert texts == ["0 B", "999 B", "1.0 kB", "1.5 kB", "100 kB", "2.5 MB", "3.0 GB", "2.0 PB", "4000 PB"]
