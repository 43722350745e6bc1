"""Regularisers against sums written cell by cell, and autograd's Hessians of those."""

import itertools
import math
import pickle

import pytest
import torch
from tolerances import FLOAT32, GRADIENT, PRODUCT
from torch.autograd import functional
from waves import models_of, one_thread, survey

import hvpopt
from hvpopt.analysis import check_gradient, check_hessian
from hvpopt.model.tensors import named_tensors, rebuild

__all__ = ["one_thread"]

F64 = torch.float64
SHAPES = {1: (6,), 2: (4, 3), 3: (3, 3, 2)}
SPACINGS = {1: (2.0,), 2: (2.0, 3.0), 3: (2.0, 3.0, 1.5)}
EPSILON = 0.3


# -- oracles: block by block, sharing nothing with hvpopt -----------------------------


def blocks(field):
    """Every block of 2 cells along each axis that has neighbours."""
    ranges = [range(max(n - 1, 1)) for n in field.shape]
    for corner in itertools.product(*ranges):
        yield field[tuple(slice(c, c + 2) for c in corner)]


def long_axes(field):
    return [axis for axis, n in enumerate(field.shape) if n > 1]


def tikhonov(order, u, w, h):
    total, d = u.new_zeros(()), long_axes(u)
    cells = list(itertools.product(*map(range, u.shape)))
    stencils = {0: [()], 1: [(a,) for a in d], 2: [(a, b) for a in d for b in d]}[order]
    for axes in stencils:
        for cell in cells:
            # each derivative doubles the cells, with opposite signs
            found = {cell: 1.0}
            log_w = {cell: 1.0}
            for axis in axes:
                ahead = {
                    tuple(c + (i == axis) for i, c in enumerate(at)): f
                    for at, f in found.items()
                }
                new, new_log = {}, {}
                for at in {*found, *ahead}:
                    new[at] = (ahead.get(at, 0.0) - found.get(at, 0.0)) / h[axis]
                shifted = {
                    tuple(c + (i == axis) for i, c in enumerate(at)): f
                    for at, f in log_w.items()
                }
                for at in {*log_w, *shifted}:
                    new_log[at] = (shifted.get(at, 0.0) + log_w.get(at, 0.0)) / 2
                found, log_w = new, new_log
            if any(c >= n for at in found for c, n in zip(at, u.shape, strict=True)):
                continue
            weight = math.prod(float(w[at]) ** share for at, share in log_w.items())
            slope = sum(f * u[at] for at, f in found.items())
            total = total + weight * slope**2
    return math.prod(h) * total


def corner_weight(w):
    return math.prod(float(x) for x in w.reshape(-1)) ** (1 / w.numel())


def corner_square(block, h):
    return sum((block.diff(dim=a) / h[a]).square().mean() for a in long_axes(block))


def variation(u, w, h, epsilon):
    total = u.new_zeros(())
    for block, weight in zip(blocks(u), blocks(w), strict=True):
        s = (corner_square(block, h) + epsilon**2).sqrt()
        total = total + corner_weight(weight) * (s - epsilon)
    return math.prod(h) * total


def lagged_variation(u, fixed, w, h, epsilon):
    """The quadratic whose Hessian is that of lagged diffusivity."""
    total = u.new_zeros(())
    for block, other, weight in zip(blocks(u), blocks(fixed), blocks(w), strict=True):
        s = (corner_square(other, h) + epsilon**2).sqrt()
        total = total + corner_weight(weight) * corner_square(block, h) / (2 * s)
    return math.prod(h) * total


def cross_residual(u, v, w, h):
    """What the cross-gradient squares."""
    found = []
    for one, two, weight in zip(blocks(u), blocks(v), blocks(w), strict=True):
        p, q = (
            [(b.diff(dim=a) / h[a]).mean() for a in range(b.ndim)] for b in (one, two)
        )
        root = math.sqrt(math.prod(h) * corner_weight(weight))
        for a, b in itertools.combinations(range(u.ndim), 2):
            found.append(root * (p[a] * q[b] - p[b] * q[a]))
    return torch.stack(found)


# -- models ---------------------------------------------------------------------------


def rand(shape, g, low=-1.0, high=1.0):
    return low + (high - low) * torch.rand(shape, generator=g, dtype=F64)


