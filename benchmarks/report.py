"""Writes the figures of results.json into docs/performance.md, each section between markers of its own.

A section stands between `<!-- NAME -->` and `<!-- /NAME -->`. One that has no results, or no markers, is left as it is.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import RESULTS
from report_aggregation import aggregation
from report_client import saving, sdk, simulation
from report_rounds import rounds
from report_server import growth, start, subscribers
from report_streams import profile, streams
from report_updates import growth_cohorts_postgresql, rounds_slow_syncs, update_parts, updates

DOCS = Path(__file__).parent.parent / "docs"

Figures = dict[str, Any]

# A section's name is that of its figures. Its function makes Markdown of them, and may draw pictures into the folder.
SECTIONS: dict[str, Callable[[Figures, Path], str]] = {
    "rounds": rounds,
    "rounds_slow_syncs": rounds_slow_syncs,
    "updates": updates,
    "update_parts": update_parts,
    "streams": streams,
    "profile": profile,
    "subscribers": subscribers,
    "start": start,
    "growth": growth,
    "growth_cohorts_postgresql": growth_cohorts_postgresql,
    "saving": saving,
    "sdk": sdk,
    "simulation": simulation,
    "aggregation": aggregation,
}


def replace(page: str, name: str, text: str) -> str:
    """Puts text between the markers of a section."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    if begin not in page or end not in page:
        return page
    before, _, rest = page.partition(begin)
    return f"{before}{begin}\n{text.strip()}\n\n{end}{rest.partition(end)[2]}"


def main() -> None:
    """Writes all sections that there are results of, or some of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=DOCS / "performance.md")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="which to write")
    options = parser.parse_args()
    results = json.loads(options.results.read_text())
    page = options.page.read_text()
    for name, section in SECTIONS.items():
        if name not in options.sections:
            continue
        if name not in results:
            print(f"{name}: no results, left as it is")
            continue
        changed = replace(page, name, section(results[name], options.page.parent))
        print(f"{name}: {'as it was' if changed == page else 'written'}")
        page = changed
    options.page.write_text(page)


if __name__ == "__main__":
    main()
