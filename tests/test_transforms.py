"""Transforms of the data: dense oracles, exact products, per shot, bad input."""

import copy
import io
import math
import pickle
from dataclasses import replace

import pytest
import torch
from test_encoding import every_sign
from tolerances import FLOAT32, GRADIENT, PRODUCT
from torch.autograd import functional
from transformed import (
    KINDS,
    T_END,
    chain,
    made_with,
    streamer,
    times,
    transforms_of,
)
from waves import (
    NT,
    D,
    arguments,
    models_of,
    one_thread,
    perturbed,
    plain,
    rand,
    random_step,
    relative,
    single,
    survey,
)

import hvpopt
from hvpopt import distributed
from hvpopt.fwi import (
    L2,
    BandFilter,
    CosineTaper,
    DataTransform,
    LinearMoveout,
    Mute,
    OffsetLimits,
    Survey,
    WaveformMisfit,
)
from hvpopt.fwi.data.transforms import Processing

__all__ = ["one_thread"]
# torch's own, on the way to the second derivatives of staggered propagators
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")


def fitted(transforms, acquisition):
    return Processing.fitted(transforms, acquisition)


def matrix(processing, shapes):
    """The dense matrix of T, by its action on unit vectors of all channels."""
    sizes = [math.prod(s) for s in shapes.values()]
    columns = []
    for unit in torch.eye(sum(sizes), dtype=D):
        parts = unit.split(sizes)
        data = {c: p.reshape(shapes[c]) for c, p in zip(shapes, parts, strict=True)}
        columns.append(torch.cat([d.flatten() for d in processing(data).values()]))
    return torch.stack(columns, 1)


def flat(data):
    return torch.cat([d.flatten() for d in data.values()])


# -- linear, and transposed exactly -------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, "chain"])
def test_transposed_is_the_transposed_matrix(kind, generator):
    there = Survey("scalar", **streamer(2))
    kinds = chain(generator, 2)
    if kind != "chain":
        kinds = [transforms_of(generator, 2)[kind]]
    processing = fitted(kinds, there)
    T = matrix(processing, there.data_shapes)
    d, w = ({"u": rand((2, 4, NT), generator, -1)} for _ in range(2))
    seen, back = processing.transposed(d, None)
    assert (flat(seen) - T @ flat(d)).norm() < 1e-13 * flat(d).norm()
    assert (flat(back(w)) - T.T @ flat(w)).norm() < 1e-13 * flat(w).norm()
    # of one shot by itself: its own block
    own = T[4 * NT :, 4 * NT :]
    d, w = ({"u": data["u"][1:]} for data in (d, w))
    seen, back = processing.transposed(d, [1])
    assert (flat(seen) - own @ flat(d)).norm() < 1e-13 * flat(d).norm()
    assert (flat(back(w)) - own.T @ flat(w)).norm() < 1e-13 * flat(w).norm()


# -- misfits of transformed data -----------------------------------------------------


def problem(propagator, g, given, kinds, misfit="l2", **options):
    there = Survey(propagator, **given)
    models = models_of(propagator, g)
    observed = there.simulate(perturbed(models, g))
    made = WaveformMisfit(there, observed, misfit, transforms=kinds, **options)
    return made, models, observed


def plain_loss(propagator, given, T, observed, loss):
    """ℓ(T F(m), T d) with deepwave called plainly and T a dense matrix."""
    observed = observed if isinstance(observed, dict) else {"": observed}
    shape = next(iter(observed.values())).shape
    target = (T @ flat(observed)).reshape(-1, *shape)

    def evaluate(*models):
        recorded = plain(propagator, models, given)
        return loss((T @ flat(recorded)).reshape(-1, *shape), target)

    return evaluate


def mean_of_squares(simulated, observed):
    return (simulated - observed).square().mean()


def angles(simulated, observed):
    """The normalised correlation, written plainly."""
    product = (simulated * observed).sum(-1)
    return (1 - product / (simulated.norm(dim=-1) * observed.norm(dim=-1))).mean()


LOSSES = {"l2": mean_of_squares, "normalised-correlation": angles}