def weights(shape, g):
    """Weights of which some are zero."""
    w = rand(shape, g, 0.5, 2.0)
    return torch.where(torch.rand(shape, generator=g) < 0.15, 0.0, w)


class Case:
    """A regulariser of parameters a and b, and its value by the oracle."""

    def __init__(self, kind, d, g, arranged="dict", dtype=F64):
        shape, self.h = SHAPES[d], SPACINGS[d]
        self.kind, names = kind, ("a", "b") if arranged == "dict" else ("0", "1")
        self.scale = {"a": 2.0, "b": rand(shape, g, 0.5, 2.0)}
        if kind in ("variation", "cross"):
            self.scale["b"] = 0.5
        self.weight = {n: weights(shape, g) for n in "ab"}
        self.reference = {n: rand(shape, g) for n in "ab"}
        self.tensors = [2 * rand(shape, g) for _ in "ab"]

        def given(by_name):
            values = list(by_name.values())
            return dict(zip(names, values, strict=True))

        options = {
            "spacing": self.h,
            "scale": given(self.scale),
            "weight": given(self.weight),
            "reference": self.arrange(list(self.reference.values()), arranged),
        }
        if kind == "cross":
            self.weight["b"] = self.weight["a"]
            options["weight"] = self.weight["a"]
            self.objective = hvpopt.CrossGradient(
                *((0, 1) if arranged == "tuple" else names), **options
            )
        elif kind == "variation":
            self.objective = hvpopt.TotalVariation(epsilon=EPSILON, **options)
        elif kind == "reference":
            reference = options.pop("reference")
            self.objective = hvpopt.ReferenceModel(reference, **options)
        else:
            self.objective = hvpopt.Tikhonov(order=int(kind[-1]), **options)
        self.model = self.arrange([t.to(dtype) for t in self.tensors], arranged)

    @staticmethod
    def arrange(tensors, arranged):
        return (
            dict(zip("ab", tensors, strict=True)) if arranged == "dict" else (*tensors,)
        )

    def units(self, tensors):
        return {
            n: (t - self.reference[n]) / self.scale[n]
            for n, t in zip("ab", tensors, strict=True)
        }

    def value(self, *tensors):
        units = self.units(tensors)
        if self.kind == "cross":
            residual = cross_residual(units["a"], units["b"], self.weight["a"], self.h)
            return residual.square().sum()
        if self.kind == "variation":
            return sum(
                variation(u, self.weight[n], self.h, EPSILON / self.scale[n])
                for n, u in units.items()
            )
        order = 0 if self.kind == "reference" else int(self.kind[-1])
        return sum(tikhonov(order, u, self.weight[n], self.h) for n, u in units.items())

    def gauss_newton(self, exact):
        """The dense Gauss-Newton matrix; the exact one of what is quadratic."""
        if self.kind == "cross":

            def residual(*tensors):
                units = self.units(tensors)
                return cross_residual(units["a"], units["b"], self.weight["a"], self.h)

            rows = functional.jacobian(residual, tuple(self.tensors))
            jacobian = torch.cat([r.flatten(1) for r in rows], 1)
            return 2 * jacobian.T @ jacobian
        if self.kind == "variation":
            fixed = self.units(self.tensors)

            def lagged(*tensors):
                return sum(
                    lagged_variation(
                        u, fixed[n], self.weight[n], self.h, EPSILON / self.scale[n]
                    )
                    for n, u in self.units(tensors).items()
                )

            return dense(lagged, self.tensors)
        return exact


def dense(function, tensors):
    rows = functional.hessian(function, tuple(tensors))
    n = tensors[0].numel()
    return torch.cat([torch.cat([b.reshape(n, n) for b in row], 1) for row in rows])


def flat(model):
    return torch.cat([t.reshape(-1) for t in named_tensors(model).values()])


def close(found, expected, tolerance):
    gap = float((found - expected).norm())
    assert gap <= tolerance * float(expected.norm()), gap / float(expected.norm())


KINDS = ("tikhonov 0", "tikhonov 1", "tikhonov 2", "reference", "variation", "cross")
CASES = [(k, d) for k in KINDS for d in (1, 2, 3) if (k, d) != ("cross", 1)]


