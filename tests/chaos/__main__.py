"""`python -m chaos`: kills servers the given number of times, and writes a report."""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from chaos.driver import Tally, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="chaos")
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--databases", nargs="+", default=["sqlite", "postgresql"])
    parser.add_argument("--points", nargs="+", default=[], help="prefixes of the points of the kills")
    parser.add_argument("--per-campaign", type=int, default=50)
    parser.add_argument("--folder", type=Path, help="where the data goes; on a real disk")
    parser.add_argument("--output", type=Path, default=Path("chaos.json"))
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="chaos-", dir=options.folder))
    began, tally = time.monotonic(), Tally()

    def progress(tally: Tally) -> None:
        kills = sum(tally.kills.values())
        spent = time.monotonic() - began
        receipts, found = tally.counts["receipts"], len(tally.violations)
        sys.stdout.write(f"{kills} kills in {spent:.0f} s, {receipts} receipts, {found} violations\n")
        sys.stdout.flush()
        summary = {"seed": options.seed, "seconds": round(spent, 1), **tally.summary()}
        options.output.write_text(json.dumps(summary, indent=2) + "\n")

    run(
        options.kills,
        options.seed,
        folder,
        tally,
        databases=options.databases,
        points=options.points,
        per_campaign=options.per_campaign,
        progress=progress,
    )
    if tally.violations:
        sys.stdout.write(f"the data is in {folder}\n")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
