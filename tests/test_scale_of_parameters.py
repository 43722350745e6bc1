"""Parameters of very different sizes: each is measured in units of its own size."""

import pytest
import torch
from waves import D, models_of, one_thread, perturbed, rand, survey

import hvpopt
from hvpopt.fwi import WaveformMisfit
from hvpopt.model.space import FAR_APART

__all__ = ["one_thread"]
METHODS = {
    "trust region": hvpopt.TrustRegionNewton,
    "line search": hvpopt.LineSearchNewton,
    "quasi-Newton": hvpopt.QuasiNewton,
    "shifted": hvpopt.ShiftedNewton,
}


def sized(generator, *sizes):
    return tuple(
        size * (1.0 + rand((3, 4), generator)) for size in sizes
    )  # root mean squares between 1 and 2 of their size


def scales(space):
    """The scale of each parameter, all of whose cells have one."""
    parts = space.step_to_model(torch.ones(space.size, dtype=D))
    parts = parts.values() if isinstance(parts, dict) else parts
    assert all(bool((p == p.max()).all()) for p in parts)
    return [float(p.max()) for p in parts]


# -- what it is -------------------------------------------------------------------------


def test_units_are_powers_of_two_below_each_size(generator):
    model = sized(generator, 1e10, 3e3, 5e-4)
    found = scales(hvpopt.ModelSpace(model, scale="auto"))
    for unit, t in zip(found, model, strict=True):
        size = float(t.square().mean().sqrt())
        assert unit <= size * (1 + 1e-12) < 2 * unit * (1 + 2e-12)
        assert torch.frexp(torch.tensor(unit, dtype=D)).mantissa == 0.5
    named = dict(zip("abc", model, strict=True))
    assert scales(hvpopt.ModelSpace(named, scale="auto")) == found


@pytest.mark.parametrize("sizes", [(1.0,), (1e-30,), (1.0, 1.0), (1.0, 200.0)])
def test_no_unit_for_sizes_that_are_close(sizes, generator):
    assert hvpopt.ModelSpace(sized(generator, *sizes), scale="auto").scale is None


def test_sizes_are_those_of_parameters_that_may_change(generator):
    model = sized(generator, 1e10, 2e10, 5e-4)
    mask = (True, True, False)
    assert hvpopt.ModelSpace(model, scale="auto", mask=mask).scale is None
    space = hvpopt.ModelSpace(model, scale="auto", mask=(True, False, True))
    found, size = space.scale, model[0].numel()
    assert space.size == 2 * size
    assert float(found[:size].max() / found[size:].max()) > 1e12


def test_a_parameter_of_zeros_has_no_size(generator):
    a, b = sized(generator, 1e8, 1.0)
    assert hvpopt.ModelSpace((a, torch.zeros(3)), scale="auto").scale is None
    found = hvpopt.ModelSpace((a, torch.zeros(3), b), scale="auto")
    assert float(found.scale[a.numel()]) == 1.0


def test_another_word_is_refused(generator):
    model = sized(generator, 1.0, 1.0)
    with pytest.raises(ValueError, match="scale is 'big'; pass 'auto', a number"):
        hvpopt.ModelSpace(model, scale="big")
    with pytest.raises(ValueError, match="scale is 'big'"):
        hvpopt.minimize(lambda a, b: (a * b).sum(), model, scale="big")


# -- what it is for ---------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_every_parameter_of_a_plain_loss_is_found(name, generator):
    sizes = torch.tensor([1e9, 1e-5], dtype=D)
    true = sized(generator, *sizes)
    mix = rand((24, 24), generator, -1, 1) / 5 + torch.eye(24, dtype=D)

    def loss(a, b):
        parts = [(x / t - 1).reshape(-1) for x, t in zip((a, b), true, strict=True)]
        return (mix @ torch.cat(parts)).square().sum()

    start = tuple(t * (1 + 0.1 * rand(t.shape, generator, -1, 1)) for t in true)
    result = hvpopt.minimize(loss, start, method=METHODS[name](), scale="auto")
    assert result.success
    for x, t in zip(result.x, true, strict=True):
        assert float((x / t - 1).abs().max()) < 1e-3


