"""The documentation's pages: their code runs as printed, and does what they say."""

import importlib.util
import os
import re
import subprocess
from pathlib import Path

import matplotlib as mpl
import pytest

from hvpopt import analysis, distributed, fwi, plotting

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
spec = importlib.util.spec_from_file_location("pages", DOCS / "pages.py")
assert spec is not None
pages = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pages)

#: What a page compares with, where that is not needed for anything else.
PEERS = {
    "curvlinops.md": "curvlinops",
    "pylops.md": "pylops",
    "pytorch_minimize.md": "torchmin",
    "from_files.md": "segyio",
}
CODE = pages.pages()
EVERY = sorted(DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", CODE, ids=lambda page: page.stem)
def test_code_of_a_page_runs_as_printed(page, tmp_path):
    if page.name in PEERS:
        pytest.importorskip(PEERS[page.name])
    mpl.use("agg")
    before = Path.cwd()
    text = pages.run(page, tmp_path)
    assert Path.cwd() == before
    for picture in tmp_path.glob("*.png"):
        assert f"pictures/{picture.name}" in text
        assert (page.parent / "pictures" / picture.name).exists()
    # what is printed is of the shape that the page shows, if not of its digits
    shown, printed = (skeleton(t) for t in (page.read_text(), text))
    assert printed == shown


def skeleton(text):
    """Return the number of lines that each block prints."""
    blocks = re.findall(r"^```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block.count("\n") for block in blocks]


def test_every_tutorial_is_checked_and_has_what_it_printed():
    for page in CODE:
        text = page.read_text()
        assert "<!-- check: " in text, page
        assert "```text\n```" not in text, page


def test_a_page_whose_statement_is_false_fails(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\n\n<!-- check: x == 2 -->\n")
    with pytest.raises(AssertionError, match=r"page\.md:5: x == 2"):
        pages.run(page, tmp_path)


def test_output_is_replaced_and_unmarked_code_is_not_run(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- not run -->\n```python\n1 / 0\n```\n\n"
        "```python\nprint('new')\n```\n\n```text\nold\n```\n"
    )
    assert pages.run(page, tmp_path) == page.read_text().replace("old", "new")


@pytest.mark.parametrize("page", EVERY, ids=lambda p: str(p.relative_to(DOCS)))
def test_links_and_pictures_of_a_page_exist(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s#]+)[^)]*\)", text):
        assert link.startswith("https://") or (page.parent / link).exists(), link


def test_every_page_is_in_a_table_of_contents():
    listed = set()
    for page in EVERY:
        for block in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(), re.DOTALL):
            names = [n for n in block.split() if not n.startswith(":")]
            listed |= {page.parent / f"{name}.md" for name in names}
    assert set(EVERY) - listed == {DOCS / "index.md"}


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("fwi", fwi.__all__),
        ("analysis", analysis.__all__),
        ("distributed", distributed.__all__),
        (
            "plotting",
            [n for n in vars(plotting) if n.startswith(("plot_", "draw_"))],
        ),
    ],
)
def test_reference_has_every_public_name(page, names):
    text = (DOCS / "reference" / f"{page}.md").read_text()
    assert set(re.findall(r"^   (\w+)$", text, re.MULTILINE)) == set(names)


def test_reference_has_every_public_name_of_the_package():
    import hvpopt

    text = (DOCS / "reference" / "hvpopt.md").read_text()
    elsewhere = {"analysis", "distributed", "fwi", "optim", "__version__"}
    listed = set(re.findall(r"^   (\w+)$", text, re.MULTILINE))
    assert listed == set(hvpopt.__all__) - elsewhere


def test_slurm_script_is_valid_bash(tmp_path):
    text = (DOCS / "tutorials" / "cluster.md").read_text()
    script = tmp_path / "job.sh"
    script.write_text(re.search(r"```bash\n(#!/bin/bash.*?)```", text, re.DOTALL)[1])
    assert os.system(f"bash -n {script}") == 0


# -- the script of a cluster --------------------------------------------------------

#: Stand-ins for SLURM's commands: srun runs what a test writes, scontrol notes its call.
COMMANDS = {
    "srun": "exec bash step.sh",
    "scontrol": 'if [ "$1" = requeue ]; then echo "$2" >> requeued; else echo node1; fi',
}
#: The job's shell gets SLURM's signal, and the step waits for what the shell passes on.
CAUGHT = "kill -TERM $PPID; sleep 2 >pause 2>&1 & wait"


@pytest.mark.parametrize(
    ("step", "status", "again"),
    [
        ("touch run/model.pt", 0, False),
        ("exit 0", 0, True),  # ended by its own clock
        ("exit 1", 1, False),  # failed at once
        # the signal, which the step answers by saving for a while
        (
            "trap 'sleep 0.3; exit 0' TERM; " + CAUGHT,
            0,
            True,
        ),
        (
            "trap 'touch run/model.pt; exit 0' TERM; " + CAUGHT,
            0,
            False,
        ),
        (
            "trap 'sleep 0.3; exit 1' TERM; " + CAUGHT,
            1,
            True,
        ),
    ],
)
def test_job_is_requeued_only_where_it_was_cut_short(step, status, again, tmp_path):
    text = (DOCS / "tutorials" / "cluster.md").read_text()
    (script,) = re.findall(r"^```bash\n(#!/bin/bash\n.*?)^```$", text, re.M | re.S)
    (tmp_path / "run").mkdir()
    (tmp_path / "step.sh").write_text(step)
    (tmp_path / "job.sh").write_text(script)
    for name, body in COMMANDS.items():
        command = tmp_path / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text(f"#!/bin/bash\n{body}\n")
        command.chmod(0o755)
    job = subprocess.run(
        ["bash", "job.sh"],
        cwd=tmp_path,
        env={
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "17",
            "SLURM_NNODES": "1",
            "SLURM_JOB_NODELIST": "node1",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert job.returncode == status, job.stderr
    assert (tmp_path / "requeued").exists() == again
    assert job.stderr == ""
