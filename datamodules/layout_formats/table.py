"""Tables with a header: ``cases.csv`` beside a dataset, and lists of cases."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from datamodules.errors import DataError
from datamodules.layout_formats.reading import SPLIT_NAMES, Draft, Reading

# What else is known of the cases of a folder: the first that is there is read.
TABLES = ("cases.csv", "info.csv")


def read_table(file: Path) -> list[dict[str, str]]:
    """Rows by column name; text is UTF-8, separated by commas, semicolons or tabs.

    Raises:
        DataError: it cannot be read, has no header, names a column twice, or a row of another length.
    """
    try:
        text = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as UTF-8 text ({error}); save it as CSV UTF-8") from error
    head = text.partition("\n")[0]
    separator = max(",;\t", key=head.count)
    try:
        rows = list(csv.reader(text.splitlines(), delimiter=separator, strict=True))
    except csv.Error as error:
        raise DataError(f"{file}: is no valid CSV ({error})") from error
    if not rows or not any(rows[0]):
        raise DataError(f"{file}: has no header; the first line names the columns")
    columns = [name.strip() for name in rows[0]]
    if len(set(columns)) < len(columns):
        raise DataError(f"{file}: its header {columns} names a column twice")
    table = []
    for line, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(columns):
            raise DataError(f"{file}: line {line} has {len(row)} cells, the header {len(columns)}")
        table.append({name: cell.strip() for name, cell in zip(columns, row, strict=True)})
    return table


def add_table(reading: Reading, drafts: Sequence[Draft]) -> None:
    """Add what ``cases.csv`` says: the first column is the key; ``group``, ``split`` and ``annotated`` have a meaning.

    Rows of cases that are not there are passed over: such tables often describe more than one folder holds.

    Raises:
        DataError: the table is unreadable, or it names none of the cases.
    """
    file = next((reading.root / name for name in TABLES if (reading.root / name).is_file()), None)
    if file is None or not drafts:
        return
    rows: dict[str, dict[str, str]] = {}
    for row in read_table(file):
        key = next(iter(row.values()))
        if key in rows:
            reading.problem(file, f"names the case {key} twice; remove one line")
        rows.setdefault(key, dict(list(row.items())[1:]))
    # Below train/, val/ and test/ the table may leave the split out of the key, where that is not ambiguous.
    short = [draft.name for draft in drafts]
    found = 0
    for draft in drafts:
        known = rows.get(draft.key)
        if known is None and draft.name is not None and short.count(draft.name) == 1:
            known = rows.get(draft.name)
        if known is not None:
            found += 1
            add_row(reading, draft, known, file)
    if not found:
        raise DataError(
            f"{file}: none of its {len(rows)} rows names a case; the first column holds keys such as "
            f"{drafts[0].key}"
        )


def add_row(reading: Reading, draft: Draft, row: dict[str, str], file: Path) -> None:
    """Add group, split, annotated classes and everything else of one row to a case. Empty cells say nothing."""
    for name, cell in row.items():
        if not cell:
            continue
        if name == "group":
            draft.group = cell
        elif name == "annotated":
            draft.annotated = tuple(part.strip() for part in cell.split(";") if part.strip())
        elif name == "split":
            if cell.lower() not in SPLIT_NAMES:
                reading.problem(
                    file, f"puts the case {draft.key} into the split {cell}; accepted are train, val, test"
                )
            draft.split = SPLIT_NAMES.get(cell.lower())
        else:
            draft.info[name] = cell
