"""The examples in docstrings run, and print what they show."""

import doctest
import importlib
import pkgutil
import re

import pytest
import torch

import hvpopt

#: All but the programs.
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(hvpopt.__path__, "hvpopt.")
    if not module.name.endswith("__main__")
)
#: Entry points whose use is shown where they are documented.
SHOWN = [
    "minimize",
    "HessianOperator",
    "LanczosBasis",
    "smallest_eigenvalue",
    "cg",
    "ModelSpace",
    "TorchObjective",
    "QuasiNewton",
    "StochasticQuasiNewton",
    "TrustRegionNewton",
    "LineSearchNewton",
    "ShiftedNewton",
    "scipy_method",
    "as_scipy",
    "optim.Newton",
    "fwi.Survey",
    "fwi.WaveformMisfit",
    "analysis.check_gradient",
    "analysis.functional_variance",
    "analysis.MaternPrior",
    "analysis.Noise",
    "analysis.trace",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_a_module(name, tmp_path, monkeypatch):
    module = importlib.import_module(name)
    monkeypatch.chdir(tmp_path)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    for test in doctest.DocTestFinder().find(module):
        test.globs = {"hvpopt": hvpopt, "torch": torch, **test.globs}
        runner = doctest.DocTestRunner(verbose=False, optionflags=flags)
        report = []
        assert runner.run(test, out=report.append).failed == 0, "".join(report)


@pytest.mark.parametrize("name", SHOWN)
def test_entry_point_shows_an_example_that_runs(name):
    thing = hvpopt
    for part in name.split("."):
        thing = getattr(thing, part)
    examples = doctest.DocTestParser().get_examples(thing.__doc__)
    assert any(not e.options.get(doctest.SKIP) for e in examples), name


def test_no_sentence_of_a_property_has_a_colon():
    """Sphinx takes what stands before it for a type."""
    found = []
    for name in MODULES:
        for thing in vars(importlib.import_module(name)).values():
            if not isinstance(thing, type) or thing.__module__ != name:
                continue
            for key, value in vars(thing).items():
                first = (getattr(value, "__doc__", None) or "").split("\n")[0]
                plain = re.sub("``.*?``", "", first)
                if isinstance(value, property) and ": " in plain:
                    found.append(f"{name}.{thing.__name__}.{key}: {first}")
    assert not found