@pytest.mark.parametrize(
    ("kind", "d", "arranged"),
    [(*case, "dict") for case in CASES] + [(kind, 2, "tuple") for kind in KINDS],
)
def test_value_gradient_and_matrices_are_the_oracles(kind, d, arranged, generator):
    case = Case(kind, d, generator, arranged)
    expected = case.value(*case.tensors)
    assert case.objective.value(case.model) == pytest.approx(float(expected), rel=PRODUCT)
    value, gradient = case.objective.value_and_gradient(case.model)
    assert value == case.objective.value(case.model)
    rows = functional.jacobian(case.value, tuple(case.tensors))
    close(flat(gradient), torch.cat([r.reshape(-1) for r in rows]), GRADIENT * 100)
    exact = dense(case.value, case.tensors)
    close(case.objective.hessian(case.model).to_dense(), exact, PRODUCT)
    found = case.objective.hessian(case.model, "gauss-newton").to_dense()
    close(found, case.gauss_newton(exact), PRODUCT)
    # curvature that no step may mistake for negative
    lowest = float(torch.linalg.eigvalsh(found)[0])
    assert lowest >= -1e-10 * float(torch.linalg.matrix_norm(found, 2))


@pytest.mark.parametrize(("kind", "d"), CASES)
def test_closed_forms_are_the_derivatives_of_the_torch_scalar(kind, d, generator):
    """What autograd makes of a call is what value, gradient and products are."""
    case = Case(kind, d, generator)
    plain = hvpopt.TorchObjective(lambda **m: case.objective(**m))
    value, gradient = plain.value_and_gradient(case.model)
    found, own = case.objective.value_and_gradient(case.model)
    assert found == pytest.approx(value, rel=PRODUCT)
    close(flat(own), flat(gradient), 100 * GRADIENT)
    step = {n: rand(t.shape, generator) for n, t in case.model.items()}
    product = case.objective.hessian(case.model) @ step
    close(flat(product), flat(plain.hessian(case.model) @ step), PRODUCT)


@pytest.mark.parametrize("kind", KINDS)
def test_taylor_slopes(kind, seed, generator):
    case = Case(kind, 2, generator)
    assert check_gradient(case.objective, case.model, seed=seed).passed
    assert check_hessian(case.objective, case.model, seed=seed).passed


@pytest.mark.parametrize("kind", KINDS)
def test_scaled_and_masked_spaces(kind, generator):
    case = Case(kind, 2, generator)
    shape = SHAPES[2]
    mask = {n: torch.rand(shape, generator=generator) < 0.7 for n in "ab"}
    mask["a"][0, 0] = True
    scale = {"a": 3.0, "b": 0.25}
    space = hvpopt.ModelSpace(case.model, scale=scale, mask=mask)
    free = flat(mask)
    sizes = flat({n: torch.full(shape, scale[n], dtype=F64) for n in "ab"})
    exact = dense(case.value, case.tensors)
    for which, matrix in (("exact", exact), ("gauss-newton", case.gauss_newton(exact))):
        expected = (sizes[:, None] * matrix * sizes)[free][:, free]
        found = case.objective.hessian(case.model, which, space=space).to_dense()
        close(found, expected, PRODUCT)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_and_order_of_names(kind, generator):
    case = Case(kind, 2, generator)
    single = {n: t.float() for n, t in reversed(case.model.items())}
    value, gradient = case.objective.value_and_gradient(single)
    expected, wanted = case.objective.value_and_gradient(case.model)
    assert value == pytest.approx(expected, rel=FLOAT32)
    step = {n: rand(t.shape, generator) for n, t in case.model.items()}
    product = case.objective.hessian(single) @ {n: s.float() for n, s in step.items()}
    exact = case.objective.hessian(case.model) @ step
    for name in "ab":
        assert gradient[name].dtype == product[name].dtype == torch.float32
        close(gradient[name].double(), wanted[name], FLOAT32)
        close(product[name].double(), exact[name], FLOAT32)


# -- values are integrals in metres ---------------------------------------------------


def smooth(n, h):
    """A smooth function at the middles of the cells of a square of one length."""
    y = (torch.arange(n, dtype=F64)[:, None] + 0.5) * h
    x = (torch.arange(n, dtype=F64)[None, :] + 0.5) * h
    return torch.sin(0.05 * y) * torch.cos(0.03 * x), torch.cos(0.02 * y + 0.04 * x)


