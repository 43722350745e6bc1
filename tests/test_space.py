"""ModelSpace: round trips, scale, mask, bounds, and nobody's memory shared."""

import pytest
import torch
from tolerances import PRODUCT, ROUNDING, SOLVE

import hvpopt
from hvpopt import ModelSpace
from hvpopt.model.tensors import named_tensors

F64, F32 = torch.float64, torch.float32


def draw(generator, *shape, dtype=F64):
    return torch.randn(shape, generator=generator, dtype=F64).to(dtype)


def arrangement(kind, generator):
    """Return a model of one of the arrangements that a ModelSpace takes."""
    return {
        "scalar": lambda: draw(generator),
        "vector": lambda: draw(generator, 7),
        "matrix": lambda: draw(generator, 3, 5),
        "transposed": lambda: draw(generator, 5, 3).mT,
        "float32": lambda: draw(generator, 4, 2, dtype=F32),
        "tuple": lambda: (draw(generator, 3, 4), draw(generator), draw(generator, 6)),
        "mixed": lambda: (draw(generator, 2, 3, 2, dtype=F32), draw(generator, 5)),
        "dict": lambda: {
            "vp": draw(generator, 3, 4, dtype=F32),
            "rho": draw(generator, 2),
            "q": draw(generator, 1, 3),
        },
    }[kind]()


KINDS = ("scalar", "vector", "matrix", "transposed", "float32", "tuple", "mixed", "dict")
MULTIPLE = ("tuple", "mixed", "dict")


@pytest.fixture(params=KINDS)
def model(request, generator):
    return arrangement(request.param, generator)


def tensors(model):
    return list(named_tensors(model).values())


def assemble(like, values):
    if isinstance(like, torch.Tensor):
        return values[0]
    return (
        dict(zip(like, values, strict=True)) if isinstance(like, dict) else tuple(values)
    )


def like(model, make):
    return assemble(model, [make(t) for t in tensors(model)])


def flat(model):
    return torch.cat([t.detach().reshape(-1).to(F64) for t in tensors(model)])


def random_scale(model, generator):
    def one(t):
        return 10.0 ** (4 * torch.rand(t.shape, generator=generator, dtype=F64) - 2)

    return like(model, one)


def random_mask(model, generator):
    masks = [torch.rand(t.shape, generator=generator) < 0.6 for t in tensors(model)]
    masks[0].reshape(-1)[0] = True
    return assemble(model, masks)


def flat_mask(mask):
    return torch.cat([m.reshape(-1) for m in tensors(mask)])


def assert_same(a, b):
    assert type(a) is type(b)
    assert list(named_tensors(a)) == list(named_tensors(b))
    for x, y in zip(tensors(a), tensors(b), strict=True):
        assert x.dtype == y.dtype
        assert torch.equal(x, y)


def storages(*things):
    found = set()
    for thing in things:
        if thing is not None:
            found |= {t.untyped_storage().data_ptr() for t in tensors(thing)}
    return found


# -- round trips --------------------------------------------------------------------


def test_round_trip_returns_values_shapes_dtypes_and_arrangement(model):
    space = ModelSpace(model)
    vector = space.to_vector(model)
    assert vector.dtype == F64
    assert vector.shape == (space.size,)
    assert_same(space.to_model(vector), model)


def test_flat_vector_is_the_parameters_in_order(model):
    assert torch.equal(ModelSpace(model).to_vector(model), flat(model))


def test_step_and_gradient_round_trip(model, generator):
    space = ModelSpace(model, scale=random_scale(model, generator))
    vector = draw(generator, space.size)
    if all(t.dtype is F64 for t in tensors(model)):
        step = space.step_to_vector(space.step_to_model(vector))
        gradient = space.gradient_to_vector(space.gradient_to_model(vector))
        torch.testing.assert_close(step, vector, rtol=ROUNDING, atol=0)
        torch.testing.assert_close(gradient, vector, rtol=ROUNDING, atol=0)
    assert [t.dtype for t in tensors(space.gradient_to_model(vector))] == [
        t.dtype for t in tensors(model)
    ]


def test_dict_may_be_given_in_another_order(generator):
    model = arrangement("dict", generator)
    turned = dict(reversed(model.items()))
    space = ModelSpace(model)
    assert torch.equal(space.to_vector(turned), space.to_vector(model))


