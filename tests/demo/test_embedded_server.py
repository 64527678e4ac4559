from pathlib import Path

import pytest

from fedround_client.embedded.processes import ProcessGroup
from fedround_client.embedded.server import Server


@pytest.mark.examples  # each run of the demo in test_demo_run.py ignores them, too
def test_it_ignores_settings_of_other_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fedround.toml").write_text('database = "postgresql://127.0.0.1:1/theirs"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDROUND_DATABASE", "postgresql://127.0.0.1:1/theirs")
    with ProcessGroup(tmp_path) as processes:
        server = Server(processes, tmp_path / "data")
        assert server.wait().startswith("127.0.0.1:")
        assert server.admin_token()
