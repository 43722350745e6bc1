"""Which Hessian a method's steps take: exact, Gauss-Newton, or one after the other.

Far from a minimum the Gauss-Newton matrix is the safer model, since it is never
indefinite; near one the exact Hessian converges faster (Métivier, Brossier, Virieux and
Operto, SIAM J. Sci. Comput. 35, 2013, compare the two on waveforms).
"""

from __future__ import annotations

from dataclasses import dataclass

from hvpopt import checks
from hvpopt.methods.points import Point
from hvpopt.problem.objective import Kind, check_kind


@dataclass(frozen=True)
class GaussNewtonFirst:
    """Gauss-Newton until the objective has fallen enough, the exact Hessian from then on.

    Args:
        until: Fraction of the first value at which the exact Hessian takes over. Default
            0.1.

    Raises:
        TypeError: If ``until`` is no number.
        ValueError: If ``until`` is not in (0, 1).
    """

    until: float = 0.1

    def __post_init__(self) -> None:
        until = checks.number("until", self.until, above=0.0, below=1.0)
        checks.put(self, until=until)


Curvature = Kind | GaussNewtonFirst


@dataclass(frozen=True)
class CurvatureState:
    """What a choice of curvature goes by.

    Attributes:
        first: The objective at the first point; None before the first step.
        latest: The objective at the newest point.
    """

    first: float | None = None
    latest: float | None = None

    def after(self, before: Point, after: Point) -> CurvatureState:
        """Return the state once a step has been taken."""
        first = before.value if self.first is None else self.first
        return CurvatureState(first, after.value)


def check_curvature(choice: Curvature) -> Curvature:
    """Return a choice of curvature, or raise TypeError or ValueError if it is none."""
    given: object = choice
    if given is GaussNewtonFirst:
        raise TypeError("hessian is the class GaussNewtonFirst; pass GaussNewtonFirst()")
    if not isinstance(choice, GaussNewtonFirst):
        check_kind(choice)
    return choice


def kind_of(choice: Curvature, state: CurvatureState) -> Kind:
    """Return which Hessian the next point is to carry."""
    if not isinstance(choice, GaussNewtonFirst):
        return choice
    if state.first is None or state.latest is None:
        return "gauss-newton"
    return "exact" if state.latest <= choice.until * state.first else "gauss-newton"
