"""The rules of the house: which module may import which."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hvpopt"
#: Data flows to the right; a module imports only what stands to the left of it.
ORDER = (
    "scale",
    "counts",
    "holding",
    "second_order",
    "checks",
    "models",
    "copies",
    "space",
    "operators",
    "hessian",
    "processes",
    "objective",
    "torch_objective",
    "dense",
    "krylov",
    "newton",
    "result",
    "restart",
    "history",
    "limits",
    "recorder",
    "loop",
    "minimize",
    "scipy_bridge",
    "interop",
    "optim",
)
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
    """Return a module's place in the order, or None where it has none."""
    layer = module.split(".")[1] if "." in module else ""
    return ORDER.index(layer) if layer in ORDER else None


def violations(module, names):
    """Return a sentence for each rule that a module's imports break."""
    found = [
        f"{module} imports {name}: only {owner} may"
        for library, owner in OWNERS.items()
        for name in names
        if within(name, library) and not within(module, owner)
    ]
    own = sorted(name for name in names if within(name, "hvpopt"))
    if rank(module) is not None:
        for name in own:
            place = rank(name)
            same = name.split(".")[:2] == module.split(".")[:2]
            if not same and (place is None or place >= rank(module)):
                found.append(f"{module} imports {name}, which is not to its left")
    if within(module, "hvpopt.krylov") or within(module, "hvpopt.newton"):
        found += [
            f"{module} uses {name}: it knows operators and vectors alone"
            for name in names
            if any(
                within(name, barred)
                for barred in ("torch.autograd", "hvpopt.fwi", "hvpopt.hessian")
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


def test_every_module_that_the_order_names_was_looked_at():
    assert {"counts", "space", "krylov", "minimize"} <= {
        module_of(path).split(".")[1] for path in SOURCES
    }


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("hvpopt.objective", "import deepwave"),
        ("hvpopt.minimize", "def f():\n    from deepwave import scalar"),
        ("hvpopt.analysis.spectrum", "import matplotlib.pyplot as plt"),
        ("hvpopt.fwi.misfit", "import torch.distributed as dist"),
        ("hvpopt.fwi.misfit", "from torch import distributed"),
        ("hvpopt.objective", "import torch\ntorch.distributed.barrier()"),
        ("hvpopt.krylov.cg", "import torch\ntorch.autograd.grad(1, 2)"),
        ("hvpopt.newton.shifted", "from torch.autograd import grad"),
        ("hvpopt.newton.shifted", "from hvpopt.hessian import HessianOperator"),
        ("hvpopt.krylov.cg", "from hvpopt import fwi"),
        ("hvpopt.krylov.cg", "from hvpopt.newton.method import Step"),
        ("hvpopt.krylov.cg", "from ..newton import method"),
        ("hvpopt.space", "from .objective import Objective"),
        ("hvpopt.counts", "import hvpopt.space"),
        ("hvpopt.objective", "from hvpopt import HessianOperator"),
        ("hvpopt.hessian", "from hvpopt.objective import Objective"),
        ("hvpopt.dense", "from hvpopt.analysis.checks import check_hessian"),
        ("hvpopt.analysis.checks", "from hvpopt.fwi.survey import Survey"),
        ("hvpopt.minimize", "from hvpopt.plotting import plot"),
    ],
)
def test_broken_rule_is_found(module, source):
    assert violations(module, imports(source, module))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("hvpopt.fwi.survey", "import deepwave"),
        ("hvpopt.plotting", "import matplotlib.pyplot as plt"),
        ("hvpopt.distributed", "import torch.distributed as dist"),
        ("hvpopt.krylov.cg", "from hvpopt.krylov.preconditioner import Preconditioner"),
        ("hvpopt.krylov.cg", "from .preconditioner import Preconditioner"),
        ("hvpopt.minimize", "from hvpopt.newton.method import Step"),
        ("hvpopt.analysis.checks", "from hvpopt.minimize import minimize"),
        ("hvpopt.hessian", "import torch\ntorch.autograd.grad(1, 2)"),
        (
            "hvpopt.operators",
            "from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    from hvpopt.minimize import minimize",
        ),
    ],
)
def test_allowed_import_passes(module, source):
    assert violations(module, imports(source, module)) == []


def test_import_at_run_time_beside_a_type_checkers_is_found():
    source = (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import hvpopt.space\nelse:\n    import hvpopt.minimize"
    )
    assert imports(source, "hvpopt.counts") == {"typing.TYPE_CHECKING", "hvpopt.minimize"}