@pytest.mark.parametrize("engine", ["born", "double-backprop"])
@pytest.mark.parametrize("misfit", LOSSES)
@pytest.mark.parametrize("propagator", ["scalar", "acoustic"])
def test_values_gradients_and_products(propagator, misfit, engine, generator):
    kinds = [k for k in chain(generator, 2) if not isinstance(k, OffsetLimits)]
    given = streamer(2, propagator)
    made, models, observed = problem(
        propagator, generator, given, kinds, misfit, engine=engine
    )
    T = matrix(fitted(kinds, made.survey), made.survey.data_shapes)
    loss = plain_loss(propagator, given, T, observed, LOSSES[misfit])
    value, gradient = made.value_and_gradient(single(models))
    assert made.value(single(models)) == pytest.approx(value, rel=1e-13)
    step = random_step(models, generator)
    steps = (step,) if len(models) == 1 else step
    expected, product = functional.vhp(loss, models, steps)
    assert value == pytest.approx(float(expected), rel=1e-11)
    slopes = functional.jacobian(loss, models)
    got = made.hessian(single(models)) @ step
    parts = [(gradient, got)] if len(models) == 1 else zip(gradient, got, strict=True)
    for (g, h), slope, bend in zip(parts, slopes, product, strict=True):
        assert relative(g, slope) < 1e-10
        assert relative(h, bend) < 1e-10


def test_whole_hessian_is_that_of_a_dense_transform(generator):
    """Every column, by torch.autograd.functional.hessian, of a model of few cells."""
    given = streamer(2)
    kinds = chain(generator, 2)
    made, (v,), observed = problem("scalar", generator, given, kinds)
    T = matrix(fitted(kinds, made.survey), made.survey.data_shapes)
    loss = plain_loss("scalar", given, T, observed, mean_of_squares)
    cells = (slice(5, 8), slice(4, 10))
    inner = v[cells].clone()

    def whole(x):
        padded = v.clone()
        padded[cells] = x
        return padded

    part = WaveformMisfit(made.survey, observed, "l2", whole, transforms=kinds)
    expected = functional.hessian(lambda x: loss(whole(x)), inner).reshape(18, 18)
    operator = part.hessian(inner)
    got = operator @ torch.eye(18, dtype=D)
    assert relative(got, expected) < 1e-10


@pytest.mark.parametrize("engine", ["born", "double-backprop"])
@pytest.mark.parametrize("misfit", LOSSES)
def test_gauss_newton_is_twice_the_squared_jacobian(misfit, engine, generator):
    """2 JᵀTᵀ(∂ρ/∂Td)ᵀ(∂ρ/∂Td)TJ with J column by column, few cells."""
    given = streamer(2)
    kinds = [k for k in chain(generator, 2) if not isinstance(k, OffsetLimits)]
    made, (v,), observed = problem("scalar", generator, given, kinds)
    T = matrix(fitted(kinds, made.survey), made.survey.data_shapes)
    n = len(T)
    cells = (slice(5, 7), slice(4, 8))

    def whole(x):
        padded = v.clone()
        padded[cells] = x
        return padded

    inner = v[cells].clone()

    def residual(x):
        seen = (T @ flat(plain("scalar", (whole(x),), given))).reshape(2, 4, NT)
        target = (T @ observed.flatten()).reshape(2, 4, NT)
        if misfit == "l2":
            return (seen - target) / n**0.5
        unit = seen / seen.norm(dim=-1, keepdim=True)
        return (unit - target / target.norm(dim=-1, keepdim=True)) / 16**0.5

    columns = [
        functional.jvp(residual, inner, unit.reshape(inner.shape))[1].flatten()
        for unit in torch.eye(8, dtype=D)
    ]
    J = torch.stack(columns, 1)
    part = WaveformMisfit(
        made.survey, observed, misfit, whole, transforms=kinds, engine=engine
    )
    got = part.hessian(inner, "gauss-newton") @ torch.eye(8, dtype=D)
    assert relative(got, 2 * J.T @ J) < 1e-10
    assert float(torch.linalg.eigvalsh(got).min()) >= -1e-12 * float(got.norm())


