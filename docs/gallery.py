"""The gallery's pictures: examples are run, and what their pages show of them is kept.

    python docs/gallery.py                # every example whose page shows a picture
    python docs/gallery.py samples        # one

A page shows ``pictures/samples_models.png``, say, which is ``models.png`` of
``examples/samples.py``, in 256 colours, so that the repository stays small.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).resolve().parent
PAGES = DOCS / "gallery"
COLOURS = 256


def shown(name: str) -> list[str]:
    """Return the pictures of an example that its page shows, without the ending."""
    page = (PAGES / f"{name}.md").read_text()
    return re.findall(rf"\(pictures/{name}_(\w+)\.png\)", page)


def main() -> None:
    """Run the examples that are named, or all."""
    names = sys.argv[1:] or [page.stem for page in sorted(PAGES.glob("*.md"))]
    for name in names:
        pictures = shown(name)
        if not pictures:
            continue
        with tempfile.TemporaryDirectory() as folder:
            script = DOCS.parent / "examples" / f"{name}.py"
            subprocess.run([sys.executable, script], cwd=folder, check=True)
            for picture in pictures:
                drawn = Image.open(Path(folder) / "output" / name / f"{picture}.png")
                few = drawn.convert("RGB").quantize(COLOURS)
                few.save(PAGES / "pictures" / f"{name}_{picture}.png", optimize=True)


if __name__ == "__main__":
    main()
