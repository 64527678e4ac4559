import json
from pathlib import Path

import pytest


@pytest.fixture
def privacy_cost():
    import privacy_cost

    return privacy_cost


def test_costs_are_computed_and_drawn(privacy_cost, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(privacy_cost, "ROUNDS", (1, 2, 4))
    monkeypatch.setattr(privacy_cost, "SETTINGS", [privacy_cost.SETTINGS[index] for index in (0, 4)])
    monkeypatch.setattr("sys.argv", ["privacy_cost.py", "--output", str(tmp_path)])
    privacy_cost.main()
    curves = json.loads((tmp_path / "privacy.json").read_text())["epsilon"]
    assert round(curves["z = 1, everybody"][0], 4) == 4.3772
    assert all(values == sorted(values) for values in curves.values())
    assert (tmp_path / "privacy.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("z = ") == 2
