"""``python -m hvpopt``, and the one place of the version."""

import re
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import scipy
import torch

import hvpopt
from hvpopt import __main__ as main

ROOT = Path(__file__).parents[1]


def test_the_version_stands_in_one_place():
    assert re.fullmatch(r"\d+\.\d+\.\d+", hvpopt.__version__)
    names = ("pyproject.toml", "CITATION.cff", "README.md", "hvpopt/__init__.py")
    for name in names:
        assert f'"{hvpopt.__version__}"' not in (ROOT / name).read_text(), name
    assert 'attr = "hvpopt._version.__version__"' in (ROOT / "pyproject.toml").read_text()


def test_a_report_has_what_a_bug_needs(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = main.report()
    assert found["hvpopt"] == hvpopt.__version__
    assert found["torch"] == torch.__version__
    assert found["numpy"] == numpy.__version__
    assert found["scipy"] == scipy.__version__
    assert found["python"] == sys.version.split()[0]
    assert found["devices"].startswith("cpu")
    assert found["devices"].count("cuda:") == torch.cuda.device_count()
    assert found["threads"].startswith(f"{torch.get_num_threads()} of ")
    assert found["threads"].endswith("OMP_NUM_THREADS=3")
    assert {"deepwave", "safetensors", "platform", "segyio"} <= set(found)


def test_a_library_that_is_missing_is_said_to_be(monkeypatch):
    monkeypatch.setattr(main, "OPTIONAL", ("no-such-library-of-hvpopt",))
    assert main.report()["no-such-library-of-hvpopt"] == "not installed"


def test_it_is_printed():
    run = [sys.executable, "-m", "hvpopt"]
    shown = subprocess.run(run, capture_output=True, text=True, check=True, cwd=ROOT)
    assert shown.stdout.startswith(f"hvpopt       {hvpopt.__version__}\ntorch ")
    assert shown.stderr == ""


def test_it_takes_no_arguments(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["hvpopt", "file.sgy"])
    with pytest.raises(SystemExit):
        main.main()
    assert "unrecognized arguments: file.sgy" in capsys.readouterr().err
