"""Tables of results: printed, as CSV, as JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from isac_gym.files import write_atomically

if TYPE_CHECKING:
    from rich.table import Table as RichTable

__all__ = ["Column", "Row", "Table"]

Row: TypeAlias = Mapping[str, Any]
"""Entries by name: numbers, texts, and lists that pictures are drawn from."""

_WIDTH = 200
"""Characters that a table may take where it is printed without a terminal."""


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a printed table.

    Attributes:
        heading: Its heading.
        text: What it shows of a row: a format string over the row's entries, in which None and NaN
            leave nothing, or a function of the row.
        justify: Where the text stands.
    """

    heading: str
    text: str | Callable[[Row], str]
    justify: Literal["left", "right"] = "right"

    def show(self, row: Row) -> str:
        """The text for a row."""
        return (
            _FORMATTER.vformat(self.text, (), row) if isinstance(self.text, str) else self.text(row)
        )


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows, with what they were computed from.

    Attributes:
        title: What the table is about.
        rows: The rows.
        settings: Scenario, seeds, versions and so on, as plain JSON types.
        columns: What is printed; None prints all entries, with an entry ``± name`` behind that of
            the name. Files hold all entries in any case.
        caption: Explanations below the printed table.
    """

    title: str
    rows: tuple[Row, ...]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    columns: Sequence[Column] | None = None
    caption: str = ""

    def to_csv(self, path: str | Path) -> None:
        """Write a line a row; the file appears whole or not at all.

        Lists are left out, and what is not a finite number is empty.
        """
        buffer = io.StringIO()
        writer = csv.DictWriter(
            buffer, self._find_names(), extrasaction="ignore", lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(map(_make_finite, self.rows))
        write_atomically(path, buffer.getvalue().encode())

    def to_json(self, path: str | Path) -> None:
        """Write title, settings and rows; the file appears whole or not at all.

        What is not a finite number is null.
        """
        content = {"title": self.title, "settings": self.settings, "rows": list(self.rows)}
        text = json.dumps(_make_finite(content), indent=2, ensure_ascii=False, default=str)
        write_atomically(path, f"{text}\n".encode())

    def __rich__(self) -> RichTable:
        from rich.table import Table as RichTable
        from rich.text import Text

        # Names of agents may hold what Rich would take for markup.
        caption = Text(self.caption, "table.caption") if self.caption else None
        shown = RichTable(title=Text(self.title, "table.title"), caption=caption)
        columns = self._make_columns() if self.columns is None else self.columns
        for column in columns:
            shown.add_column(Text(column.heading), justify=column.justify)
        for row in self.rows:
            shown.add_row(*(Text(column.show(row)) for column in columns))
        return shown

    def __str__(self) -> str:
        from rich.console import Console

        buffer = io.StringIO()
        Console(file=buffer, width=_WIDTH, no_color=True).print(self)
        return buffer.getvalue()

    def _repr_html_(self) -> str:
        from rich.console import Console

        console = Console(record=True, file=io.StringIO(), width=_WIDTH)
        console.print(self)
        return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")

    def _find_names(self) -> list[str]:
        """Names of the entries of all rows that are no lists."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        listed = {name for row in self.rows for name, value in row.items() if _is_nested(value)}
        return [name for name in names if name not in listed]

    def _make_columns(self) -> list[Column]:
        names = [name for name in self._find_names() if not name.startswith("± ")]
        texts = {name for row in self.rows for name in row if isinstance(row[name], str)}

        def make(name: str) -> Column:
            justify: Literal["left", "right"] = "left" if name in texts else "right"
            return Column(name, lambda row: _show_entry(row, name), justify)

        return [make(name) for name in names]


class _Formatter(string.Formatter):
    """Format strings in which None and NaN leave nothing."""

    def format_field(self, value: Any, format_spec: str) -> str:
        is_missing = value is None or (isinstance(value, float) and math.isnan(value))
        return "" if is_missing else str(format(value, format_spec))


_FORMATTER = _Formatter()


def _show_entry(row: Row, name: str) -> str:
    value = row.get(name, "")
    if not isinstance(value, float):
        return "" if value is None else str(value)
    digits = ".2f" if abs(value) >= 1 else ".4f"
    spread = row.get(f"± {name}", math.nan)
    shown = _FORMATTER.format_field(value, digits)
    return f"{shown} ± {spread:{digits}}" if math.isfinite(spread) else shown


def _is_nested(value: Any) -> bool:
    return isinstance(value, (list, tuple, Mapping))


def _make_finite(value: Any) -> Any:
    """The value with None for every float that is NaN or infinite, for which JSON has no token."""
    if isinstance(value, Mapping):
        return {key: _make_finite(held) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [_make_finite(held) for held in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