def test_flat_vectors_may_be_float32():
    space = ModelSpace(torch.ones(3, dtype=F64), scale=2.0, dtype=F32)
    vector = space.to_vector(torch.ones(3, dtype=F64))
    assert vector.dtype == F32
    assert space.to_model(vector).dtype == F64


# -- scale --------------------------------------------------------------------------


def test_scale_divides_points_and_steps_and_multiplies_gradients(model, generator):
    scale = random_scale(model, generator)
    space = ModelSpace(model, scale=scale)
    s = torch.cat(
        [
            x.to(t.dtype).to(F64).reshape(-1)
            for x, t in zip(tensors(scale), tensors(model), strict=True)
        ]
    )
    assert torch.equal(space.scale, s)
    assert torch.equal(space.to_vector(model), flat(model) / s)
    assert torch.equal(space.step_to_vector(model), flat(model) / s)
    assert torch.equal(space.gradient_to_vector(model), flat(model) * s)


def test_scale_may_be_one_number_one_per_parameter_or_named():
    model = {"vp": torch.ones(2, dtype=F64), "rho": torch.ones(1, dtype=F64)}
    one = ModelSpace(model, scale=3.0)
    listed = ModelSpace(model, scale=[0.1, None])
    named = ModelSpace(model, scale={"rho": torch.tensor([7.0])})
    assert one.scale.tolist() == [3.0, 3.0, 3.0]
    assert listed.scale.tolist() == [0.1, 0.1, 1.0]
    assert named.scale.tolist() == [1.0, 1.0, 7.0]


def coupled(*parameters):
    u = torch.cat([p.reshape(-1) for p in parameters])
    ramp = torch.linspace(0.2, 1.4, u.numel(), dtype=u.dtype)
    return torch.log(torch.cosh(u * ramp + u.sum())).sum() + (u**4).mean() + u @ u


def coupled_loss(model):
    if isinstance(model, dict):
        return lambda **named: coupled(*named.values())
    return coupled


def float64(kind, generator):
    return like(arrangement(kind, generator), lambda t: t.to(F64))


@pytest.mark.parametrize("kind", KINDS)
def test_scale_changes_no_model_shaped_value_gradient_or_product(kind, generator):
    model = float64(kind, generator)
    step = like(model, lambda t: draw(generator, *t.shape))
    scaled = ModelSpace(model, scale=random_scale(model, generator))
    loss = coupled_loss(model)
    H, K = (
        hvpopt.HessianOperator(loss, model),
        hvpopt.HessianOperator(loss, model, space=scaled),
    )
    assert K.value == H.value
    assert torch.equal(flat(K.gradient), flat(H.gradient))
    plain, product = flat(H @ step), flat(K @ step)
    assert float((product - plain).norm() / plain.norm()) < PRODUCT


@pytest.mark.parametrize("kind", MULTIPLE)
def test_scale_changes_no_exact_newton_step(kind, generator):
    model = float64(kind, generator)
    loss = coupled_loss(model)

    def newton_step(space):
        H = hvpopt.HessianOperator(loss, model, space=space)
        gradient = space.gradient_to_vector(H.gradient)
        vector = torch.linalg.solve(H.to_dense(), -gradient)
        return flat(space.step_to_model(vector))

    plain = newton_step(ModelSpace(model))
    scale = like(model, lambda t: 0.1 + torch.rand(t.shape, generator=generator).double())
    scaled = newton_step(ModelSpace(model, scale=scale))
    assert float((scaled - plain).norm() / plain.norm()) < SOLVE


def test_flat_gradient_and_hessian_are_those_of_the_composed_loss(generator):
    model = float64("dict", generator)
    loss = coupled_loss(model)
    scale, mask = random_scale(model, generator), random_mask(model, generator)
    space = ModelSpace(model, scale=scale, mask=mask)
    free, s, m = flat_mask(mask), flat(scale), flat(model)

    def composed(z):
        cells = m.clone()
        cells = cells.masked_scatter(free, z * s[free])
        parts = cells.split([t.numel() for t in tensors(model)])
        return loss(
            **{n: p.reshape(model[n].shape) for n, p in zip(model, parts, strict=True)}
        )

    z = space.to_vector(model)
    H = hvpopt.HessianOperator(loss, model, space=space)
    gradient = torch.autograd.functional.jacobian(composed, z)
    hessian = torch.autograd.functional.hessian(composed, z)
    mine = space.gradient_to_vector(H.gradient)
    assert float((mine - gradient).norm() / gradient.norm()) < PRODUCT
    assert float((H.to_dense() - hessian).norm() / hessian.norm()) < PRODUCT


