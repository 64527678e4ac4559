"""The code in the pages runs: Python in one namespace for each page, commands against a server of the page's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import fedround_client as fr
from docs.blocks import Block, blocks
from docs.pages import NOT_RUN, PAGES
from docs.scene import MODEL, Scene
from servers import Server

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).parents[2]
WITH_CODE = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/tutorial").glob("*.md"))]


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    folder = tmp_path / "page"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    (folder / "model.safetensors").write_bytes(fr.to_safetensors(MODEL))
    with Server(tmp_path / "data") as server:
        opened = Scene(server.address, server.admin_token, server.data_dir)
        try:
            yield opened
        finally:
            opened.close()


def run(block: Block, page: str, scene: Scene, skipped: dict[str, str]) -> set[str]:
    """Runs a block but for what is skipped; returns what was, by what it begins with."""
    if block.is_python:
        found = {start for start in skipped if block.text.startswith(start)}
        if not found:
            # The lines of a traceback are those of the page.
            code = compile("\n" * (block.line - 1) + block.text, page, "exec")
            exec(code, scene.names)
        return found
    seen = set()
    for command in block.commands():
        found = {start for start in skipped if command.startswith(start)}
        seen |= found
        # The scene has these variables.
        if not found and not command.startswith("export FEDROUND_SERVER="):
            assert command.startswith("fedround "), f"{page}:{block.line}: how is this run? {command}"
            scene.type(command)
    return seen


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.examples] * how.is_long) for page, how in PAGES.items()]
)
def test_the_code_of_a_page_runs(page: str, scene: Scene) -> None:
    how = PAGES[page]
    how.prepare(scene)
    seen = [run(block, page, scene, how.skipped) for block in blocks(ROOT / page)]
    how.finish(scene)
    assert how.skipped.keys() == set().union(*seen)


def test_every_page_with_code_is_listed() -> None:
    with_code = {str(page.relative_to(ROOT)) for page in WITH_CODE if any(blocks(page))}
    assert with_code == PAGES.keys() | NOT_RUN.keys()