def test_values_tend_to_the_integrals():
    side, n = 100.0, 1600
    h = side / n
    y = (torch.arange(n, dtype=F64)[:, None] + 0.5) * h
    x = (torch.arange(n, dtype=F64)[None, :] + 0.5) * h
    sy, cy, sx, cx = (
        (0.05 * y).sin(),
        (0.05 * y).cos(),
        (0.03 * x).sin(),
        (0.03 * x).cos(),
    )
    u_y, u_x = 0.05 * cy * cx, -0.03 * sy * sx
    second = (0.05**4 + 0.03**4) * (sy * cx).square() + 2 * (0.0015 * cy * sx).square()
    slope = (0.02 * y + 0.04 * x).sin()
    v_y, v_x = -0.02 * slope, -0.04 * slope
    eps = 0.01
    expected = {
        "tikhonov 0": (sy * cx).square(),
        "tikhonov 1": u_y**2 + u_x**2,
        "tikhonov 2": second,
        "variation": (u_y**2 + u_x**2 + eps**2).sqrt() - eps,
        "cross": (u_y * v_x - u_x * v_y).square(),
    }
    for kind, density in expected.items():
        integral = float(density.sum()) * h * h
        errors = []
        for cells in (25, 50, 100):
            spacing = side / cells
            a, b = smooth(cells, spacing)
            if kind == "cross":
                value = hvpopt.CrossGradient(0, 1, spacing=spacing).value((a, b))
            elif kind == "variation":
                made = hvpopt.TotalVariation(spacing=spacing, epsilon=eps)
                value = made.value(a)
            else:
                made = hvpopt.Tikhonov(spacing=spacing, order=int(kind[-1]))
                value = made.value(a)
            errors.append(abs(value - integral) / integral)
        # differences leave out half a cell at each edge: an error of first order
        assert errors[-1] < 0.06, (kind, errors)
        assert errors[1] < 0.65 * errors[0], (kind, errors)
        assert errors[2] < 0.65 * errors[1], (kind, errors)


def test_units_are_the_scales_and_metres(generator):
    """Metres or kilometres, m/s or km/s: only the unit of the value changes."""
    v = rand((6, 5), generator, 1500.0, 2500.0)
    one = hvpopt.Tikhonov(spacing=10.0, scale=100.0).value(v)
    assert hvpopt.Tikhonov(spacing=10.0, scale=0.1).value(v / 1000) == pytest.approx(one)
    # in two dimensions squares of slopes times an area have no length left
    assert hvpopt.Tikhonov(spacing=0.01, scale=100.0).value(v) == pytest.approx(one)
    tv = hvpopt.TotalVariation(spacing=10.0, epsilon=0.5, scale=100.0).value(v)
    km = hvpopt.TotalVariation(spacing=0.01, epsilon=500.0, scale=100.0).value(v)
    assert 1000 * km == pytest.approx(tv)


@pytest.mark.parametrize("shape", [(6, 5), (4, 4, 3)])
def test_null_spaces(shape, generator):
    """Planes cost nothing at order 2, constants at order 1; parallel ones no cross."""
    axes = [torch.arange(n, dtype=F64) * 2.0 for n in shape]
    slopes = rand((len(shape),), generator)
    plane = sum(
        s * c.reshape([-1 if i == a else 1 for i in range(len(shape))])
        for a, (s, c) in enumerate(zip(slopes, axes, strict=True))
    )
    assert hvpopt.Tikhonov(spacing=2.0, order=2).value(plane) < 1e-20
    first = hvpopt.Tikhonov(spacing=2.0, order=1)
    assert first.value(torch.ones(shape, dtype=F64)) == 0.0
    assert first.value(plane) > 1e-3 * float(slopes.square().sum())
    # a monotone function of a field has parallel gradients, to the order of the grid
    cross = hvpopt.CrossGradient("a", "b", spacing=2.0)
    assert cross.value({"a": plane, "b": 3.0 - 2.0 * plane}) < 1e-20


def test_no_oscillation_is_free_of_variation():
    chess = torch.tensor([[1.0, -1.0] * 3, [-1.0, 1.0] * 3] * 3, dtype=F64)
    tv = hvpopt.TotalVariation(spacing=1.0, epsilon=1e-3).value(chess)
    assert tv > 25 * 2.0


