"""SciPy both ways: hvpopt in scipy.optimize, and SciPy on hvpopt's objectives."""

import inspect
import warnings

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
import scipy.sparse.linalg
import tolerances
import torch
from scipy.optimize import rosen, rosen_der, rosen_hess, rosen_hess_prod

import hvpopt

N = 8


@pytest.fixture
def x0(seed):
    return np.random.default_rng(seed).uniform(-0.5, 1.5, N)


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def counted(function):
    def call(*args):
        call.calls += 1
        return function(*args)

    call.calls = 0
    return call


# -- scipy_method -----------------------------------------------------------------------

PRODUCTS = {
    "hessp": {"hessp": rosen_hess_prod},
    "array": {"hess": rosen_hess},
    "sparse": {"hess": lambda x: scipy.sparse.csr_array(rosen_hess(x))},
    "operator": {
        "hess": lambda x: scipy.sparse.linalg.aslinearoperator(rosen_hess(x)),
    },
    "list": {"hess": lambda x: rosen_hess(x).tolist()},
    "differences": {},
}


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize(
    "method", [hvpopt.ShiftedNewton(), hvpopt.TrustRegionNewton()], ids=["shift", "trust"]
)
def test_method_reaches_the_minimum_of_scipys_own(x0, products, method):
    start = x0.copy()
    result = scipy.optimize.minimize(
        rosen,
        x0,
        jac=rosen_der,
        **PRODUCTS[products],
        method=hvpopt.scipy_method(method, gtol=1e-10),
    )
    # the Rosenbrock function has a second minimum for n ≥ 4
    own = scipy.optimize.minimize(
        rosen, result.x, jac=rosen_der, hess=rosen_hess, method="trust-exact"
    )
    assert result.success
    assert result.status == 0
    assert float(np.abs(result.x - own.x).max()) < 1e-5
    assert np.array_equal(result.jac, rosen_der(result.x))
    assert result.fun == rosen(result.x)
    assert ("differences of jac" in result.message) == (products == "differences")
    assert np.array_equal(x0, start)


def test_iterates_are_those_of_hvpopt_minimize(x0):
    seen = []
    scipy.optimize.minimize(
        rosen,
        x0,
        jac=rosen_der,
        hess=rosen_hess,
        method=hvpopt.scipy_method(hvpopt.ShiftedNewton()),
        callback=seen.append,
        options={"maxiter": 5},
    )
    expected = []
    hvpopt.minimize(
        rosenbrock,
        torch.as_tensor(x0),
        method=hvpopt.ShiftedNewton(),
        callback=lambda model, _: expected.append(model.numpy()),
        max_iter=5,
    )
    assert len(seen) == 5
    # two computations of one Hessian, whose rounding five steps may enlarge
    for ours, theirs in zip(expected[1:], seen, strict=True):
        assert float(np.abs(ours - theirs).max()) < 1e-4


@pytest.mark.parametrize("method", [hvpopt.ShiftedNewton, hvpopt.TrustRegionNewton])
def test_no_value_is_asked_for_twice(x0, method):
    points = []

    def fun(x):
        points.append(tuple(x))
        return rosen(x)

    scipy.optimize.minimize(
        fun,
        x0,
        jac=rosen_der,
        hessp=rosen_hess_prod,
        method=hvpopt.scipy_method(method(), maxiter=12),
    )
    assert len(points) == len(set(points))


@pytest.mark.parametrize("products", ["hessp", "hess", "differences"])
def test_counts_are_the_calls_that_were_made(x0, products):
    fun, jac = counted(rosen), counted(rosen_der)
    hess, hessp = counted(rosen_hess), counted(rosen_hess_prod)
    given = {"hessp": {"hessp": hessp}, "hess": {"hess": hess}, "differences": {}}
    result = scipy.optimize.minimize(
        fun,
        x0,
        jac=jac,
        **given[products],
        method=hvpopt.scipy_method(hvpopt.ShiftedNewton()),
        options={"maxiter": 4},
    )
    assert (result.nfev, result.njev) == (fun.calls, jac.calls)
    assert result.nhev == hess.calls + hessp.calls
    trials = sum(record.trials for record in result.history)
    assert result.nfev == 1 + trials, "an accepted trial is not evaluated again"
    inner = sum(record.inner_iterations for record in result.history)
    assert result.counts.products == inner
    if products == "hessp":
        assert result.nhev == inner
    if products == "hess":
        assert result.nhev == result.nit == 4
    gradients = result.nit + 1
    assert result.njev == gradients + (2 * inner if products == "differences" else 0)


