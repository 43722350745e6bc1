"""Who runs: hvpopt's methods and their peers, by name; and one run of one of them."""

from __future__ import annotations

import datetime
import platform
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import deepwave
import race_peers as peers
import scipy
import torch
from race_cost import BudgetSpent, Prices, Trace
from race_peers import ENDLESS, FlatFunction
from race_setup import Problem

import hvpopt
from hvpopt.fwi.hessian.memory import PeakMemory

Run = Callable[[FlatFunction, Trace], str]

#: Where methods that take hundreds of products a step, or every column, are entered.
SMALL = ("published", "camembert")


@dataclass(frozen=True)
class Entrant:
    """One method of the race.

    Attributes:
        name: In tables; files are named after it.
        run: Minimises, and returns a message if it ends before its budget.
        ours: True for hvpopt's own.
        problems: Where it is entered; None for everywhere.
        needs: The class of hvpopt that it runs; skipped where hvpopt lacks it.
        limited: False for a run that is to end by itself.
        note: What a reader of the table should know.
    """

    name: str
    run: Run
    ours: bool = False
    problems: tuple[str, ...] | None = None
    needs: str | None = None
    limited: bool = True
    note: str = ""

    @property
    def missing(self) -> bool:
        """True if this hvpopt has no such method."""
        return self.needs is not None and not hasattr(hvpopt, self.needs)

    @property
    def slug(self) -> str:
        """The name as a file's."""
        kept = "".join(c if c.isalnum() or c in ".-" else " " for c in self.name)
        return "-".join(kept.lower().split())


def _hvpopt(needs: str | None, **options: Any) -> Run:
    """Return a run of hvpopt's minimize, with a method or its default."""

    def run(function: FlatFunction, _trace: Trace) -> str:
        problem = function.problem
        method = {} if needs is None else {"method": getattr(hvpopt, needs)(**options)}
        result = hvpopt.minimize(
            problem.misfit,
            problem.start,
            scale=problem.scale,
            mask=problem.mask,
            lower=problem.lower,
            upper=problem.upper,
            max_iter=ENDLESS,
            gtol=0.0,
            **method,
        )
        return result.message

    return run


def _own(
    needs: str,
    problems: tuple[str, ...] | None = None,
    **options: Any,
) -> Entrant:
    arguments = ", ".join(f"{key}={value!r}" for key, value in options.items())
    return Entrant(
        f"{needs}({arguments})",
        _hvpopt(needs, **options),
        ours=True,
        problems=problems,
        needs=needs,
    )


def _peer(name: str, run: Callable[[FlatFunction], str], **more: Any) -> Entrant:
    return Entrant(name, lambda function, _trace: run(function), **more)


REFERENCE = "scipy L-BFGS-B"
DEFAULT = "hvpopt.minimize, default"
#: Learning rates of Adam, in units of a problem's scale.
ADAM_RATES = (0.03, 0.1, 0.3)
ADAM = "torch Adam, rate "
UNBOUNDED = "no bounds"

ENTRANTS: tuple[Entrant, ...] = (
    Entrant(DEFAULT, _hvpopt(None), ours=True),
    _own("QuasiNewton", memory=20),
    _own("LineSearchNewton"),
    _own("LineSearchNewton", hessian="gauss-newton"),
    _own("LineSearchNewton", hessian="gauss-newton", memory=20, max_products=3),
    _own("TrustRegionNewton"),
    _own("TrustRegionNewton", hessian="gauss-newton"),
    _own("ShiftedNewton", SMALL),
    _peer(REFERENCE, peers.lbfgsb),
    _peer("torch LBFGS", peers.torch_lbfgs, note=UNBOUNDED),
    *(
        _peer(f"{ADAM}{rate:g}", peers.adam(rate), note="projected onto the bounds")
        for rate in ADAM_RATES
    ),
    _peer("scipy Newton-CG", peers.scipy_newton_cg, note=UNBOUNDED),
    _peer("scipy trust-ncg", peers.scipy_trust_region("trust-ncg"), note=UNBOUNDED),
    _peer("scipy trust-krylov", peers.scipy_trust_region("trust-krylov"), note=UNBOUNDED),
    _peer(
        "pytorch-minimize newton-cg", peers.pytorch_minimize("newton-cg"), note=UNBOUNDED
    ),
    _peer(
        "pytorch-minimize trust-ncg", peers.pytorch_minimize("trust-ncg"), note=UNBOUNDED
    ),
    _peer(
        "pytorch-minimize newton-exact",
        peers.pytorch_minimize_exact,
        problems=("published",),
    ),
    Entrant(
        "dense script, published",
        peers.published_dense,
        problems=("published",),
        limited=False,
        note="three steps, no budget",
    ),
    _peer("torch.func.grad", peers.torch_func, problems=("published",)),
    _peer("torch.func.hessian", peers.torch_func_hessian, problems=("published",)),
)


def entered(problem: str) -> list[Entrant]:
    """Return the methods entered on a problem that this hvpopt has."""
    return [
        entrant
        for entrant in ENTRANTS
        if not entrant.missing
        and (entrant.problems is None or problem in entrant.problems)
    ]


def find(name: str) -> Entrant:
    """Return a method by its name.

    Raises:
        ValueError: If there is none.
    """
    for entrant in ENTRANTS:
        if entrant.name == name:
            return entrant
    known = "; ".join(entrant.name for entrant in ENTRANTS)
    raise ValueError(f"there is no method {name!r}; there are: {known}")


def race(entrant: Entrant, problem: Problem, prices: Prices, budget: float) -> Any:
    """Run one method on one problem and return what became of it, for JSON.

    Args:
        entrant: The method.
        problem: To minimise; its misfit counts for this run alone from now on.
        prices: Of the problem.
        budget: In gradients.
    """
    first = problem.misfit.value(problem.start)
    function = FlatFunction(problem, first)
    limit = budget if entrant.limited else float("inf")
    with PeakMemory() as peak, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trace = Trace(problem.misfit, problem.model_error, prices, limit, first)
        try:
            ended, message = "finished", entrant.run(function, trace)
        except BudgetSpent:
            ended, message = "budget", ""
        except Exception as error:  # a method's failure is a result of the race
            ended, message = "failed", f"{type(error).__name__}: {error}"
        seconds = trace.seconds
    return {
        "problem": problem.name,
        "method": entrant.name,
        "ours": entrant.ours,
        "note": entrant.note,
        "budget": budget,
        "ended": ended,
        "message": message[:500],
        "cost": round(trace.meter.cost, 3),
        "seconds": round(seconds, 2),
        "peak_bytes": peak.bytes,
        "refused": function.refused,
        "counts": trace.meter.as_dict(),
        "columns": ["cost", "seconds", "misfit", "error"],
        "trace": [improvement.as_row() for improvement in trace.improvements],
        "environment": environment(),
    }


def environment() -> dict[str, str]:
    """Return what a run was made with."""
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {platform.system()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "deepwave": deepwave.__version__,
        "scipy": scipy.__version__,
        "threads": str(torch.get_num_threads()),
    }