# -- mask ---------------------------------------------------------------------------


def test_frozen_cells_keep_their_first_values_and_take_no_step(model, generator):
    mask = random_mask(model, generator)
    space = ModelSpace(model, mask=mask)
    free = flat_mask(mask)
    vector = draw(generator, space.size)
    assert space.size == int(free.sum())
    assert torch.equal(flat(space.to_model(vector))[~free], flat(model)[~free])
    for shaped in (space.step_to_model(vector), space.gradient_to_model(vector)):
        assert not flat(shaped)[~free].any()


def test_free_cells_round_trip_beside_frozen_ones(model, generator):
    mask = random_mask(model, generator)
    space = ModelSpace(model, mask=mask)
    assert torch.equal(space.to_vector(model), flat(model)[flat_mask(mask)])
    assert_same(space.to_model(space.to_vector(model)), model)


def test_free_has_the_mask_of_each_parameter(model, generator):
    mask = random_mask(model, generator)
    found = ModelSpace(model, mask=mask).free
    everywhere = ModelSpace(model).free
    for name, m in named_tensors(mask).items():
        assert torch.equal(found[name], m)
        assert bool(everywhere[name].all())
    found[name].logical_not_()
    assert torch.equal(ModelSpace(model, mask=mask).free[name], m)


def test_mask_may_leave_parameters_out(generator):
    model = {"vp": draw(generator, 2, 2), "rho": draw(generator, 3)}
    space = ModelSpace(model, mask={"rho": torch.tensor(False)})
    assert torch.equal(space.to_vector(model), model["vp"].reshape(-1))


def test_frozen_cells_may_lie_outside_the_bounds():
    model = torch.tensor([0.0, 9.0], dtype=F64)
    space = ModelSpace(model, mask=torch.tensor([True, False]), upper=1.0)
    assert space.to_model(torch.zeros(1, dtype=F64)).tolist() == [0.0, 9.0]


# -- bounds -------------------------------------------------------------------------


def test_scalar_bound_is_the_number_given_to_the_last_bit():
    model = torch.full((2,), 0.3, dtype=F64)
    space = ModelSpace(model, lower=0.3, upper=0.7)
    assert space.lower.tolist() == [0.3, 0.3]
    assert space.upper.tolist() == [0.7, 0.7]


@pytest.mark.parametrize(
    ("lower", "expected"),
    [
        (-1.0, [-1.0] * 6),
        (torch.tensor([-1.0, -2.0, -3.0]), [-1.0, -2.0, -3.0] * 2),
        (torch.tensor([[-1.0], [-2.0]]), [-1.0] * 3 + [-2.0] * 3),
        (None, None),
        (-torch.inf, None),
    ],
)
def test_bounds_broadcast_over_a_parameter(lower, expected):
    space = ModelSpace(torch.zeros(2, 3, dtype=F64), lower=lower)
    assert (None if space.lower is None else space.lower.tolist()) == expected


@pytest.mark.parametrize(
    "upper",
    [
        (5.0, None),
        [5.0, torch.inf],
        {"vp": 5.0},
        {"vp": torch.tensor([5.0, 5.0]), "rho": None},
    ],
)
def test_bounds_per_parameter(upper):
    model = {"vp": torch.zeros(2, dtype=F64), "rho": torch.zeros(1, dtype=F64)}
    space = ModelSpace(model, upper=upper)
    assert space.upper.tolist() == [5.0, 5.0, torch.inf]


def test_bounds_of_flat_vectors_are_in_units_of_the_scale():
    space = ModelSpace(
        torch.zeros(2, dtype=F64), lower=-6.0, upper=8.0, scale=[torch.tensor([2.0, 4.0])]
    )
    assert space.lower.tolist() == [-3.0, -1.5]
    assert space.upper.tolist() == [4.0, 2.0]


def test_projection_is_the_nearest_point_inside(generator):
    model = draw(generator, 40).clamp(-1, 1)
    space = ModelSpace(model, lower=-1.0, upper=1.0)
    wild = 3 * draw(generator, 40)
    near = space.project(wild)
    assert torch.equal(near, wild.clip(-1, 1))
    assert space.inside(near)
    assert not space.inside(wild)
    assert torch.equal(space.project(near), near)


def test_unbounded_space_holds_everything(generator):
    space = ModelSpace(draw(generator, 4))
    wild = 1e300 * draw(generator, 4)
    assert not space.bounded
    assert space.inside(wild)
    assert torch.equal(space.project(wild), wild)