def test_mask_leaves_out_every_difference_of_its_cells(generator):
    v = rand((6, 5), generator)
    mask = torch.ones(6, 5, dtype=torch.bool)
    mask[:2] = False
    for make in (
        lambda **k: hvpopt.Tikhonov(spacing=3.0, **k),
        lambda **k: hvpopt.Tikhonov(spacing=3.0, order=2, **k),
        lambda **k: hvpopt.TotalVariation(spacing=3.0, epsilon=0.1, **k),
        lambda **k: hvpopt.ReferenceModel(torch.zeros_like(v), spacing=3.0, **k),
    ):
        masked = make(weight=mask)
        if masked.name == "reference":
            below = hvpopt.ReferenceModel(torch.zeros_like(v[2:]), spacing=3.0)
        else:
            below = make()
        assert masked.value(v) == pytest.approx(below.value(v[2:]), rel=1e-12)
        gradient = masked.value_and_gradient(v)[1]
        assert not gradient[:2].any()


def test_axis_of_one_cell_is_no_dimension(generator):
    line = rand((7,), generator)
    for make in (
        lambda h: hvpopt.Tikhonov(spacing=h, order=2),
        lambda h: hvpopt.TotalVariation(spacing=h, epsilon=0.1),
    ):
        thin = make((2.0, 3.0)).value(line[:, None])
        assert thin == pytest.approx(3.0 * make(2.0).value(line), rel=1e-12)
    single = torch.ones((), dtype=F64)
    for alone in (
        hvpopt.Tikhonov(spacing=1.0),
        hvpopt.TotalVariation(spacing=1.0, epsilon=1.0),
    ):
        value, gradient = alone.value_and_gradient(single)
        assert value == 0.0
        assert gradient.shape == ()


# -- in sums --------------------------------------------------------------------------


def test_a_sum_counts_evaluations_and_no_graph(generator):
    v = rand((5, 4), generator)
    penalty = hvpopt.TotalVariation(spacing=1.0, epsilon=0.1)
    data = hvpopt.TorchObjective(lambda v: (v**4).sum(), name="data", convex=True)
    total = data + 0.1 * penalty
    lin = total.linearise(v)
    lin.hessian @ torch.ones_like(v)
    total.value(v)
    expected = {"values": 1, "gradients": 1, "products": 1, "propagations": 0}
    assert total.counts.as_dict() == expected
    assert penalty.counts.as_dict() == expected
    penalty.hessian(v, "gauss-newton")
    assert penalty.counts.as_dict() == expected  # a linearisation is no gradient
    assert lin.parts["total variation"] == 0.1 * penalty.value(v)
    assert total.has_gauss_newton


def test_samples_of_a_sum_hold_it_whole(generator):
    v = rand((5, 4), generator)
    penalty = hvpopt.Tikhonov(spacing=1.0)
    total = hvpopt.TorchObjective(lambda v: v.square().sum()) + 3.0 * penalty
    sample = total.sample(1, seed=4)
    assert sample.terms[1] == (3.0, penalty)
    assert sample.value(v) == total.value(v)


def test_beside_waves_it_takes_none(generator):
    """In a sum with waveforms, whole or sampled, propagations are those of the waves."""
    acquisition = survey(n_shots=3)
    (v,) = models_of("scalar", generator)
    misfit = hvpopt.fwi.WaveformMisfit(acquisition, acquisition.simulate(v + 20.0))
    penalty = hvpopt.Tikhonov(spacing=(5.0, 6.0), scale=100.0, reference=v + 5.0)
    total = misfit + 1e-3 * penalty
    step = rand(v.shape, generator)
    product = total.hessian(v) @ step
    spent = total.counts.snapshot()
    assert spent.as_dict() == {
        "values": 0,
        "gradients": 0,
        "products": 1,
        "propagations": 12,
    }
    own = penalty.hessian(v) @ step
    expected = misfit.hessian(v) @ step + 1e-3 * own
    close(product, expected, PRODUCT)
    sample = total.sample(1, seed=3)
    waves = misfit.sample(1, seed=3).hessian(v, "gauss-newton") @ step
    product = sample.hessian(v, "gauss-newton") @ step
    close(product, waves + 1e-3 * own, PRODUCT)
    sketch = total.sketch(v, seed=5)
    assert sketch.cost == misfit.sketch(v, seed=5).cost < 1.0
    assert total.gradient_propagations == misfit.gradient_propagations