@pytest.mark.parametrize("misfit", ["l2", "huber", "envelope", "normalised-correlation"])
def test_taylor_slopes(misfit, generator):
    kinds = [k for k in chain(generator, 2) if not isinstance(k, OffsetLimits)]
    made, (v,), _ = problem("scalar", generator, streamer(2), kinds, misfit)
    direction = random_step((v,), generator)
    assert hvpopt.analysis.check_gradient(made, v, direction=direction)
    assert hvpopt.analysis.check_hessian(made, v, direction=direction)


def test_several_channels_and_times_by_channel(generator):
    """Pressure and a velocity; the mute of one leaves the other as it is."""
    given = streamer(2, "acoustic", channels=["p", "x"])
    picks = times(generator, 2)
    kinds = [Mute(top={"x": picks}, taper=0.002), BandFilter(high=90.0)]
    made, models, observed = problem("acoustic", generator, given, kinds)
    T = matrix(fitted(kinds, made.survey), made.survey.data_shapes)
    step = fitted(kinds[:1], made.survey)
    muted = step(observed)
    assert torch.equal(muted["p"], observed["p"])
    assert not torch.equal(muted["x"], observed["x"])
    target = T @ flat(observed)

    def loss(*m):
        return (T @ flat(plain("acoustic", m, given)) - target).square().mean()

    along = random_step(models, generator)
    expected = functional.vhp(loss, models, along)
    assert made.value(models) == pytest.approx(float(expected[0]), rel=1e-11)
    got = made.hessian(models) @ along
    assert all(relative(a, b) < 1e-10 for a, b in zip(got, expected[1], strict=True))


def test_mute_has_the_values_of_squared_weights(generator):
    """A mute by m and L2 with weights m² are one misfit."""
    given = streamer()
    mute = Mute(top=times(generator, 3), taper=0.004)
    made, (v,), observed = problem("scalar", generator, given, [mute])
    ones = {"u": torch.ones(3, 4, NT, dtype=D)}
    weights = mute.fit(made.survey)(ones, None)["u"].square()
    other = WaveformMisfit(made.survey, observed, L2(sample_weights=weights))
    step = random_step((v,), generator)
    assert made.value(v) == pytest.approx(other.value(v), rel=1e-12)
    for kind in ("exact", "gauss-newton"):
        got, expected = (m.hessian(v, kind) @ step for m in (made, other))
        assert relative(got, expected) < PRODUCT


def test_transforms_act_in_their_order_and_one_after_another(generator):
    given = streamer()
    kinds = transforms_of(generator, 3)
    first, second = kinds["picks"], kinds["band"]
    both, (v,), observed = problem("scalar", generator, given, [first, second])
    once = WaveformMisfit(both.survey, observed, transforms=[first])
    value = both.value(v)
    before = once.counts.values
    assert once.transformed(second).value(v) == pytest.approx(value, rel=1e-13)
    assert once.counts.values == before + 1
    other = WaveformMisfit(both.survey, observed, transforms=[second, first])
    assert abs(other.value(v) / value - 1) > 1e-6


@pytest.mark.parametrize("size", [1, 2])
def test_groups_change_rounding_alone(size, generator):
    kinds = chain(generator, 3)
    made, (v,), observed = problem("scalar", generator, streamer(), kinds)
    whole = WaveformMisfit(made.survey, observed, transforms=kinds, shots_per_group=3)
    parts = WaveformMisfit(made.survey, observed, transforms=kinds, shots_per_group=size)
    step = random_step((v,), generator)
    for kind in ("exact", "gauss-newton"):
        got, expected = (m.hessian(v, kind) @ step for m in (parts, whole))
        assert relative(got, expected) < PRODUCT
    (f, g), (expected_f, expected_g) = (m.value_and_gradient(v) for m in (parts, whole))
    assert f == pytest.approx(expected_f, rel=1e-13)
    assert relative(g, expected_g) < 10 * GRADIENT