def test_active_mask_needs_a_bound_and_a_gradient_through_it():
    space = ModelSpace(torch.zeros(5, dtype=F64), lower=-1.0, upper=1.0)
    vector = torch.tensor([-1.0, -1.0, 0.0, 1.0, 1.0], dtype=F64)
    gradient = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0], dtype=F64)
    active = space.active_mask(vector, gradient)
    assert active.tolist() == [True, False, False, True, False]


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("scaled", [False, True])
def test_rounding_never_breaks_a_bound(dtype, scaled, generator):
    n = 2000
    lower = draw(generator, n, dtype=dtype)
    upper = lower + torch.rand(n, generator=generator).to(dtype)
    scale = 10.0 ** draw(generator, n) if scaled else None
    space = ModelSpace(lower.clone(), lower=lower, upper=upper, scale=scale)
    for wild in (1e9, -1e9):
        point = torch.full((n,), wild, dtype=F64)
        model = space.to_model(space.project(point))
        assert bool((lower <= model).all())
        assert bool((model <= upper).all())


@pytest.mark.parametrize("bound", [0.1, 0.3, 1 / 3, 1500.7])
def test_float32_model_may_sit_on_a_bound_that_float32_cannot_hold(bound):
    model = torch.full((3,), bound, dtype=F32)
    space = ModelSpace(model, lower=bound, upper=bound)
    assert torch.equal(space.to_model(space.project(space.to_vector(model))), model)


# -- memory -------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["scale", "mask", "bounds", "none"])
def test_results_share_memory_with_nothing_given(model, option, generator):
    options = {
        "scale": {"scale": random_scale(model, generator)},
        "mask": {"mask": random_mask(model, generator)},
        "bounds": {"lower": like(model, lambda t: t - 1)},
        "none": {},
    }[option]
    space = ModelSpace(model, **options)
    vector = space.to_vector(model)
    given = storages(model, vector, *options.values(), space.lower, space.scale)
    for result in (
        space.to_vector(model),
        space.to_model(vector),
        space.step_to_model(vector),
        space.step_to_vector(model),
        space.gradient_to_model(vector),
        space.gradient_to_vector(model),
    ):
        assert not storages(result) & given


def test_projection_without_bounds_is_a_copy(generator):
    space = ModelSpace(draw(generator, 4))
    vector = draw(generator, 4)
    assert not storages(space.project(vector)) & storages(vector)


def test_parameters_of_one_result_share_no_memory(generator):
    model = float64("tuple", generator)
    space = ModelSpace(model)
    result = space.to_model(space.to_vector(model))
    assert len(storages(result)) == len(result)


def test_space_keeps_nothing_of_the_callers():
    model = torch.zeros(3, dtype=F64)
    options = {
        "scale": torch.full((3,), 2.0, dtype=F64),
        "lower": torch.full((3,), -4.0, dtype=F64),
        "upper": torch.full((3,), 4.0, dtype=F64),
        "mask": torch.tensor([True, True, False]),
    }
    space = ModelSpace(model, **options)
    for tensor in (model, *options.values()):
        tensor.fill_(1)
    assert space.scale.tolist() == [2.0, 2.0]
    assert space.lower.tolist() == [-2.0, -2.0]
    assert space.upper.tolist() == [2.0, 2.0]
    assert space.to_model(torch.zeros(2, dtype=F64)).tolist() == [0.0, 0.0, 0.0]


def test_nothing_given_is_overwritten(model, generator):
    scale, mask = random_scale(model, generator), random_mask(model, generator)
    space = ModelSpace(model, scale=scale, mask=mask, lower=like(model, lambda t: t - 1))
    kept = [flat(x).clone() for x in (model, scale, mask)]
    vector = space.to_vector(model)
    before = vector.clone()
    space.to_model(vector)
    space.step_to_model(vector)
    space.gradient_to_model(vector)
    space.project(vector)
    space.active_mask(vector, vector)
    assert torch.equal(vector, before)
    for x, y in zip((model, scale, mask), kept, strict=True):
        assert torch.equal(flat(x), y)


def test_model_that_requires_grad_gives_plain_results(generator):
    model = draw(generator, 3).requires_grad_()
    space = ModelSpace(model)
    vector = space.to_vector(model)
    assert not vector.requires_grad
    assert not space.to_model(vector).requires_grad
