"""What the pages say about the repository is so."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def read_all(folder: str) -> str:
    return "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / folder).glob("*.py")))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_local_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href|srcset)="([^"]+)"', text)
    dead = []
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


def test_license_is_the_one_that_the_package_names() -> None:
    assert 'license = "Apache-2.0"' in read("pyproject.toml")
    assert re.match(r"\s+Apache License\n\s+Version 2\.0, January 2004\n", read("LICENSE"))


def test_readme_lists_the_rpcs_of_training_service() -> None:
    service = re.search(r"service TrainingService \{(.*?)\n\}", read("protos/fedround/v1/training.proto"), re.DOTALL)
    assert service
    rpcs = re.findall(r"^  rpc (\w+)", service[1], re.MULTILINE)
    assert len(rpcs) == 7
    assert re.findall(r"^\| `(\w+)` \|", read("README.md"), re.MULTILINE) == rpcs


def test_readme_lists_all_pages() -> None:
    pages = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")}
    linked = set(re.findall(r"\]\((docs/[\w-]+\.md)\)", read("README.md").partition("## Documentation")[2]))
    assert linked == pages


def test_readme_shows_the_examples_as_they_are() -> None:
    shown = re.findall(r"```python\n(.*?)```", read("README.md"), re.DOTALL)
    template = [f"client/fedround_client/template/{name}.py" for name in ("network", "participant", "actor")]
    assert shown == [read(path) for path in (*template, "examples/participant.py")]


def test_models_stay_out_of_the_source_distribution() -> None:
    sdist = tomllib.loads(read("pyproject.toml"))["tool"]["hatch"]["build"]["targets"]["sdist"]
    assert "*.safetensors" in sdist["exclude"]


def test_every_reason_is_documented_and_an_exception_of_the_sdk() -> None:
    pattern = r'reason ?= ?"([A-Z_]+)"'
    reasons = set(re.findall(pattern, read_all("server/fedround_server/domain/errors"))) - {"INTERNAL"}
    assert len(reasons) > 20
    assert reasons == set(re.findall(pattern, read("client/fedround_client/errors/reason.py")))
    assert reasons == set(re.findall(r"\| [A-Z_]+ \| `([A-Z_]+)` \|", read("docs/errors.md")))


@pytest.mark.parametrize("script", ["generate_errors.py", "generate_settings.py"])
def test_what_is_generated_is_up_to_date(script: str) -> None:
    run = subprocess.run(
        [sys.executable, f"scripts/{script}", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")


def test_every_action_of_the_audit_log_is_documented() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "server").rglob("*.py"))
    actions = set(re.findall(r'\b(?:record|AuditRecord)\("([a-z_]+)"', sources))
    assert {"user_created", "call_refused"} < actions
    assert actions - set(re.findall(r"`([a-z_]+)`", read("docs/audit.md"))) == set()


def test_every_suite_is_listed() -> None:
    rows = "".join(re.findall(r"^\| (`test[^|]+) \|", read("docs/reliability.md"), re.MULTILINE))
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")} - {"chaos"}
    files = {path.name for folder in ("tests", "tests/chaos") for path in (ROOT / folder).glob("test_*.py")}
    assert {name for name in folders | files if f"/{name}`" not in rows and f"`{name}`" not in rows} == set()


def test_every_decision_is_listed() -> None:
    decisions = {path.name for path in (ROOT / "docs/adr").glob("0*.md")}
    assert decisions == set(re.findall(r"\((0[^)]+\.md)\)", read("docs/adr/README.md")))


def test_constraints_pin_versions_and_nothing_else() -> None:
    lines = [line for line in read("constraints.txt").splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9.a-z]*", line)] == []
    assert "torch==2.13.0" in lines
