"""The code of the documentation's pages: run, and what it prints written back.

    python docs/pages.py                          # all pages
    python docs/pages.py docs/tutorials/sampled.md

Blocks fenced as ``python`` are one script for each page. A ``text`` block that follows
one holds what it printed, and ``pictures/`` beside the page the figures that it saved:
both are rewritten. Two comments are seen by this script alone:

    <!-- not run -->          the next block is for another place, such as a cluster
    <!-- check: expression --> must be true there
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
PART = re.compile(
    r"^(?P<skip><!-- not run -->\n)?```python\n(?P<code>.*?)^```\n"
    r"(?P<printed>\n```text\n.*?^```\n)?"
    r"|^<!-- check: (?P<check>.*?) -->$",
    re.MULTILINE | re.DOTALL,
)


def pages() -> list[Path]:
    """Return the pages with code to run."""
    found = [DOCS / "index.md", DOCS / "choosing.md"]
    for folder in ("tutorials", "coming_from"):
        found += sorted((DOCS / folder).glob("*.md"))
    return [page for page in found if "```python\n" in page.read_text()]


def run(page: Path, folder: Path) -> str:
    """Run a page's code in a folder; return the page with what was printed.

    Args:
        page: A Markdown file.
        folder: Where files are read and written while it runs.

    Returns:
        The text of the page.

    Raises:
        AssertionError: If a check of the page fails.
    """
    text = page.read_text()
    names: dict[str, Any] = {"__name__": "__main__"}

    def execute(part: re.Match[str]) -> str:
        line = text.count("\n", 0, part.start("code" if part["code"] else "check"))
        if part["check"]:
            code = compile("\n" * line + part["check"], page, "eval")
            assert eval(code, names), f"{page}:{line + 1}: {part['check']}"
            return part[0]
        if part["skip"]:
            return part[0]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * line + part["code"], page, "exec"), names)
        if not part["printed"]:
            return part[0]
        block = f"\n```text\n{printed.getvalue().strip()}\n```\n"
        return part[0].removesuffix(part["printed"]) + block

    before = Path.cwd()
    os.chdir(folder)
    try:
        return PART.sub(execute, text)
    finally:
        os.chdir(before)


def main() -> None:
    """Run the pages that are named, or all, and rewrite what they print and show."""
    import torch

    torch.set_num_threads(1)  # on grids this small a second thread mostly waits
    for page in [Path(name).resolve() for name in sys.argv[1:]] or pages():
        with tempfile.TemporaryDirectory() as folder:
            page.write_text(run(page, Path(folder)))
            for picture in Path(folder).glob("*.png"):
                target = page.parent / "pictures" / picture.name
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(picture, target)
        print(page.relative_to(DOCS.parent))


if __name__ == "__main__":
    main()