@pytest.mark.parametrize("name", [name for name in METHODS if name != "quasi-Newton"])
@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
def test_elastic_moduli_move_beside_buoyancy(name, generator):
    there = survey("elastic", 2)
    models = models_of("elastic", generator)
    names = ("lamb", "mu", "buoyancy")
    start = dict(zip(names, perturbed(models, generator), strict=True))
    observed = there.simulate(models)
    runs = {}
    for scale in ("auto", 1.0):
        misfit = WaveformMisfit(there, observed)
        options = {"method": METHODS[name](), "max_iter": 3, "scale": scale}
        runs[scale] = hvpopt.minimize(misfit, start, **options).x
    moved = {
        scale: {n: float((x[n] / start[n] - 1).abs().max()) for n in start}
        for scale, x in runs.items()
    }
    # products in one unit see buoyancy alone: moduli are 1e13 times as large
    assert max(moved[1.0]["lamb"], moved[1.0]["mu"]) < 1e-9
    assert min(moved["auto"].values()) > 1e-6


def test_frozen_cells_have_no_part_in_a_size(generator):
    a, b = sized(generator, 1.0, 1.0)
    huge = torch.cat([a, torch.full_like(a, 1e9)])
    free = torch.cat([torch.ones_like(a), torch.zeros_like(a)]).bool()
    model, mask = (huge, b), (free, torch.ones_like(b).bool())
    assert hvpopt.ModelSpace(model, scale="auto", mask=mask).scale is None
    assert hvpopt.ModelSpace(model, scale="auto").scale is not None


def test_a_plain_loss_is_measured_as_it_is(generator):
    """A start near zero, as of a network's last layer, says nothing of a size."""
    x, y = rand((40, 2), generator, -1), rand((40, 1), generator, -1)
    layers = [rand((2, 6), generator, -1), 1e-6 * rand((6, 1), generator, -1)]

    def loss(a, b):
        return (torch.tanh(x @ a) @ b - y).square().mean()

    method = hvpopt.TrustRegionNewton()
    options = {"method": method, "max_iter": 8}
    found = hvpopt.minimize(loss, tuple(layers), **options)
    same = hvpopt.minimize(loss, tuple(layers), scale=1.0, **options)
    assert found.fun == same.fun
    assert all(map(torch.equal, found.x, same.x))


def test_default_is_that_of_the_sizes_written_out(generator):
    true = models_of("elastic", generator)
    start = perturbed(true, generator)
    space = hvpopt.ModelSpace(start, scale="auto")
    units = [
        float(unit[0, 0]) for unit in space.step_to_model(torch.ones(space.size).to(D))
    ]
    assert max(units) > FAR_APART * min(units)
    misfit = WaveformMisfit(survey("elastic", 1), survey("elastic", 1).simulate(true))
    options = {"max_iter": 3, "method": hvpopt.TrustRegionNewton()}
    results = [
        hvpopt.minimize(misfit, start, **options, **more)
        for more in ({}, {"scale": tuple(units)})
    ]
    for a, b in zip(*(r.x for r in results), strict=True):
        assert torch.equal(a, b)


def test_whose_sizes_are_units(generator):
    there = survey("elastic", 2)
    models = models_of("elastic", generator)
    misfit = WaveformMisfit(there, there.simulate(models))
    assert misfit.sizes_are_units
    assert (misfit + hvpopt.Tikhonov(spacing=5.0)).sizes_are_units
    assert hvpopt.distributed.shard(misfit).sizes_are_units
    mapped = WaveformMisfit(
        there, there.simulate(models), parameterisation=lambda a, b, c: (a, b, c)
    )
    assert not mapped.sizes_are_units
    assert not hvpopt.TorchObjective(lambda x: x.sum()).sizes_are_units
    assert not hvpopt.Tikhonov(spacing=5.0).sizes_are_units


@pytest.mark.parametrize(
    ("size", "scale", "warns"),
    [
        (1e10, None, True),
        (1e10, 1.0, False),
        (1e10, "auto", False),
        (10.0, None, False),
    ],
)
def test_a_run_warns_of_sizes_that_one_unit_does_not_serve(
    size, scale, warns, generator, caplog
):
    model = sized(generator, size, 1e-3)

    def loss(a, b):
        return (a / size).square().sum() + (1e3 * b).square().sum()

    with caplog.at_level("WARNING", "hvpopt"):
        hvpopt.minimize(loss, model, max_iter=1, scale=scale)
    assert ("pass scale='auto', or sizes by parameter" in caplog.text) == warns