def test_float32_misfit_is_the_float64_one(generator):
    kinds = [Mute(LinearMoveout(2000.0, 0.002), taper=0.004), BandFilter(high=90.0)]
    made, (v,), observed = problem("scalar", generator, streamer(), kinds)
    narrow = WaveformMisfit(
        made.survey.to(torch.float32), observed.float(), transforms=kinds
    )
    value, gradient = narrow.value_and_gradient(v.float())
    assert gradient.dtype == torch.float32
    expected, slope = made.value_and_gradient(v)
    assert value == pytest.approx(expected, rel=10 * FLOAT32)
    assert relative(gradient.double(), slope) < 10 * FLOAT32


# -- some shots, and samples of them -------------------------------------------------


def test_parts_of_all_shots_add_up(generator):
    kinds = chain(generator, 4)
    made, (v,), _ = problem("scalar", generator, streamer(4), kinds)
    step = random_step((v,), generator)
    groups = ([2], [3, 0], [1])
    parts = [made.select(shots) for shots in groups]
    assert sum(p.value(v) for p in parts) == pytest.approx(made.value(v), rel=1e-12)
    products = sum(p.hessian(v) @ step for p in parts)
    assert relative(products, made.hessian(v) @ step) < PRODUCT


def test_shots_that_are_left_keep_their_own_rows(generator):
    kinds = chain(generator, 4)
    made, (v,), observed = problem("scalar", generator, streamer(4), kinds)
    left = made.without({"shot 1": "bad"})
    rows = [0, 2, 3]
    own = [Mute(kinds[0].top[rows], taper=kinds[0].taper), *kinds[1:]]
    expected = WaveformMisfit(made.survey.select(rows), observed[rows], transforms=own)
    assert left.value(v) == pytest.approx(expected.value(v), rel=1e-12)
    step = random_step((v,), generator)
    assert relative(left.hessian(v) @ step, expected.hessian(v) @ step) < PRODUCT
    # what is the same for every shot may still follow; what is not, may not
    band = BandFilter(high=100.0)
    assert left.transformed(band).value(v) == pytest.approx(
        expected.transformed(band).value(v), rel=1e-12
    )
    with pytest.raises(ValueError, match="transform the misfit of all shots"):
        left.transformed(OffsetLimits(farthest=60.0))


def test_drawn_shots_are_the_scaled_part(generator, seed):
    kinds = chain(generator, 4)
    made, (v,), _ = problem("scalar", generator, streamer(4), kinds)
    drawn = made.draw(2, seed=seed)
    part = made.select(made.survey.draw(2, seed=seed))
    assert drawn.value(v) == pytest.approx(2 * part.value(v), rel=1e-12)
    for sample in (drawn, part):
        with pytest.raises(ValueError, match="misfit of some shots"):
            sample.transformed(BandFilter(high=100.0))


def fixed_spread(g, kinds, n_shots=3, misfit="l2"):
    return problem("scalar", g, arguments("scalar", n_shots), kinds, misfit)


@pytest.mark.parametrize("kind", ["picks", "top line", "offsets"])
def test_what_differs_from_shot_to_shot_is_not_encoded(kind, generator, seed):
    transform = transforms_of(generator, 3)[kind]
    made, _, _ = fixed_spread(generator, [BandFilter(high=100.0), transform])
    assert not transform.same_for_every_shot
    assert not made.encodes
    with pytest.raises(ValueError, match=f"the {transform.name} may differ from shot"):
        made.encode(torch.ones(1, 3))
    # a sample is of drawn shots then, and it says so
    assert made.sample(2, seed=seed).waveforms.shots.unit == "shot"


def test_what_is_the_same_for_every_shot_stays_encodable(generator):
    """The mean over every choice of signs is the misfit and its Hessian."""
    kinds = [
        Mute(top=0.2 * T_END, bottom=rand((4,), generator, 0.7) * T_END, taper=0.003),
        CosineTaper(end=0.004, first=1),
        BandFilter(low=15.0, high=120.0),
    ]
    made, (v,), _ = fixed_spread(generator, kinds)
    assert all(k.same_for_every_shot for k in kinds)
    assert made.encodes
    v = 1.01 * v
    step = random_step((v,), generator)
    encoded = [made.encode(code[None]) for code in every_sign(3)]
    assert sum(e.value(v) for e in encoded) / 8 == pytest.approx(made.value(v), rel=1e-11)
    for kind in ("exact", "gauss-newton"):
        mean = sum(e.hessian(v, kind) @ step for e in encoded) / 8
        assert relative(mean, made.hessian(v, kind) @ step) < PRODUCT * 10
    with pytest.raises(ValueError, match="transform the misfit of all shots"):
        encoded[0].transformed(BandFilter(high=90.0))