@pytest.mark.parametrize("kind", KINDS)
def test_operators_are_pickled(kind, generator):
    case = Case(kind, 2, generator)
    operator = case.objective.hessian(case.model)
    again = pickle.loads(pickle.dumps(operator))
    vector = rand((operator.size,), generator)
    assert torch.equal(again @ vector, operator @ vector)


def test_nothing_of_the_callers_is_kept_or_changed(generator):
    v, w, ref = (rand((5, 4), generator, 1.0, 2.0) for _ in range(3))
    given = [t.clone() for t in (v, w, ref)]
    penalty = hvpopt.Tikhonov(spacing=1.0, weight=w, scale=w, reference=ref)
    operator = penalty.hessian(v)
    value, product = penalty.value(v), operator @ torch.ones_like(v)
    for t, before in zip((v, w, ref), given, strict=True):
        assert torch.equal(t, before)
        t.fill_(7.0)
    assert torch.equal(operator @ torch.ones_like(v), product)
    assert penalty.value(given[0]) == value


def test_denoises_an_edge_better_than_squares(generator):
    """Total variation keeps the edge that squares smear, at the same roughness cost."""
    clean = torch.zeros(60, dtype=F64)
    clean[30:] = 1.0
    noisy = clean + 0.1 * torch.randn(60, generator=generator, dtype=F64)
    data = hvpopt.ReferenceModel(noisy, name="data")
    found = {}
    for name, penalty in (
        ("squares", 30.0 * hvpopt.Tikhonov(spacing=1.0)),
        ("variation", hvpopt.TotalVariation(spacing=1.0, epsilon=1e-2)),
    ):
        result = hvpopt.minimize(
            data + penalty, noisy, method=hvpopt.TrustRegionNewton(), max_iter=60
        )
        found[name] = float((result.x - clean)[25:35].norm())
    assert found["variation"] < 0.7 * found["squares"]


def test_cross_gradient_pulls_structure_over():
    """A structured parameter lends its edges to one that the data see poorly."""
    y = torch.arange(8, dtype=F64)[:, None].expand(8, 8)
    model = {"a": y.clone(), "b": y.T.clone() + 0.5 * y}
    objective = hvpopt.ReferenceModel(model, name="data") + 10.0 * hvpopt.CrossGradient(
        "a", "b", spacing=1.0
    )
    result = hvpopt.minimize(
        objective, model, method=hvpopt.TrustRegionNewton(), max_iter=100
    )
    first, last = result.history[0].parts, result.history[-1].parts
    assert last["cross-gradient"] < 0.1 * first["cross-gradient"]


# -- wrong calls ----------------------------------------------------------------------

