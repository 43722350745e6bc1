"""The README's first example runs as printed, and its figures are the benchmark's."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_first_example_runs_as_printed(capsys):
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "the projected gradient is within its tolerance" in printed
    assert "products=" in printed


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)#]+?)\)", README))
def test_links_lead_somewhere(path):
    assert path.startswith("https://") or (ROOT / path).exists()


def test_examples_and_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", README):
        assert f"\n{target}: " in makefile
    for example in re.findall(r"examples/\w+\.py", README):
        assert (ROOT / example).exists()