def test_sharded_misfit_of_one_process(generator):
    made, (v,), _ = problem("scalar", generator, streamer(), chain(generator, 3))
    sharded = distributed.shard(made)
    assert sharded.value(v) == pytest.approx(made.value(v), rel=1e-13)
    left = sharded.without({"shot 0": "bad"}), made.without({"shot 0": "bad"})
    assert left[0].value(v) == pytest.approx(left[1].value(v), rel=1e-13)


def test_own_shots_of_a_rank_keep_their_own_rows(generator):
    """What a rank has of its own shots, which have other numbers in the whole survey."""
    kinds = chain(generator, 3)
    made, (v,), _ = problem("scalar", generator, streamer(), kinds)
    renamed = replace(made.waveforms, shots=made.waveforms.shots.renamed([4, 2, 7]))
    part = made.with_waveforms(renamed)
    assert part.waveforms.shots.numbers == (4, 2, 7)
    assert part.select([2]).value(v) == pytest.approx(made.select([2]).value(v))
    assert part.value(v) == pytest.approx(made.value(v), rel=1e-13)


# -- functions that are told their shots ----------------------------------------------


def weighing(weights, told):
    """Misfit functions that weigh shots, told their numbers in different ways."""

    def value(d, o, shots):
        told.append(list(shots))
        w = weights[torch.tensor(shots)][:, None, None]
        return (w * (d - o).square()).sum()

    class Module(torch.nn.Module):
        def forward(self, d, o, shots):
            return value(d, o, shots)

    return {
        "named": lambda d, o, shots: value(d, o, shots),
        "keyword": lambda d, o, *, shots: value(d, o, shots),
        "default": lambda d, o, shots=None: value(d, o, shots),
        "third": lambda d, o, rows: value(d, o, rows),
        "later": lambda d, o, _=2, shots=None: value(d, o, shots),
        "module": Module(),
    }


@pytest.mark.parametrize("how", list(weighing(None, None)))
def test_function_learns_which_shots_it_holds(how, generator):
    told = []
    weights = rand((4,), generator)
    function = weighing(weights, told)[how]
    made, (v,), observed = problem(
        "scalar", generator, streamer(4), [BandFilter(high=100.0)], function
    )
    n = observed.numel()
    squares = L2(trace_weights=weights[:, None].expand(4, 4) * n)
    expected = WaveformMisfit(
        made.survey, observed, squares, transforms=[BandFilter(high=100.0)]
    )
    del told[:]
    pair = made.select([3, 1])
    assert pair.value(v) == pytest.approx(expected.select([3, 1]).value(v), rel=1e-12)
    assert [s for rows in told for s in rows] == [3, 1]
    step = random_step((v,), generator)
    assert relative(made.hessian(v) @ step, expected.hessian(v) @ step) < 1e-11
    del told[:]
    left = made.without({"shot 2": "bad"})
    left.value(v)
    assert sorted(s for rows in told for s in rows) == [0, 1, 3]


def test_function_with_a_default_of_another_meaning_is_left_alone(generator):
    def power(d, o, p=2):
        return (d - o).abs().pow(p).sum()

    made, (v,), observed = problem("scalar", generator, streamer(2), (), power)
    squares = float((made.survey.simulate(v) - observed).square().sum())
    assert made.value(v) == pytest.approx(squares, rel=1e-12)


# -- cost, and what is kept ------------------------------------------------------------


class Counting(DataTransform):
    """Halves the data and counts the rows that it is given."""

    name = "halving"
    same_for_every_shot = True

    def __init__(self):
        self.rows = []

    def fit(self, survey):
        def apply(data, shots):
            self.rows.append(list(range(survey.n_shots) if shots is None else shots))
            return {c: 0.5 * d for c, d in data.items()}

        return apply


