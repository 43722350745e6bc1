"""The rules of the house: which module may import which."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hvpopt"
#: Data flows to the right; a module imports only what stands to the left of it. Every
#: package has its place, and the packages of ``fwi`` theirs within it.
ORDER = (
    "_version",
    "errors",
    "checks",
    "model",
    "operators",
    "problem",
    "krylov",
    "methods",
    "run",
    "analysis",
    "fwi",
    "distributed",
    "optim",
    "interop",
    "plotting",
    "__main__",
)
WITHIN_FWI = ("survey", "maps", "data", "io", "hessian", "misfit")
#: The only place that may import each of these.
OWNERS = {
    "deepwave": "hvpopt.fwi",
    "matplotlib": "hvpopt.plotting",
    "pylops": "hvpopt.interop.pylops",
    "torch.optim": "hvpopt.optim",
    "torch.distributed": "hvpopt.distributed",
}


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def runtime_nodes(tree):
    """Yield every node that runs: also in functions, not for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if is_type_checking(node):
            for branch in node.orelse:
                yield branch
                yield from runtime_nodes(branch)
            continue
        yield node
        yield from runtime_nodes(node)


def dotted(node):
    """Return ``a.b.c`` of an attribute chain, else the empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (head := dotted(node.value)):
        return f"{head}.{node.attr}"
    return ""


def imports(source, module, *, is_package=False):
    """Return the dotted names that a module imports, or reaches through ``torch.``."""
    names = set()
    parts = module.split(".")
    for node in runtime_nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = node.level - is_package
            base = parts[: len(parts) - up] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{prefix}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and dotted(node).startswith("torch."):
            names.add(dotted(node))
    return names


def within(name, package):
    return name == package or name.startswith(package + ".")


def rank(module):
    """Return a module's place in the order: of its package, and within ``fwi``."""
    layers = [*module.split("."), "", ""]
    place = ORDER.index(layers[1]) if layers[1] in ORDER else None
    if place is None or layers[1] != "fwi":
        return None if place is None else (place, 0)
    # what the package itself offers stands to the right of what it gathers
    inner = layers[2]
    known = inner in WITHIN_FWI
    return place, WITHIN_FWI.index(inner) if known else len(WITHIN_FWI)


def violations(module, names):
    """Return a sentence for each rule that a module's imports break."""
    found = [
        f"{module} imports {name}: only {owner} may"
        for library, owner in OWNERS.items()
        for name in names
        if within(name, library) and not within(module, owner)
    ]
    own = sorted(name for name in names if within(name, "hvpopt"))
    if rank(module) is None:
        found.append(f"{module} has no place in the order")
    for name in own if rank(module) is not None else []:
        place = rank(name)
        if place is None or place > rank(module):
            found.append(f"{module} imports {name}, which is not to its left")
    if within(module, "hvpopt.krylov") or within(module, "hvpopt.methods"):
        found += [
            f"{module} uses {name}: it knows operators and vectors alone"
            for name in names
            if any(
                within(name, barred)
                for barred in (
                    "torch.autograd",
                    "hvpopt.fwi",
                    "hvpopt.operators.autograd",
                )
            )
        ]
    if within(module, "hvpopt.analysis"):
        found += [
            f"{module} imports {name}: analysis knows no waves and no pictures"
            for name in own
            if within(name, "hvpopt.fwi") or within(name, "hvpopt.plotting")
        ]
    return found


def module_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_module_keeps_the_rules(path):
    module = module_of(path)
    names = imports(path.read_text(), module, is_package=path.name == "__init__.py")
    assert violations(module, names) == []


def test_every_package_has_its_place():
    packages = {path.name for path in PACKAGE.iterdir() if path.suffix != ".typed"}
    assert {Path(name).stem for name in packages} - {"__init__", "__pycache__"} == {
        *ORDER
    }
    inner = {path.name for path in (PACKAGE / "fwi").iterdir() if path.is_dir()}
    assert inner - {"__pycache__"} == {*WITHIN_FWI}


def test_no_two_files_have_one_name():
    names = [path.name for path in SOURCES if not path.name.startswith("__")]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("hvpopt.problem.objective", "import deepwave"),
        ("hvpopt.run.minimize", "def f():\n    from deepwave import scalar"),
        ("hvpopt.analysis.spectrum", "import matplotlib.pyplot as plt"),
        ("hvpopt.fwi.misfit.waveform_misfit", "import torch.distributed as dist"),
        ("hvpopt.fwi.misfit.waveform_misfit", "from torch import distributed"),
        ("hvpopt.problem.objective", "import torch\ntorch.distributed.barrier()"),
        ("hvpopt.krylov.cg", "import torch\ntorch.autograd.grad(1, 2)"),
        ("hvpopt.methods.shifted", "from torch.autograd import grad"),
        (
            "hvpopt.methods.shifted",
            "from hvpopt.operators.autograd import HessianOperator",
        ),
        ("hvpopt.krylov.cg", "from hvpopt import fwi"),
        ("hvpopt.krylov.cg", "from hvpopt.methods.method import Step"),
        ("hvpopt.krylov.cg", "from ..newton import method"),
        ("hvpopt.model.space", "from ..problem.objective import Objective"),
        ("hvpopt.model.counts", "import hvpopt.operators.dense"),
        ("hvpopt.problem.objective", "from hvpopt import HessianOperator"),
        ("hvpopt.operators.autograd", "from hvpopt.problem.objective import Objective"),
        (
            "hvpopt.operators.dense",
            "from hvpopt.analysis.derivatives import check_hessian",
        ),
        ("hvpopt.analysis.derivatives", "from hvpopt.fwi.survey.survey import Survey"),
        ("hvpopt.run.minimize", "from hvpopt.plotting import plot"),
    ],
)
def test_broken_rule_is_found(module, source):
    assert violations(module, imports(source, module))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("hvpopt.fwi.survey.survey", "import deepwave"),
        ("hvpopt.plotting", "import matplotlib.pyplot as plt"),
        ("hvpopt.distributed", "import torch.distributed as dist"),
        ("hvpopt.krylov.cg", "from hvpopt.krylov.preconditioner import Preconditioner"),
        ("hvpopt.krylov.cg", "from .preconditioner import Preconditioner"),
        ("hvpopt.run.minimize", "from hvpopt.methods.method import Step"),
        ("hvpopt.analysis.derivatives", "from hvpopt.run.minimize import minimize"),
        ("hvpopt.operators.autograd", "import torch\ntorch.autograd.grad(1, 2)"),
        (
            "hvpopt.operators.symmetric",
            "from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    from hvpopt.run.minimize import minimize",
        ),
    ],
)
def test_allowed_import_passes(module, source):
    assert violations(module, imports(source, module)) == []


def test_import_at_run_time_beside_a_type_checkers_is_found():
    source = (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import hvpopt.model.space\n"
        "else:\n    import hvpopt.run.minimize"
    )
    assert imports(source, "hvpopt.model.counts") == {
        "typing.TYPE_CHECKING",
        "hvpopt.run.minimize",
    }
