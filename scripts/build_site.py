"""Builds the documentation site into build/site with zensical: `make site`. A warning is an error.

zensical reads one folder, while the pages link to files of the whole repository, as one can follow them on a Git host.
So this copies the pages, and the files that they link to, into build/site-source, at their places in the repository.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "build/site-source"
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/**/*.md",
    "benchmarks/README.md",
    "examples/**/README.md",
)
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)|(?:src|href|srcset)=\"([^\"#]+)")


def pages() -> list[Path]:
    """Returns the pages of the site."""
    return sorted(path for pattern in PAGES for path in ROOT.glob(pattern) if "node_modules" not in path.parts)


def linked_files(page: Path) -> set[Path]:
    """Returns the files of the repository that a page links to, and that are no pages."""
    text = page.read_text(encoding="utf-8")
    links = [first or second for first, second in LINK.findall(text)]
    found = {(page.parent / link).resolve() for link in links if not re.match(r"[a-z]+:", link)}
    return {path for path in found if path.is_file() and path.is_relative_to(ROOT)}


def copy_source() -> None:
    """Copies all that the site consists of."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    files = set(pages())
    for path in sorted(files.union(*map(linked_files, files))):
        copy = SOURCE / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def main() -> None:
    """Builds the site."""
    copy_source()
    run = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--clean", "--strict", "--config-file", str(ROOT / "mkdocs.yml")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    printed = re.sub(r"\x1b\[[0-9;]*m", "", run.stdout + run.stderr)
    # What is wrong in docstrings is no warning for zensical.
    if run.returncode or re.search("^(griffe|mkdocstrings):", printed, re.MULTILINE):
        # zensical says what is wrong, and then raises an exception of its own.
        print(printed.partition("Traceback")[0].strip(), file=sys.stderr)
        sys.exit("The site was not built: mend the warnings above.")
    print("the site is in build/site")


if __name__ == "__main__":
    main()