def test_observed_data_are_transformed_once(generator):
    """Evaluations transform what they simulate, and nothing else."""
    counting = Counting()
    there = Survey("scalar", **streamer())
    (v,) = models_of("scalar", generator)
    observed = there.simulate(1.02 * v)
    kept = observed.clone()
    made = WaveformMisfit(there, observed, transforms=[counting], shots_per_group=2)
    assert torch.equal(observed, kept)
    assert torch.equal(made.waveforms.observed["u"], 0.5 * observed)
    for evaluate, each in (
        (lambda: made.value(v), 1),
        (lambda: made.value_and_gradient(v), 1),
        (lambda: made.hessian(v) @ torch.ones_like(v), 2),  # d and δd
    ):
        counting.rows.clear()
        evaluate()
        assert sorted(counting.rows) == sorted(each * [[0, 1], [2]])
    plain_misfit = WaveformMisfit(there, observed)
    assert plain_misfit.waveforms.observed["u"].data_ptr() == observed.data_ptr()


def test_products_cost_the_same_propagations(generator):
    made, (v,), observed = problem("scalar", generator, streamer(), chain(generator, 3))
    other = WaveformMisfit(made.survey, observed)
    for misfit in (made, other):
        misfit.value_and_gradient(v)
        for kind in ("exact", "gauss-newton"):
            misfit.hessian(v, kind) @ torch.ones_like(v)
    assert made.counts == other.counts


def test_misfits_with_transforms_are_pickled_and_copied(generator):
    kinds = chain(generator, 3)
    made, (v,), _ = problem("scalar", generator, streamer(), kinds)
    for twin in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert twin.value(v) == made.value(v)
    file = io.BytesIO()
    torch.save(kinds[1], file)
    file.seek(0)
    assert torch.load(file, weights_only=False) == kinds[1]


# -- bad input -------------------------------------------------------------------------


class Own(DataTransform):
    """A transform from a function of the data."""

    name = "own"

    def __init__(self, function):
        self.function = function

    def fit(self, survey):
        return lambda data, _: {c: self.function(d) for c, d in data.items()}


WRONG = {
    "transforms alone": (
        lambda: WaveformMisfit(survey(), torch.ones(2, 4, NT), transforms=Mute(0.1)),
        TypeError,
        "transforms is a Mute; give a list",
    ),
    "transform class": (
        lambda: made_with(CosineTaper),
        TypeError,
        r"the class CosineTaper; pass an instance, CosineTaper\(",
    ),
    "transform function": (lambda: made_with(torch.sin), TypeError, "a DataTransform"),
    "own not linear": (
        lambda: made_with(Own(torch.abs)),
        ValueError,
        "the own is not linear in the data",
    ),
    "own with an offset": (
        lambda: made_with(Own(lambda d: d + 1)),
        ValueError,
        "the own is not linear in the data",
    ),
    "own writes": (
        lambda: made_with(Own(lambda d: d.mul_(0.5))),
        ValueError,
        "the own writes to the data that it is given",
    ),
    "own other shape": (
        lambda: made_with(Own(lambda d: d[..., ::2])),
        ValueError,
        r"returned \(1, 4, 36\) for channel 'u' of shape \(1, 4, 72\)",
    ),
    "own without graph": (
        lambda: made_with(Own(lambda d: 2 * d.detach())),
        ValueError,
        "carry no graph",
    ),
    "own mixes shots": (
        lambda: made_with(
            Own(lambda d: d - d.mean(0, keepdim=True)),
            observed=torch.arange(2 * 4 * NT, dtype=D).reshape(2, 4, NT).square(),
        ),
        ValueError,
        "of a shot alone something else than among others",
    ),
}


def test_transform_that_returns_no_data_by_channel_is_refused():
    class Tensors(DataTransform):
        def fit(self, survey):
            return lambda data, _: data["u"]

    with pytest.raises(ValueError, match=r"returned a Tensor; .* the channels \['u'\]"):
        made_with(Tensors())


@pytest.mark.parametrize("case", WRONG)
def test_wrong_calls(case):
    call, error, words = WRONG[case]
    with pytest.raises(error, match=words):
        call()