def test_fun_that_returns_the_gradient_too_is_called_once_a_point(x0):
    points = []

    def both(x):
        points.append(tuple(x))
        return rosen(x), rosen_der(x)

    result = scipy.optimize.minimize(
        both,
        x0,
        jac=True,
        hessp=rosen_hess_prod,
        method=hvpopt.scipy_method(hvpopt.ShiftedNewton()),
        options={"maxiter": 5},
    )
    assert len(points) == len(set(points))
    assert len(points) == result.nfev


@pytest.mark.parametrize("new_style", [True, False])
def test_bounds_hold_everywhere_and_give_scipys_minimum(x0, new_style):
    low, high = -1.0, 0.7
    pairs = [(low, high)] * (N - 1) + [(None, None)]

    def watched(x):
        assert x[:-1].min() >= low
        assert x[:-1].max() <= high
        return rosen(x)

    lower = [low] * (N - 1) + [-np.inf]
    upper = [high] * (N - 1) + [np.inf]
    bounds = scipy.optimize.Bounds(lower, upper) if new_style else pairs
    result = scipy.optimize.minimize(
        watched,
        x0,  # may be outside
        jac=rosen_der,
        hessp=rosen_hess_prod,
        bounds=bounds,
        method=hvpopt.scipy_method(gtol=1e-10),
    )
    reference = scipy.optimize.minimize(
        rosen,
        result.x,
        jac=rosen_der,
        bounds=pairs,
        method="L-BFGS-B",
        options={"ftol": 1e-16, "gtol": 1e-10},
    )
    assert result.success
    assert float(np.abs(result.x - reference.x).max()) < 1e-5
    assert result.history[-1].active > 0


def test_args_reach_every_function(x0):
    weights = np.arange(1.0, N + 1)
    result = scipy.optimize.minimize(
        lambda x, w, c: float(w @ (x - c) ** 2),
        x0,
        args=(weights, 3.0),
        jac=lambda x, w, c: 2 * w * (x - c),
        hessp=lambda _, p, w, __: 2 * w * p,
        method=hvpopt.scipy_method(),
        tol=1e-9,
    )
    assert result.x == pytest.approx(np.full(N, 3.0), abs=1e-6)


def test_tol_is_gtol_and_options_take_precedence(x0):
    def run(method, **more):
        return scipy.optimize.minimize(
            rosen, x0, jac=rosen_der, hessp=rosen_hess_prod, method=method, **more
        )

    plain = hvpopt.scipy_method(gtol=0.5)
    by_tol = run(hvpopt.scipy_method(), tol=0.5)
    assert run(plain).nit == by_tol.nit
    strict = run(plain, tol=1e-10)
    assert strict.nit > by_tol.nit
    assert run(plain, tol=0.5, options={"gtol": 1e-10}).nit == strict.nit
    limited = run(plain, options={"maxiter": 0})
    assert (limited.nit, limited.success, limited.nhev) == (0, False, 0)
    assert limited.status != 0
    assert "limit of iterations" in limited.message


@pytest.mark.parametrize("named", [True, False])
def test_callback_of_both_signatures_may_stop(x0, named):
    seen = []

    def by_result(intermediate_result):
        seen.append((intermediate_result.x, intermediate_result.fun))
        if len(seen) == 2:
            raise StopIteration

    def by_point(xk):
        seen.append((xk, rosen(xk)))
        if len(seen) == 2:
            raise StopIteration
        return True  # which only trust-constr would obey

    result = scipy.optimize.minimize(
        rosen,
        x0,
        jac=rosen_der,
        hessp=rosen_hess_prod,
        method=hvpopt.scipy_method(),
        callback=by_result if named else by_point,
    )
    assert len(seen) == result.nit == 2
    assert (result.status, result.success) == (99, False)
    assert np.array_equal(seen[-1][0], result.x)
    assert seen[-1][1] == rosen(seen[-1][0])


