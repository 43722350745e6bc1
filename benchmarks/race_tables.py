"""Tables of the race's page."""

from __future__ import annotations

import math
from collections.abc import Iterable


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """Return a Markdown table, its first column to the left."""
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float, digits: int = 0) -> str:
    """Return a number for a table; a dash where there is none."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"
