"""CSV for spreadsheets, in which no text becomes a formula."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

from fedround_client.command.output import Columns, Row, cells
from fedround_client.csv_cells import harmless


def as_csv(rows: Iterable[Row], columns: Columns[Row]) -> str:
    """Returns rows, such as messages, as CSV with a header; floats have all their digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([harmless(name) for name in columns])
    writer.writerows([harmless(cell) for cell in cells(row, columns)] for row in rows)
    return text.getvalue()
