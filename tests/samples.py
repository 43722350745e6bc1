"""A sum of many parts, cheap and exact, that sampled runs minimise."""

from collections import Counter

import torch

import hvpopt
from hvpopt.errors import BadPartError
from hvpopt.model.tensors import named_tensors, rebuild
from hvpopt.operators.symmetric import SymmetricOperator
from hvpopt.problem.objective import Objective

D = torch.float64
#: Wave propagations of each evaluation of one part, as of a waveform misfit.
PROPAGATIONS = {"value": 1, "gradient": 2, "product": 4}


class Rows(Objective):
    """½ the mean over parts of ‖r_i(x)‖², with r_i = t_i + bend·t_i² − b_i, t_i = A_i x.

    Args:
        matrix: ``[part, row, n]``.
        data: ``[part, row]``.
        encoded: True for samples of random sums of all parts, False for drawn parts.
        bend: Of the curve of the residuals. Default 0, a linear least-squares problem.
        drop: True if bad parts may be dropped.

    Attributes:
        made: Every evaluation with the number of parts that it was of, noted apart from
            ``counts``; shared by all samples.
        bad: Names of evaluations that are NaN, by the number of a part.
        at: A function that is called with the name of each evaluation, in a list.
        highest: A model with a larger entry is refused, as ``max_vel`` refuses one.
    """

    has_gauss_newton = True

    def __init__(self, matrix, data, *, encoded=True, bend=0.0, drop=False):
        super().__init__("rows")
        self.matrix, self.data, self.bend = matrix, data, bend
        self.encoded, self.drop = encoded, drop
        self.numbers, self.codes = list(range(len(matrix))), None
        self.made, self.bad, self.at, self.highest = [], {}, [lambda _: None], [1e300]

    def _other(self, **changes):
        other = Rows.__new__(type(self))
        vars(other).update({**vars(self), **changes})
        other.counts = self.counts.child()
        return other

    @property
    def n_parts(self):
        return len(self.numbers) if self.codes is None else len(self.codes)

    @property
    def encodes(self):
        return self.encoded and self.codes is None and len(self.numbers) > 1

    @property
    def gradient_propagations(self):
        return 2 * self.n_parts

    def spent(self):
        """Return what ``counts`` should be, from ``made``."""
        kinds = Counter(what for what, _ in self.made)
        return hvpopt.Counts(
            kinds["value"],
            kinds["gradient"],
            kinds["product"],
            sum(PROPAGATIONS[what] * n for what, n in self.made),
        )

    def without(self, parts):
        left = [i for i in self.numbers if f"part {i}" not in parts]
        assert len(left) == len(self.numbers) - len(parts) > 0
        return self._other(numbers=left)

    def sample(self, size, *, seed=0):
        generator = torch.Generator().manual_seed(seed)
        n = len(self.numbers)
        assert 1 <= size <= n
        if self.encodes:
            signs = torch.randint(0, 2, (size, n), generator=generator)
            return self._other(codes=2.0 * signs.to(D) - 1.0)
        chosen = sorted(torch.randperm(n, generator=generator)[:size].tolist())
        return self._other(numbers=[self.numbers[i] for i in chosen])

    def _begin(self, what, x=None, counts=None):
        counts = self.counts if counts is None else counts
        self.made.append((what, self.n_parts))
        waves = PROPAGATIONS[what] * self.n_parts
        counts.tally(**{f"{what}s": 1}, propagations=waves)
        self.at[0](what)
        if x is not None and float(x.max()) > self.highest[0]:
            raise ValueError(f"the model reaches {float(x.max())}")
        bad = {f"part {i}": "nan" for i in self.numbers if what in self.bad.get(i, ())}
        if bad and self.codes is None:
            raise BadPartError(f"{sorted(bad)} nan in {what}", bad if self.drop else {})
        if bad:
            raise BadPartError(f"encoded part 0 is nan in {what}", {})

    def _terms(self, x):
        """Return residuals ``[k, row]``, slopes ``[k, row, n]``, weights of curvature."""
        a, b = self.matrix[self.numbers], self.data[self.numbers]
        t = a @ x
        r = t + self.bend * t**2 - b
        slopes = (1 + 2 * self.bend * t)[:, :, None] * a
        if self.codes is None:
            return r, slopes, r
        r = torch.einsum("ki,im->km", self.codes, r)
        slopes = torch.einsum("ki,imn->kmn", self.codes, slopes)
        return r, slopes, torch.einsum("ki,km->im", self.codes, r)

    @property
    def _factor(self):
        return 1.0 / (len(self.numbers) * (1 if self.codes is None else len(self.codes)))

    def value(self, model):
        x = flat(model)
        self._begin("value", x)
        return float(0.5 * self._factor * (self._terms(x)[0] ** 2).sum())

    def value_and_gradient(self, model):
        x = flat(model)
        self._begin("gradient", x)
        r, slopes, _ = self._terms(x)
        gradient = self._factor * torch.einsum("km,kmn->n", r, slopes)
        return float(0.5 * self._factor * (r**2).sum()), shaped(gradient, model)

    def matrix_at(self, model, kind):
        _, slopes, weights = self._terms(flat(model))
        matrix = torch.einsum("kmn,kmp->np", slopes, slopes)
        if kind == "exact":
            a = self.matrix[self.numbers]
            bent = torch.einsum("im,imn,imp->np", weights, a, a)
            matrix = matrix + 2 * self.bend * bent
        return self._factor * matrix

    def hessian(self, model, kind="exact", *, space=None):
        space = hvpopt.ModelSpace(model) if space is None else space
        return RowsHessian(self, model, kind, space)

    def __call__(self, x):
        raise NotImplementedError


class RowsHessian(SymmetricOperator):
    def __init__(self, rows, model, kind, space):
        super().__init__(space.size, space=space, counts=rows.counts.child())
        self.rows, self.model, self.matrix = rows, model, rows.matrix_at(model, kind)

    def _product(self, vector):
        self.rows._begin("product", counts=self.counts)
        w = flat(self.space.step_to_model(vector))
        return self.space.gradient_to_vector(shaped(self.matrix @ w, self.model))


def flat(model):
    return torch.cat([t.reshape(-1).to(D) for t in named_tensors(model).values()])


def shaped(vector, model):
    tensors = list(named_tensors(model).values())
    pieces = vector.split([t.numel() for t in tensors])
    return rebuild(
        model,
        [p.reshape(t.shape).to(t.dtype) for p, t in zip(pieces, tensors, strict=True)],
    )


def rows_of(generator, n_parts=40, n_rows=4, n=30, *, noise=0.0, **options):
    """Return Rows whose data are of a random model, with noise relative to the data.

    Args:
        generator: Of matrix, model and noise.
        n_parts: See Rows.
        n_rows: See Rows.
        n: See Rows.
        noise: Of the data, relative to their size.
        options: Of Rows.
    """
    decay = torch.linspace(1.0, 0.1, n, dtype=D)
    matrix = torch.randn(n_parts, n_rows, n, generator=generator, dtype=D) * decay
    t = matrix @ torch.randn(n, generator=generator, dtype=D)
    data = t + options.get("bend", 0.0) * t**2
    data = data + noise * data.norm() / data.numel() ** 0.5 * torch.randn(
        data.shape, generator=generator, dtype=D
    )
    return Rows(matrix, data, **options)