def test_functions_cannot_change_what_the_method_holds(x0):
    def spoil(function):
        def spoilt(*args):
            value = function(*args)
            for array in args:
                array[:] = np.nan
            return value

        return spoilt

    options = {"method": hvpopt.scipy_method(), "options": {"maxiter": 6}}
    clean = scipy.optimize.minimize(
        rosen, x0, jac=rosen_der, hessp=rosen_hess_prod, **options
    )
    spoilt = scipy.optimize.minimize(
        spoil(rosen), x0, jac=spoil(rosen_der), hessp=spoil(rosen_hess_prod), **options
    )
    assert np.array_equal(clean.x, spoilt.x)


def test_method_serves_basinhopping(seed):
    known = inspect.signature(scipy.optimize.basinhopping).parameters
    random = "rng" if "rng" in known else "seed"  # its name before SciPy 1.15
    result = scipy.optimize.basinhopping(
        lambda x: float((x**4 - 3 * x**2 + x).sum()),
        np.array([1.1]),
        niter=10,
        **{random: np.random.default_rng(seed)},
        minimizer_kwargs={
            "jac": lambda x: 4 * x**3 - 6 * x + 1,
            "hessp": lambda x, p: (12 * x**2 - 6) * p,
            "bounds": [(-1.2, 1.2)],
            "method": hvpopt.scipy_method(),
        },
    )
    assert -1.2 <= result.x[0] <= 1.2
    assert result.lowest_optimization_result.success


@pytest.mark.parametrize(
    ("more", "error", "match"),
    [
        ({"jac": None}, ValueError, "jac is None"),
        ({"jac": "2-point"}, ValueError, "the gradient is needed"),
        ({"hess": scipy.optimize.BFGS()}, TypeError, "hess is a BFGS"),
        ({"hess": lambda _: np.eye(3)}, ValueError, r"hess returned shape \(3, 3\)"),
        ({"hessp": lambda _, p: p[:2]}, ValueError, r"hessp returned shape \(2,\)"),
        ({"jac": lambda x: x[:2]}, ValueError, r"jac returned shape \(2,\)"),
        ({"bounds": [(0, 1)]}, ValueError, "8 pairs"),
        ({"bounds": scipy.optimize.Bounds([0, 1], 2)}, ValueError, r"shape \(2,\)"),
        ({"bounds": [(1, 0)] * N}, ValueError, "lower bound is above"),
        (
            {"constraints": {"type": "eq", "fun": np.sum}},
            ValueError,
            "no constraints",
        ),
        (
            {"constraints": scipy.optimize.LinearConstraint(np.eye(N))},
            ValueError,
            "no constraints",
        ),
        ({"tol": 2.0}, ValueError, "gtol is 2.0"),
    ],
)
def test_wrong_input_is_refused(x0, more, error, match):
    options = {"jac": rosen_der, "method": hvpopt.scipy_method(), **more}
    with pytest.raises(error, match=match):
        scipy.optimize.minimize(rosen, x0, **options)


def test_fun_must_return_a_number(x0):
    with pytest.raises(ValueError, match=r"fun returned shape \(8,\)"):
        scipy.optimize.minimize(
            lambda x: x, x0, jac=rosen_der, method=hvpopt.scipy_method()
        )


def test_gauss_newton_of_plain_functions_is_refused(x0):
    method = hvpopt.TrustRegionNewton(hessian="gauss-newton")
    with pytest.raises(ValueError, match="no Gauss-Newton"):
        scipy.optimize.minimize(
            rosen, x0, jac=rosen_der, method=hvpopt.scipy_method(method)
        )


def test_unknown_options_are_said():
    with pytest.raises(TypeError, match=r"unknown options \['maxit'\]"):
        hvpopt.scipy_method(maxit=3)
    with pytest.warns(scipy.optimize.OptimizeWarning, match="'maxfev'"):
        scipy.optimize.minimize(
            rosen,
            np.ones(2),
            jac=rosen_der,
            method=hvpopt.scipy_method(),
            options={"maxfev": 3},
        )


# -- as_scipy -------------------------------------------------------------------------


def bent(a, b):
    """Two parameters of different units, shapes and dtypes; not convex."""
    u, v = a / 2.0, b.double() / 1e3
    return ((u**2 - 1) ** 2).sum() + ((v - u.mean()) ** 2).sum() + u[0, 0] * v[1] ** 2


@pytest.fixture
def model(generator):
    a = torch.rand(2, 3, generator=generator, dtype=torch.float64) + 1.0
    b = 1e3 * torch.rand(4, generator=generator)
    return {"a": a, "b": b}


