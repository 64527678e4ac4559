import io
import re

import numpy as np
from rich.console import Console

from fedround_client.demo.data import Digits
from fedround_client.demo.display import ClientRow, Dashboard, RoundRow, comparison
from fedround_client.demo.report import Outcome
from fedround_client.demo.uncertainty import RotationResult

NOTHING = RotationResult((), [], [], [], [], [])


def images(*labels: int) -> Digits:
    return Digits(np.zeros((len(labels), 1, 8, 8), np.float32), np.array(labels))


def dashboard(*, terminal: bool, rounds: int = 12, height: int = 24) -> Dashboard:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80, height=height, _environ={})
    return Dashboard(console, rounds, [ClientRow(f"client {number}", images(0, 0, 7)) for number in range(1, 6)])


def written(dashboard: Dashboard) -> str:
    file = dashboard.console.file
    assert isinstance(file, io.StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())


def test_off_a_terminal_there_is_one_plain_line_a_round() -> None:
    plain = dashboard(terminal=False)
    with plain.shown():
        plain.set_phase("Training")
        for number, accuracy in enumerate((0.5, 0.987)):
            plain.round(number).arrived = 5
            plain.record_accuracy(number, accuracy)
    assert written(plain).splitlines() == [
        "Training",
        "round  1 of 12: 5 updates, accuracy 50.0%",
        "round  2 of 12: 5 updates, accuracy 98.7%",
    ]


def test_in_a_terminal_all_rounds_are_left_on_the_screen() -> None:
    live = dashboard(terminal=True, rounds=40)
    with live.shown():
        for number in range(40):
            live.record_accuracy(number, number / 40)
    last = written(live).rpartition("client 1")[2].splitlines()
    assert [line for line in last if line.startswith("round ")][-1].split("accuracy")[1].strip() == "97.5%"
    assert sum(line.startswith("round ") for line in last) == 40


def test_a_live_board_fits_on_the_screen() -> None:
    live = dashboard(terminal=True, rounds=40)
    live.rounds = {number: RoundRow(arrived=5, accuracy=0.5) for number in range(40)}
    with live.shown():
        live.set_phase("Training")
        lines = live.console.render_lines(live)
    assert len(lines) <= 24


def test_a_client_shows_which_digits_it_has() -> None:
    shown = dashboard(terminal=False)
    shown.console.print(shown)
    assert "0······7··" in written(shown)


def test_crossing_news_never_moves_a_client_back() -> None:
    row = ClientRow("client 1", images(1))
    row.advance(0, 1, "uploaded")
    row.advance(0, 0, "training")
    assert row.state == "uploaded"
    row.advance(1, 0, "training")
    row.advance(0, 1, "uploaded")
    assert row.state == "training"


def test_the_comparison_names_each_client_while_they_fit() -> None:
    def headings(clients: int) -> list[str]:
        outcome = Outcome([0.1, 0.9], [[0.1, 0.5]] * clients, [0.1, 0.9], [9] * clients, "", "", NOTHING)
        table = comparison(outcome)
        assert Console(width=80).measure(table).minimum <= 80
        assert table.row_count == 2
        return [str(column.header) for column in table.columns]

    assert headings(5) == ["round", "together", "one place", *(f"client {number}" for number in range(1, 6))]
    assert headings(6) == ["round", "together", "one place", "best alone", "mean", "worst"]
