"""The certificates of the tutorial are those that a server and a client need."""

import subprocess
from pathlib import Path

import forked
from docs.blocks import blocks
from servers import Server

PAGE = Path(__file__).parents[2] / "docs/tutorial/two-machines.md"


def test_the_tutorial_makes_certificates_that_work(tmp_path: Path) -> None:
    made = next(block for block in blocks(PAGE) if block.text.startswith("openssl"))
    subprocess.run(["bash", "-euc", made.text], cwd=tmp_path, capture_output=True, check=True)
    options = ("--tls-cert", str(tmp_path / "server.pem"), "--tls-key", str(tmp_path / "server.key"))
    with Server(tmp_path / "data", options=options) as server:
        environment = {
            "FEDROUND_SERVER": f"localhost:{server.address.rpartition(':')[2]}",
            "FEDROUND_TLS_CA": str(tmp_path / "ca.pem"),
            "FEDROUND_TOKEN": server.admin_token,
        }
        ended = forked.run("doctor", environment=environment)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        created = forked.run("user", "create", "site 1", environment=environment)
    assert created.returncode == 0, created.stderr
