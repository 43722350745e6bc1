"""Parameterisations against deepwave, interpolate and double-backward checks, float64."""

import deepwave
import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from hvpopt import ModelSpace
from hvpopt.fwi import (
    Chain,
    CoarseGrid,
    Log,
    Parameterisation,
    SlownessSquared,
    SubRegion,
    VpVsRho,
)

# torch's own rules for forward-mode derivatives are compiled with torch.jit
forward_mode = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")

F64 = torch.float64
RTOL = 1e-12


def close(a, b, rtol=RTOL):
    torch.testing.assert_close(a, b, rtol=rtol, atol=0.0)


def random(*shape, low=0.5, high=1.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(shape, dtype=F64, generator=generator)


def solid(shape=(3, 2)):
    return {
        "vp": random(*shape, low=2000.0, high=4000.0),
        "vs": random(*shape, low=500.0, high=1500.0, seed=1),
        "rho": random(*shape, low=1800.0, high=2600.0, seed=2),
    }


def background(*shape):
    return random(*shape, low=1500.0, high=3000.0, seed=3)


MASK = torch.tensor([[True, False, True], [False, True, False]])
TENSOR_MAPS = {
    "slowness": (SlownessSquared(), (2, 3)),
    "slowness reference": (SlownessSquared(2000.0), (2, 3)),
    "log": (Log(), (2, 3)),
    "log reference": (Log(2000.0), (2, 3)),
    "slices": (SubRegion(background(4, 5), np.s_[1:3, ::2]), (2, 3)),
    "mask": (SubRegion(background(2, 3), MASK), (3,)),
    "linear 1-D": (CoarseGrid((3,), (7,)), (3,)),
    "linear 2-D": (CoarseGrid((2, 3), (5, 4)), (2, 3)),
    "linear 3-D": (CoarseGrid((2, 3, 2), (3, 4, 4)), (2, 3, 2)),
    "cubic 1-D": (CoarseGrid((5,), (9,), "cubic"), (5,)),
    "cubic 2-D": (CoarseGrid((4, 3), (6, 5), "cubic"), (4, 3)),
    "chain": (
        CoarseGrid((2, 3), (3, 5)) >> SlownessSquared() >> SubRegion(
            background(4, 6), np.s_[1:, :5]
        ),
        (2, 3),
    ),
}  # fmt: skip
tensor_maps = pytest.mark.parametrize(
    ("function", "shape"), TENSOR_MAPS.values(), ids=TENSOR_MAPS
)


class TestDerivatives:
    @tensor_maps
    def test_double_backward(self, function, shape):
        u = random(*shape).requires_grad_()
        assert gradcheck(function, (u,))
        assert gradgradcheck(function, (u,))

    def test_double_backward_of_vpvsrho(self):
        # of order one, so that differences are exact enough for gradgradcheck
        vp, vs, rho = (
            random(2, 2, low=low, high=low + 0.3, seed=seed).requires_grad_()
            for seed, low in enumerate((2.0, 0.5, 1.0))
        )

        def models(vp, vs, rho):
            return tuple(VpVsRho()(vp, vs, rho).values())

        assert gradcheck(models, (vp, vs, rho))
        assert gradgradcheck(models, (vp, vs, rho))

    @forward_mode
    @tensor_maps
    def test_jvp_is_the_transpose_of_backward(self, function, shape):
        u, w = random(*shape), random(*shape, low=-1.0, seed=5)
        leaf = u.clone().requires_grad_()
        v = function(leaf)
        dual = torch.zeros_like(v, requires_grad=True)
        (row,) = torch.autograd.grad(v, leaf, dual, create_graph=True)
        (by_double_vjp,) = torch.autograd.grad(row, dual, w)
        _, by_jvp = torch.func.jvp(function, (u,), (w,))
        torch.testing.assert_close(by_jvp, by_double_vjp, rtol=RTOL, atol=1e-12)

    @forward_mode
    @tensor_maps
    def test_hessian_transform(self, function, shape):
        def loss(u):
            return (function(u) ** 2).sum()

        u = random(*shape)
        by_transform = torch.func.hessian(loss)(u)
        by_backward = torch.autograd.functional.hessian(loss, u)
        scale = float(by_backward.abs().max())
        torch.testing.assert_close(by_transform, by_backward, rtol=0, atol=RTOL * scale)

    @tensor_maps
    def test_call_changes_nothing_and_returns_fresh_memory(self, function, shape):
        u = random(*shape)
        before, first = u.clone(), function(u)
        first.mul_(0)
        assert torch.equal(u, before)
        assert float(function(u).abs().sum()) > 0

    @tensor_maps
    def test_follows_dtype(self, function, shape):
        assert function(random(*shape).float()).dtype == torch.float32


class TestInverse:
    @tensor_maps
    def test_unknowns(self, function, shape):
        u = random(*shape)
        close(function.unknowns(function(u)), u)

    def test_no_graph(self):
        v = background(2, 3).requires_grad_()
        assert not SlownessSquared().unknowns(v).requires_grad

    def test_vpvsrho(self):
        unknowns = solid()
        found = VpVsRho().unknowns(VpVsRho()(**unknowns))
        assert list(found) == ["vp", "vs", "rho"]
        for name, tensor in unknowns.items():
            close(found[name], tensor)

    def test_least_squares_of_any_model(self):
        function, model = CoarseGrid((2, 3), (4, 5)), random(4, 5)
        u = function.unknowns(model).requires_grad_()
        misfit = (function(u) - model).pow(2).sum()
        (gradient,) = torch.autograd.grad(misfit, u)
        assert float(gradient.abs().max()) < 1e-12

    def test_chain_with_a_plain_function(self):
        chain = SlownessSquared() >> torch.square
        with pytest.raises(TypeError, match=r"plain function without inverse"):
            chain.unknowns(background(2))
        with pytest.raises(TypeError, match=r"plain function without bounds"):
            chain.bounds(1.0, 2.0)


class TestValues:
    def test_slowness(self):
        close(
            SlownessSquared()(torch.tensor([2.5e-7], dtype=F64)),
            torch.tensor([2000.0], dtype=F64),
        )
        close(
            SlownessSquared(1500.0).unknowns(torch.tensor([1500.0, 3000.0])),
            torch.tensor([1.0, 0.25]),
        )

    def test_log(self):
        close(Log(1500.0)(torch.zeros(2, dtype=F64)), torch.full((2,), 1500.0, dtype=F64))

    def test_arrangement_is_kept(self):
        a, b = random(2), random(2, seed=1)
        as_tuple = Log()(a, b)
        assert isinstance(as_tuple, tuple)
        close(as_tuple[1], b.exp())
        as_dict = Log()(vp=a, vs=b)
        assert list(as_dict) == ["vp", "vs"]
        close(as_dict["vs"], b.exp())

    def test_vpvsrho_is_deepwaves(self):
        unknowns = solid()
        found = VpVsRho()(**unknowns)
        assert list(found) == ["lamb", "mu", "buoyancy"]
        for a, b in zip(
            found.values(), deepwave.vpvsrho_to_lambmubuoyancy(**unknowns), strict=True
        ):
            close(a, b)

    def test_vpvsrho_fluid(self):
        unknowns = solid() | {"vs": torch.zeros(3, 2, dtype=F64)}
        assert float(VpVsRho()(**unknowns)["mu"].abs().max()) == 0.0

    def test_sub_region_of_a_tensor(self):
        whole = background(4, 5)
        region = SubRegion(whole, np.s_[1:3, ...])
        u = random(2, 5)
        expected = whole.clone()
        expected[1:3] = u
        assert region.shape == (2, 5)
        assert torch.equal(region(u), expected)
        # neither the background's owner nor a result can change the map
        kept = region(u)
        whole.zero_()
        assert torch.equal(region(u), kept)

    def test_sub_region_of_a_dict(self):
        whole = solid((2, 3))
        region = SubRegion(whole, MASK)
        unknowns = {name: t[MASK] * 1.1 for name, t in whole.items()}
        for name, tensor in region(**unknowns).items():
            assert torch.equal(tensor[MASK], unknowns[name])
            assert torch.equal(tensor[~MASK], whole[name][~MASK])

    @pytest.mark.parametrize(
        ("coarse", "fine", "mode"),
        [
            ((4,), (9,), "linear"),
            ((4, 3), (7, 11), "bilinear"),
            ((3, 4, 2), (5, 6, 7), "trilinear"),
            ((1, 3), (4, 6), "bilinear"),
        ],
    )
    def test_linear_is_torchs(self, coarse, fine, mode):
        u = random(*coarse)
        expected = torch.nn.functional.interpolate(
            u[None, None], size=fine, mode=mode, align_corners=True
        )[0, 0]
        close(CoarseGrid(coarse, fine)(u), expected)

    def test_cubic_reproduces_a_cubic(self):
        def cubic(n):
            x = torch.linspace(-1, 2, n, dtype=F64)
            return (x**3 - x)[:, None] + (x**2)[None]

        found = CoarseGrid((5, 5), (13, 13), "cubic")(cubic(5))
        torch.testing.assert_close(found, cubic(13), rtol=RTOL, atol=1e-12)

    def test_chain_to_elastic_with_a_vacuum(self):
        whole = VpVsRho()(**solid((3, 3)))
        whole["buoyancy"][0] = 0.0
        chain = Log() >> VpVsRho() >> SubRegion(whole, np.s_[1:])
        unknowns = {name: t.log() for name, t in solid((2, 3)).items()}
        model = chain(**unknowns)
        assert float(model["buoyancy"][0].abs().max()) == 0.0
        close(model["mu"][1:], VpVsRho()(**solid((2, 3)))["mu"])
        back = chain.unknowns(model)
        close(back["vs"], unknowns["vs"])

    def test_chain_is_flat_and_starts_with_any_function(self):
        chain = torch.abs >> Log() >> SlownessSquared() >> Log()
        assert isinstance(chain, Chain)
        assert len(chain.links) == 4
        u = random(3)
        close(chain(-u), SlownessSquared()(u.exp()).exp())


class TestBounds:
    def test_decreasing_map_swaps(self):
        lower, upper = SlownessSquared().bounds(1500.0, 4000.0)
        assert float(lower) == 4000.0**-2
        assert float(upper) == 1500.0**-2
        lower, upper = SlownessSquared().bounds(lower=0.0)
        assert lower is None
        assert float(upper) == float("inf")

    def test_log(self):
        lower, upper = Log(1500.0).bounds({"vp": 1500.0}, {"vp": 3000.0, "vs": None})
        assert lower == {"vp": 0.0}
        assert float(upper["vp"]) == pytest.approx(np.log(2))
        assert upper["vs"] is None

    def test_per_cell_and_sequence(self):
        limits = torch.tensor([1000.0, 2000.0])
        lower, upper = SlownessSquared(1000.0).bounds((limits, None), 4000.0)
        assert float(lower) == 1 / 16
        close(upper[0], torch.tensor([1.0, 0.25], dtype=F64))
        assert upper[1] is None

    @pytest.mark.parametrize("dtype", [torch.float32, F64])
    @pytest.mark.parametrize(
        "function", [SlownessSquared(), Log(), SlownessSquared(1700.0)]
    )
    def test_a_model_at_its_bounds_has_unknowns_inside(self, function, dtype):
        v = torch.tensor([1500.125, 1811.0, 4700.5], dtype=dtype)
        lower, upper = function.bounds(1500.125, 4700.5)
        space = ModelSpace(function.unknowns(v), lower=lower, upper=upper)
        assert space.size == 3

    def test_chain_over_a_region_and_a_coarse_grid(self):
        chain = CoarseGrid((2,), (3,)) >> Log() >> SubRegion(background(5), slice(1, 4))
        assert [float(b) for b in chain.bounds(1.0, np.e)] == [0.0, 1.0]

    def test_region_cuts_tensors(self):
        region = SubRegion(background(4, 5), np.s_[1:3, 2:])
        lower, upper = region.bounds(torch.arange(5.0), 9.0)
        assert torch.equal(lower, torch.arange(2.0, 5.0).expand(2, 3))
        assert upper == 9.0

    @pytest.mark.parametrize(
        ("function", "bound", "words"),
        [
            (VpVsRho(), 1.0, "not monotone"),
            (CoarseGrid((3,), (5,), "cubic"), 1.0, "not monotone"),
            (CoarseGrid((3,), (5,)), torch.ones(5), "one number per parameter"),
            (Log(), -1.0, "use 0 or more"),
        ],
    )
    def test_refused(self, function, bound, words):
        with pytest.raises(ValueError, match=words):
            function.bounds(bound, bound)


class TestErrors:
    @pytest.mark.parametrize("kind", [SlownessSquared, Log])
    @pytest.mark.parametrize("reference", [0.0, -1.0, float("nan"), float("inf")])
    def test_reference(self, kind, reference):
        with pytest.raises(ValueError, match=r"reference is .*positive and finite"):
            kind(reference)

    def test_slowness_not_positive(self):
        u = torch.tensor([[1.0, 2.0], [0.0, float("nan")]])
        with pytest.raises(ValueError, match=r"2 of 4 cells.*\(1, 0\) with 0.*bound"):
            SlownessSquared()(u)

    @pytest.mark.parametrize("function", [SlownessSquared(), Log()])
    def test_model_not_positive(self, function):
        with pytest.raises(ValueError, match="must be positive and finite"):
            function.unknowns(torch.tensor([-1.0]))

    @pytest.mark.parametrize(
        ("name", "value", "words"),
        [
            ("rho", 0.0, "'rho' must be positive"),
            ("vs", -1.0, "'vs' must be 0 or more"),
            ("vs", 3900.0, "'vp' must be above vs"),
            ("vp", float("nan"), "'vp' must be above vs"),
        ],
    )
    def test_not_physical(self, name, value, words):
        unknowns = solid()
        unknowns[name][1, 1] = value
        with pytest.raises(ValueError, match=words):
            VpVsRho()(**unknowns)

    @pytest.mark.parametrize(
        ("name", "value"), [("buoyancy", 0.0), ("mu", -1.0), ("lamb", -1e12)]
    )
    def test_not_physical_models(self, name, value):
        model = VpVsRho()(**solid())
        model[name][1, 1] = value
        with pytest.raises(ValueError, match=f"{name!r} must be .*1 of 6 cells"):
            VpVsRho().unknowns(model)

    def test_vpvsrho_shapes_and_names(self):
        unknowns = solid()
        with pytest.raises(ValueError, match="give all three the shape"):
            VpVsRho()(unknowns["vp"], unknowns["vs"][:1], unknowns["rho"])
        with pytest.raises(ValueError, match="expected a dict of"):
            VpVsRho().unknowns(unknowns)

    def test_calls(self):
        a = random(2)
        with pytest.raises(TypeError, match="not both"):
            Log()(a, vs=a)
        with pytest.raises(TypeError, match=r"f\(\*\*unknowns\)"):
            Log()({"vp": a})
        with pytest.raises(TypeError, match="at least one tensor"):
            Log()()

    @pytest.mark.parametrize(
        ("region", "error", "words"),
        [
            (torch.ones(3, 2, dtype=torch.bool), ValueError, r"mask has shape \(3, 2\)"),
            (torch.ones(2, 3), TypeError, "a mask is boolean"),
            (np.s_[5:], ValueError, "holds no cell"),
            (7, ValueError, "does not fit a background"),
            (np.s_[:, :, :], ValueError, "does not fit a background"),
            ([0, 1], TypeError, "use a boolean mask, or slices"),
        ],
    )
    def test_region(self, region, error, words):
        with pytest.raises(error, match=words):
            SubRegion(background(2, 3), region)

    def test_backgrounds(self):
        with pytest.raises(ValueError, match="needs one shape"):
            SubRegion({"vp": background(2), "vs": background(3)}, slice(1))
        with pytest.raises(ValueError, match="must be finite"):
            SubRegion(torch.tensor([1.0, float("nan")]), slice(1))

    def test_shapes(self):
        region = SubRegion(background(4), slice(1, 3))
        with pytest.raises(ValueError, match=r"shape \(3,\), unknowns of this region"):
            region(random(3))
        with pytest.raises(ValueError, match=r"this background needs \(4,\)"):
            region.unknowns(random(3))
        with pytest.raises(ValueError, match="the background has"):
            region(vp=random(2))
        grid = CoarseGrid((2,), (4,))
        with pytest.raises(ValueError, match=r"the coarse grid needs \(2,\)"):
            grid(random(4))
        with pytest.raises(ValueError, match=r"the fine grid needs \(4,\)"):
            grid.unknowns(random(2))

    @pytest.mark.parametrize(
        ("coarse", "fine"), [((5,), (4,)), ((2, 2), (4,)), ((0,), (4,))]
    )
    def test_grids(self, coarse, fine):
        with pytest.raises(ValueError, match="needs as many axes"):
            CoarseGrid(coarse, fine)

    def test_kind(self):
        with pytest.raises(ValueError, match="'linear' or 'cubic'"):
            CoarseGrid((2,), (4,), "nearest")

    def test_chains(self):
        with pytest.raises(TypeError, match="cannot be called"):
            Chain(Log(), 3)
        with pytest.raises(ValueError, match="at least one link"):
            Chain()

    def test_a_map_is_a_parameterisation(self):
        assert all(isinstance(f, Parameterisation) for f, _ in TENSOR_MAPS.values())