def test_flat_functions_are_those_of_the_scaled_free_cells(model, generator):
    model = {name: t.double() for name, t in model.items()}
    mask = {"a": torch.rand(2, 3, generator=generator) < 0.7}
    mask["a"][0, 0] = True
    scale = {"b": 1e3}
    p = hvpopt.as_scipy(bent, model, mask=mask, scale=scale)
    factor = torch.cat([torch.ones(6), torch.full((4,), 1e3)]).double()
    keep = torch.cat([mask["a"].reshape(-1), torch.ones(4, dtype=torch.bool)])
    full = torch.cat([t.reshape(-1) for t in model.values()])

    def flat(z):
        cells = full.index_put((keep.nonzero()[:, 0],), z * factor[keep])
        return bent(cells[:6].reshape(2, 3), cells[6:])

    z = torch.as_tensor(p.x0)
    assert torch.allclose(z, (full / factor)[keep], rtol=tolerances.ROUNDING)
    gradient = torch.autograd.functional.jacobian(flat, z)
    hessian = torch.autograd.functional.hessian(flat, z)
    w = torch.randn(len(z), generator=generator, dtype=torch.float64)
    assert p.fun(p.x0) == pytest.approx(float(flat(z)), rel=tolerances.GRADIENT)
    error = np.linalg.norm(p.jac(p.x0) - gradient.numpy())
    assert error <= tolerances.PRODUCT * float(gradient.norm())
    error = np.linalg.norm(p.hessp(p.x0, w.numpy()) - (hessian @ w).numpy())
    assert error <= tolerances.PRODUCT * float((hessian @ w).norm())
    back = p.to_model(p.x0)
    assert set(back) == {"a", "b"}
    assert torch.allclose(back["b"], model["b"], rtol=1e-15)


METHODS = ["Newton-CG", "trust-ncg", "trust-krylov"]


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_scipys_method_costs_what_it_asked_for(x0, method, together):
    # from one start in 200 that is farther away SciPy's Newton-CG gets nowhere
    p = hvpopt.as_scipy(rosenbrock, torch.as_tensor(0.5 + x0 / 2))
    hessp = counted(p.hessp)
    both = {"fun": counted(p.fun_and_jac), "jac": True}
    apart = {"fun": counted(p.fun), "jac": counted(p.jac)}
    result = scipy.optimize.minimize(
        **(both if together else apart),
        x0=p.x0,
        hessp=hessp,
        method=method,
        options={"maxiter": 200, "xtol" if method == "Newton-CG" else "gtol": 1e-5},
    )
    own = scipy.optimize.minimize(
        rosen, result.x, jac=rosen_der, hess=rosen_hess, method="trust-exact"
    )
    assert result.success
    assert float(np.linalg.norm(rosen_der(result.x))) < 1e-2
    # Newton-CG stops by the length of its step, not by the value
    assert result.fun == pytest.approx(own.fun, abs=1e-4)
    assert p.counts.products == hessp.calls
    # of the trust-region methods SciPy counts one Hessian that it never asks for
    assert result.nhev - (method != "Newton-CG") == p.counts.products
    if together:
        assert p.counts.values == 0
        assert p.counts.gradients <= both["fun"].calls
    else:
        assert p.counts.values <= result.nfev
        assert p.counts.gradients == result.njev


def test_bounded_method_of_scipy_meets_hvpopts_minimum(model):
    options = {"lower": {"a": 0.5, "b": 0.0}, "upper": {"a": 3.0}, "scale": {"b": 1e3}}
    p = hvpopt.as_scipy(bent, model, **options, hessian=None)
    result = scipy.optimize.minimize(
        p.fun_and_jac, p.x0, jac=True, bounds=p.bounds, method="L-BFGS-B"
    )
    ours = hvpopt.minimize(bent, p.to_model(result.x), **options)
    assert result.fun == pytest.approx(ours.fun, rel=1e-4)
    assert p.bounds.lb.tolist() == [0.5] * 6 + [0.0] * 4
    assert p.bounds.ub.tolist() == [3.0] * 6 + [np.inf] * 4
    found = p.to_model(result.x)
    assert (found["a"].dtype, found["b"].dtype) == (torch.float64, torch.float32)


