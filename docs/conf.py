"""Sphinx configuration: MyST pages, API reference from docstrings."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))
project = "hvpopt"
author = "the hvpopt authors"
copyright = author
version = release = importlib.metadata.version("hvpopt")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "**/pictures"]
html_theme = "furo"
html_title = f"hvpopt {release}"
html_theme_options = {
    "source_repository": "",
    "navigation_with_keys": True,
}
pygments_style = "friendly"
highlight_language = "default"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

nitpicky = True
# Types in signatures that have no page here: those of other projects (the documentation
# is built without a network, hence without their inventories), aliases, and what is
# internal. Links in the text are checked.
nitpick_ignore_regex = [
    ("py:.*", r"(abc|collections|deepwave|enum|matplotlib|np|npt|numpy|os|pylops)\..*"),
    ("py:.*", r"(contextlib|pathlib|scipy|torch|tqdm|typing|optional|array_like)(\..*)?"),
    ("py:.*", r"_?[A-Z]\w*"),
    ("py:.*", r"hvpopt\.\w+(\.\w+)*\._?[A-Z]\w*"),
    ("py:class", r"[a-z_]+"),  # of "lower, upper: ..." in a list of attributes
]

PUBLIC = (
    "hvpopt",
    "hvpopt.fwi",
    "hvpopt.analysis",
    "hvpopt.distributed",
    "hvpopt.optim",
)


def public_names() -> dict[str, str]:
    """Return the public name of each public class and function, by its last part."""
    names: dict[str, str] = {}
    for module in reversed(PUBLIC):
        for name in importlib.import_module(module).__all__:
            names[name] = f"{module}.{name}"
    return names


def resolve(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Link a type that a signature names by where it is defined, or by its last part."""
    if node.get("refdomain") != "py":
        return None
    target = app.names.get(node["reftarget"].rsplit(".", 1)[-1])
    if target is None or target == node["reftarget"]:
        return None
    domain = env.get_domain("py")
    return domain.resolve_xref(
        env, node["refdoc"], app.builder, "obj", target, node, content
    )


def rewrite_links(_: Any, docname: str, source: list[str]) -> None:
    """Let links to files that are pages here lead to the pages."""
    up = "../" * docname.count("/")
    for name in ("RACE", "RESULTS", "SPECTRUM", "GPU"):
        page = f"{up}benchmarks/{name.lower()}.md"
        source[0] = source[0].replace(f"](../benchmarks/{name}.md)", f"]({page})")


def show_blocks(*given: Any) -> None:
    """Show what a docstring indents after an empty line, formulas and code, as it is."""
    lines: list[str] = given[-1]
    shown: list[str] = []
    before, block = 0, False
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if line.strip():
            if block := block and indent > before:
                shown.append(line)
                continue
            begins = bool(shown) and not shown[-1].strip() and indent > before
            if begins and not line.lstrip().startswith(">>>"):
                shown += [" " * before + "::", ""]
                block = True
            else:
                before = indent
        shown.append(line)
    lines[:] = shown


def setup(app: Any) -> None:
    """Connect what this file adds to Sphinx."""
    app.names = public_names()
    app.connect("missing-reference", resolve)
    app.connect("source-read", rewrite_links)
    app.connect("autodoc-process-docstring", show_blocks, priority=400)  # before napoleon
