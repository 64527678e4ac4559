"""The commands of docs/stubs.md that need nothing but protoc."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedround_client.command import app

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/stubs.md").read_text(encoding="utf-8")
BUILT_IN = ("--java_out", "--cpp_out", "--kotlin_out")


def test_the_page_names_all_files() -> None:
    names = re.search(r"for name in ([\w ]+);", PAGE)
    assert names
    assert names[1].split() == sorted(path.stem for path in (ROOT / "protos/fedround/v1").glob("*.proto"))


@pytest.mark.examples
@pytest.mark.skipif(shutil.which("protoc") is None, reason="protoc is not here")
def test_protoc_writes_what_the_page_uses(tmp_path: Path) -> None:
    lines = re.findall(r"^ {4}(.*(?:\n {8}.*)*)", PAGE, re.MULTILINE)
    script = [line for line in lines if line.startswith(("FILES", "mkdir")) or any(flag in line for flag in BUILT_IN)]
    assert len(script) == 1 + 4 + len(BUILT_IN)
    protoset = CliRunner().invoke(app, ["protoset"]).stdout.strip()
    subprocess.run(["bash", "-euc", "\n".join([f"SET={protoset}", *script])], cwd=tmp_path, check=True)

    java = (tmp_path / "java/fedround/v1/UserOuterClass.java").read_text()
    assert all(f"class {name} extends" in java for name in ("User", "GetMyselfRequest"))
    assert "fun getMyselfRequest(" in (tmp_path / "kotlin/fedround/v1/GetMyselfRequestKt.kt").read_text()
    assert "class GetMyselfResponse final" in (tmp_path / "cpp/fedround/v1/user.pb.h").read_text()