def test_trust_constr_takes_products_and_bounds(x0):
    p = hvpopt.as_scipy(
        rosenbrock, torch.as_tensor(x0.clip(max=0.7)), lower=-1.0, upper=0.7
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # trust-constr's own
        result = scipy.optimize.minimize(
            p.fun,
            p.x0,
            jac=p.jac,
            hessp=p.hessp,
            bounds=p.bounds,
            method="trust-constr",
            options={"gtol": 1e-8, "xtol": 1e-12, "maxiter": 500},
        )
    ours = hvpopt.minimize(
        rosenbrock, p.to_model(result.x.clip(-1.0, 0.7)), lower=-1.0, upper=0.7
    )
    assert result.fun == pytest.approx(ours.fun, rel=1e-4)


def spent(p):
    return p.counts.values, p.counts.gradients, p.counts.products


def test_what_is_known_costs_nothing(x0):
    p = hvpopt.as_scipy(rosenbrock, torch.as_tensor(x0))
    other = p.x0 + 0.1
    steps = [
        (lambda: p.fun(p.x0), (1, 0, 0)),
        (lambda: p.fun(p.x0), (1, 0, 0)),
        (lambda: p.jac(p.x0), (1, 1, 0)),
        (lambda: p.fun(p.x0), (1, 1, 0)),
        (lambda: p.fun_and_jac(p.x0), (1, 1, 0)),
        (lambda: p.hessp(p.x0, other), (1, 1, 1)),
        (lambda: p.fun(other), (2, 1, 1)),  # a trial ...
        (lambda: p.hessp(p.x0, other), (2, 1, 2)),  # ... refused
        (lambda: p.fun_and_jac(other), (2, 2, 2)),  # one with its gradient ...
        (lambda: p.hessp(p.x0, other), (2, 2, 3)),  # ... refused
        (lambda: p.fun(other), (2, 2, 3)),
        (lambda: p.hessp(other, other), (2, 2, 4)),
        (lambda: p.jac(p.x0), (2, 3, 4)),  # left behind
    ]
    for ask, cost in steps:
        ask()
        assert spent(p) == cost


def test_operators_left_behind_are_closed(x0):
    made = []

    class Watched(hvpopt.TorchObjective):
        def hessian(self, *args, **kwargs):
            made.append(super().hessian(*args, **kwargs))
            return made[-1]

    def is_open():
        return [operator._graph is not None for operator in made]

    p = hvpopt.as_scipy(Watched(rosenbrock), torch.as_tensor(x0))
    a, b, c = p.x0, p.x0 + 0.1, p.x0 + 0.2
    p.hessp(a, a)
    p.jac(b)
    p.jac(c)
    assert is_open() == [True, False, True]
    p.hessp(c, a)
    assert is_open() == [False, False, True]
    p.jac(a)
    p.close()
    assert is_open() == [False] * 4
    assert p.hessp(a, a).shape == (N,)


def test_answers_are_the_callers_own(x0):
    p = hvpopt.as_scipy(rosenbrock, torch.as_tensor(x0))
    p.jac(p.x0)[:] = np.nan
    x = p.x0.copy()
    p.fun_and_jac(x)[1][:] = np.nan
    p.hessp(x, x)[:] = np.nan
    x[:] = 0.0
    assert np.isfinite(p.jac(p.x0)).all()
    assert p.fun(x) == rosen(x), "x was changed in place: another point"
    assert p.bounds is None


def test_gauss_newton_products_where_the_objective_has_them(x0):
    convex = hvpopt.TorchObjective(lambda x: (x**4).sum(), convex=True)
    p = hvpopt.as_scipy(convex, torch.as_tensor(x0), hessian="gauss-newton")
    w = np.ones(N)
    error = np.abs(p.hessp(x0, w) - 12 * x0**2).max()
    assert error <= tolerances.PRODUCT * 12 * (x0**2).max()


def test_wrong_problems_are_refused(x0):
    start = torch.as_tensor(x0)
    with pytest.raises(ValueError, match="hessian is 'newton'"):
        hvpopt.as_scipy(rosenbrock, start, hessian="newton")
    p = hvpopt.as_scipy(rosenbrock, start, hessian=None)
    with pytest.raises(ValueError, match="hessian=None"):
        p.hessp(x0, x0)
    with pytest.raises(ValueError, match=r"shape \(3,\), expected \(8,\)"):
        p.fun(np.ones(3))
    with pytest.raises(TypeError, match="cannot be called"):
        hvpopt.as_scipy(3.0, start)