V = torch.ones(5, 4, dtype=F64)
PAIR = {"vp": V, "vs": V}
H = 10.0
WRONG = [
    (lambda: hvpopt.Tikhonov(spacing=0.0), ValueError, "spacing is 0.0; it must be pos"),
    (lambda: hvpopt.Tikhonov(spacing="10 m"), TypeError, "spacing is '10 m'; pass a num"),
    (lambda: hvpopt.Tikhonov(spacing=H, order=3), ValueError, "order is 3; it must lie"),
    (lambda: hvpopt.Tikhonov(spacing=H, scale=-1.0), ValueError, "scale is -1.0; it mus"),
    (
        lambda: hvpopt.Tikhonov(spacing=H, scale={"vp": 0.0}),
        ValueError,
        "scale of parameter 'vp' is 0.0; it must be positive",
    ),
    (
        lambda: hvpopt.Tikhonov(spacing=H, weight=V - 2),
        ValueError,
        "weight must be zero or positive and finite in every cell",
    ),
    (
        lambda: hvpopt.Tikhonov(spacing=H, scale=V - 1),
        ValueError,
        "scale must be positive and finite in every cell",
    ),
    (lambda: hvpopt.Tikhonov(spacing=H, name=3), TypeError, "name is 3; pass a text"),
    (
        lambda: hvpopt.Tikhonov(spacing=(1.0, 2.0, 3.0)).value(V),
        ValueError,
        "spacing of parameter 'model' has 3 entries for a grid of 2 axes",
    ),
    (
        lambda: hvpopt.Tikhonov(spacing={"vp": 1.0}).value(PAIR),
        ValueError,
        "spacing gives none of parameter 'vs'; name every parameter",
    ),
    (
        lambda: hvpopt.Tikhonov(spacing=H, scale={"rho": 1.0}).value(PAIR),
        ValueError,
        r"scale names parameters \['rho'\] that the model does not have",
    ),
    (
        lambda: hvpopt.Tikhonov(spacing=H, weight=torch.ones(3)).value(V),
        ValueError,
        r"weight of parameter 'model' has shape \(3,\), which does not fit the model's",
    ),
    (
        lambda: hvpopt.Tikhonov(spacing=H, reference=V).value(PAIR),
        ValueError,
        r"the reference of 'tikhonov' has parameters \['model'\], the model \['vp', 'vs'",
    ),
    (
        lambda: hvpopt.Tikhonov(spacing=H, reference=V[1:]).value(V),
        ValueError,
        r"the reference of parameter 'model' has shape \(4, 4\), expected \(5, 4\)",
    ),
    (lambda: hvpopt.Tikhonov(spacing=H).value([]), ValueError, "the model holds no tens"),
    (
        lambda: hvpopt.Tikhonov(spacing=H).value(V.int()),
        TypeError,
        "parameter 'model' has dtype torch.int32; it must be real",
    ),
    (
        lambda: hvpopt.Tikhonov(spacing=H).hessian(V, "newton"),
        ValueError,
        "kind is 'newton'; it must be 'exact' or 'gauss-newton'",
    ),
    (
        lambda: hvpopt.TotalVariation(spacing=H, epsilon=None),
        TypeError,
        "epsilon is None; pass the slope below which variation is smoothed",
    ),
    (
        lambda: hvpopt.TotalVariation(spacing=H, epsilon=0.0),
        ValueError,
        "epsilon is 0.0; it must be positive",
    ),
    (
        lambda: hvpopt.TotalVariation(spacing=H, epsilon={"vp": 1.0}).value(PAIR),
        ValueError,
        "epsilon gives none of parameter 'vs'; name every parameter",
    ),
    (
        lambda: hvpopt.CrossGradient("vp", "vp", spacing=H),
        ValueError,
        "both parameters are 'vp'; a gradient is parallel to itself",
    ),
    (
        lambda: hvpopt.CrossGradient("vp", V, spacing=H),
        TypeError,
        "the second parameter is a Tensor of shape",
    ),
    (
        lambda: hvpopt.CrossGradient("vp", "vs", spacing=H, weight={"vp": 1.0}),
        TypeError,
        "weight is a dict; a cross-gradient has one for both parameters",
    ),
    (
        lambda: hvpopt.CrossGradient("vp", "rho", spacing=H).value(PAIR),
        ValueError,
        r"'cross-gradient' is of parameters \['vp', 'rho'\]; the model has",
    ),
    (
        lambda: hvpopt.CrossGradient("vp", "vs", spacing=H).value(
            {"vp": V, "vs": V[:, 1:]}
        ),
        ValueError,
        r"parameters \['vp', 'vs'\] lie on different grids",
    ),
    (
        lambda: hvpopt.CrossGradient("vp", "vs", spacing=H).value(
            {"vp": V[0], "vs": V[1]}
        ),
        ValueError,
        "gradients along a single axis are always parallel",
    ),
    (
        lambda: hvpopt.ReferenceModel(None),
        TypeError,
        "the reference is None; pass the mo",
    ),
    (
        lambda: hvpopt.ReferenceModel(V * math.inf),
        ValueError,
        "parameter 'model' has 20 NaN or infinite cells of 20",
    ),
]


@pytest.mark.parametrize(("call", "error", "words"), WRONG)
def test_wrong_call(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_infinite_value_is_returned_alone_and_refused_with_a_gradient():
    huge = torch.tensor([0.0, 1e200], dtype=F64)
    penalty = hvpopt.Tikhonov(spacing=1.0)
    assert penalty.value(huge) == math.inf
    with pytest.raises(ValueError, match="the loss is inf at this model"):
        penalty.value_and_gradient(huge)


def test_rebuilt_models_keep_their_arrangement(generator):
    model = [rand((3, 3), generator), rand((3, 3), generator)]
    _, gradient = hvpopt.Tikhonov(spacing=1.0).value_and_gradient(model)
    assert isinstance(gradient, tuple)
    assert type(rebuild(model, gradient)) is tuple
