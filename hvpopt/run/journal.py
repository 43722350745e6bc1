"""The journal of a step: what it has evaluated so far, so that none is evaluated twice.

A method is a deterministic function of its state and of the values, gradients and
products that it is given. Giving it the same ones again, read from a file, brings it to
where it was, whatever it was building: a Lanczos basis, conjugate gradients, a sketch, a
line search. That costs vector arithmetic, and no evaluation. Every question is kept with
a hash of its vector, so that an answer is never given to another question.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from hvpopt.model.counts import Counts
from hvpopt.model.space import ModelSpace
from hvpopt.model.tensors import Model, named_tensors, rebuild
from hvpopt.operators.symmetric import SymmetricOperator
from hvpopt.problem.objective import Kind, Linearisation, Objective
from hvpopt.problem.processes import Processes
from hvpopt.run.fingerprint import hash_model, hash_tensor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Event:
    """One evaluation.

    Attributes:
        question: What was evaluated, and a hash of where.
        value: Of the objective; None for products.
        tensors: A product, or the gradient of each parameter.
        parts: Value of each named part of a sum.
        counts: What it cost.
    """

    question: str
    value: float | None = None
    tensors: tuple[Tensor, ...] = ()
    parts: dict[str, float] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)


class Journal:
    """The events of the step under way, and those still to be replayed.

    Args:
        recording: Keep events at all. Default True.
        after: Called after each evaluation that was really made.
        keeps: Says after an evaluation whether it is of the sum that the step began
            with; one that has lost a shot is not to be answered with. Default always.

    Attributes:
        events: Of this step, oldest first, replayed ones included.
        repeated: Cost of what had to be done again beside the journal while it was
            replayed: graphs for products that it answers itself.
    """

    def __init__(
        self,
        *,
        recording: bool = True,
        after: Callable[[], None] | None = None,
        keeps: Callable[[], bool] = lambda: True,
    ) -> None:
        self.recording = recording
        self.events: list[Event] = []
        self.repeated = Counts()
        self._waiting: list[Event] = []
        self._after, self._keeps = after, keeps

    @property
    def replaying(self) -> bool:
        """True while there are events to replay."""
        return bool(self._waiting)

    def replay(self, events: tuple[Event, ...]) -> None:
        """Answer the next questions from these events."""
        self._waiting = list(events)

    def known(self) -> list[Event]:
        """Return all events of the step: those met and those still to be replayed."""
        return [*self.events, *self._waiting]

    def clear(self) -> None:
        """Begin a new step."""
        self.events, self._waiting = [], []

    def answer(
        self,
        question: Callable[[], str],
        counts: Counts,
        make: Callable[[], Event],
        *,
        whole: Counts | None = None,
    ) -> Event:
        """Return an event, replayed if the journal knows it and made if not.

        Args:
            question: Tells what is evaluated; asked only where that matters.
            counts: The tally of what is evaluated, by this run alone.
            make: Evaluates.
            whole: The tally that is told what a replayed event has cost. Default the
                same.
        """
        asked = question() if self.recording or self._waiting else ""
        if self._waiting and self._waiting[0].question == asked:
            event = self._waiting.pop(0)
            (counts if whole is None else whole).tally(**event.counts.as_dict())
            if self.recording:
                self.events.append(event)
            return event
        before = counts.snapshot()
        # what fails or is not finite was no event then either, and is none now
        event = make()
        if _finite(event):
            self._give_up_waiting()
        if self.recording and _finite(event) and self._keeps():
            spent = counts.snapshot() - before
            event = replace(event, question=asked, counts=spent)
            self.events.append(event)
        if self._after is not None:
            self._after()
        return event

    def _give_up_waiting(self) -> None:
        if self._waiting:
            logger.warning(
                "the step that was interrupted takes another way than before (other "
                "rounding on this machine, or a loss that changes): its last %d "
                "evaluations are made again",
                len(self._waiting),
            )
        self._waiting = []

    def build(self, counts: Counts, make: Callable[[], Any]) -> Any:
        """Return what is no event, such as an operator, and note it if it is made again.

        Args:
            counts: The tally of what is made.
            make: Makes it.
        """
        before = counts.snapshot()
        made = make()
        if self._waiting:
            self.repeated = self.repeated + (counts.snapshot() - before)
        return made


class JournalOperator(SymmetricOperator):
    """An operator whose products a journal keeps.

    Args:
        operator: To watch.
        journal: Keeps its products.
        label: What the products are called.
    """

    def __init__(self, operator: SymmetricOperator, journal: Journal, label: str) -> None:
        super().__init__(
            operator.size,
            dtype=operator.dtype,
            device=operator.device,
            space=operator.space,
            counts=operator.counts,
            noise=operator.noise,
        )
        self.operator = operator
        self.cost = operator.cost
        self._journal, self._label = journal, label

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "operator":
            raise AttributeError(name)
        return getattr(self.operator, name)

    def matvec(self, vector: Tensor) -> Tensor:
        """Return the product with a flat vector ``[n]``."""
        return self._asked(vector, self.operator.matvec)

    def matmat(self, block: Tensor) -> Tensor:
        """Return the products with the columns of a block ``[n, k]``."""
        return self._asked(block, self.operator.matmat)

    def _product(self, vector: Tensor) -> Tensor:
        return self.matvec(vector)

    def close(self) -> None:
        """Close the operator."""
        self.operator.close()

    def _asked(self, rhs: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
        event = self._journal.answer(
            lambda: f"{self._label} {hash_tensor(rhs)}",
            self.counts,
            lambda: Event("", tensors=(product(rhs),)),
        )
        # a method may overwrite what it is given, and the journal's must stay
        return event.tensors[0].clone() if self._journal.recording else event.tensors[0]


class JournalObjective(Objective):
    """An objective whose evaluations a journal keeps.

    Args:
        objective: To watch.
        journal: Keeps what is evaluated.
        counts: What the run spends of the objective, told apart from what others do (see
            ``metered``). Default the objective's own.
    """

    def __init__(
        self, objective: Objective, journal: Journal, counts: Counts | None = None
    ) -> None:
        super().__init__(objective.name)
        self.objective = objective
        self.journal = journal
        self.counts = objective.counts if counts is None else counts

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "objective":
            raise AttributeError(name)
        return getattr(self.objective, name)

    @property
    def has_gauss_newton(self) -> bool:
        """As the objective's."""
        return self.objective.has_gauss_newton

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """Return the objective as a differentiable scalar; not kept."""
        return self.objective(*args, **kwargs)

    def parts(self, model: Model) -> dict[str, float]:
        """Return the value of each named part; not kept."""
        return self.objective.parts(model)

    def value(self, model: Model) -> float:
        """Return the objective, building no graph."""
        event = self.journal.answer(
            lambda: f"value {hash_model(model)}",
            self.counts,
            lambda: Event("", self.objective.value(model)),
            whole=self.objective.counts,
        )
        assert event.value is not None
        return event.value

    def value_and_gradient(self, model: Model) -> tuple[float, Model]:
        """Return the objective and its gradient, shaped like the model."""
        found = self.linearise(model, None)
        return found.value, found.gradient

    def hessian(
        self, model: Model, kind: Kind = "exact", *, space: ModelSpace | None = None
    ) -> SymmetricOperator:
        """Return the Hessian; its products are kept."""
        operator = self.journal.build(
            self.counts, lambda: self.objective.hessian(model, kind, space=space)
        )
        return JournalOperator(operator, self.journal, f"product {kind}")

    def sketch(
        self,
        model: Model,
        kind: Kind = "gauss-newton",
        *,
        space: ModelSpace | None = None,
        seed: int = 0,
    ) -> SymmetricOperator:
        """Return the objective's sketch; its products are kept."""
        operator = self.journal.build(
            self.counts,
            lambda: self.objective.sketch(model, kind, space=space, seed=seed),
        )
        return JournalOperator(operator, self.journal, f"sketch {kind} {seed}")

    def linearise(
        self,
        model: Model,
        kind: Kind | None = "exact",
        *,
        space: ModelSpace | None = None,
    ) -> Linearisation:
        """Return value, gradient and Hessian; kept where there is no Hessian."""
        if kind is not None:
            lin = self.journal.build(
                self.counts, lambda: self.objective.linearise(model, kind, space=space)
            )
            hessian = JournalOperator(lin.hessian, self.journal, f"product {kind}")
            return Linearisation(lin.value, lin.gradient, hessian, lin.parts)

        def make() -> Event:
            lin = self.objective.linearise(model, None, space=space)
            gradient = tuple(named_tensors(lin.gradient).values())
            return Event("", lin.value, gradient, dict(lin.parts))

        event = self.journal.answer(
            lambda: f"gradient {hash_model(model)}",
            self.counts,
            make,
            whole=self.objective.counts,
        )
        assert event.value is not None
        gradient = rebuild(model, [torch.clone(t) for t in event.tensors])
        return Linearisation(event.value, gradient, None, dict(event.parts))

    @property
    def processes(self) -> Processes:
        """As the objective's."""
        return self.objective.processes

    @property
    def left_out(self) -> dict[str, str]:
        """As the objective's."""
        return self.objective.left_out

    def leave_out(self, what: Mapping[str, str]) -> None:
        """As the objective's."""
        self.objective.leave_out(what)

    def state(self) -> dict[str, int]:
        """As the objective's."""
        return self.objective.state()

    def restore(self, state: dict[str, int]) -> None:
        """As the objective's."""
        self.objective.restore(state)


def _finite(event: Event) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in event.tensors)
