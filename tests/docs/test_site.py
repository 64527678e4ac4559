"""The documentation site: its navigation, and what is generated for it."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import fedround_client as fr

ROOT = Path(__file__).parents[2]
NAV = re.findall(r"^ +- (?:[^:#\n]+: )?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_navigation_has_every_page_once() -> None:
    pages = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")}
    others = {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"}
    assert sorted(NAV) == sorted(pages | others)


def test_the_reference_is_up_to_date() -> None:
    run = subprocess.run(
        [sys.executable, "scripts/generate_reference.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")


def is_documented_here(name: str) -> bool:
    """Whether the page of the SDK describes it: messages are on the pages of the API, errors in docs/errors.md."""
    public = getattr(fr, name)
    is_error = inspect.isclass(public) and issubclass(public, fr.FedroundError)
    return public is not fr.lora and not is_error and public.__module__.startswith("fedround_client.")


def test_the_reference_has_every_public_name() -> None:
    names = {f"{getattr(fr, name).__module__}.{name}" for name in fr.__all__ if is_documented_here(name)}
    page = (ROOT / "docs/reference/sdk.md").read_text(encoding="utf-8")
    assert names - set(re.findall(r"^::: (\S+)$", page, re.MULTILINE)) == set()
