"""Survey against deepwave called plainly, and every bad acquisition."""

import deepwave
import pytest
import torch
from waves import (
    CHANNELS,
    DT,
    FREQ,
    MAX_VEL,
    NT,
    SHAPE,
    SPACING,
    D,
    arguments,
    models_of,
    one_thread,
    plain,
    rand,
    relative,
    single,
    survey,
    wavelets,
)

from hvpopt.fwi import Survey
from hvpopt.fwi.survey.acquisition import parse_sources
from hvpopt.fwi.survey.timestep import resolve_time_step

__all__ = ["one_thread"]
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")


# -- what it simulates ------------------------------------------------------------------


@pytest.mark.parametrize("propagator", CHANNELS)
def test_simulates_what_deepwave_does(propagator, generator):
    models = models_of(propagator, generator)
    channel = CHANNELS[propagator][1]
    there = survey(propagator, 3)
    data = there.simulate(single(models))
    expected = plain(propagator, models, arguments(propagator, 3))[channel]
    assert torch.equal(data, expected)
    assert float(data.norm()) > 0
    assert torch.equal(there.simulate(single(models)), data)
    by_name = dict(zip(there.model_names, models, strict=True))
    assert torch.equal(there.simulate(by_name), data)


@pytest.mark.parametrize("n_dimensions", [1, 3])
@pytest.mark.parametrize("propagator", CHANNELS)
def test_other_dimensions(propagator, n_dimensions, generator):
    source, receiver = CHANNELS[propagator]
    if propagator == "elastic":
        source = receiver = "x"
    locations = torch.full((2, 1, n_dimensions), 3)
    given = {
        "grid_spacing": SPACING,
        "dt": DT / 2,
        "sources": {source: (wavelets(2), locations)},
        "receivers": {receiver: locations + 1},
        "max_vel": 4000.0,
        "pml_freq": FREQ,
        "pml_width": 2,
    }
    models = models_of(propagator, generator, shape=(9, 7, 8)[:n_dimensions])
    there = Survey(propagator, **given)
    assert there.n_dimensions == n_dimensions
    expected = plain(propagator, models, given)[receiver]
    assert torch.equal(there.simulate(single(models)), expected)


def test_several_channels_come_as_a_mapping(generator):
    given = arguments("elastic", 2)
    amplitudes, locations = given["sources"]["y"]
    receivers = given["receivers"]["y"]
    given["sources"] = {
        "x": (0.5 * amplitudes, locations),
        "pressure_rate": (amplitudes, locations + 1),
    }
    given["receivers"] = {"p": receivers, "x": receivers[:, :2]}
    models = models_of("elastic", generator)
    there = Survey("elastic", **given)
    data = there.simulate(models)
    assert there.data_shapes == {"p": (2, 4, NT), "x": (2, 2, NT)}
    expected = plain("elastic", models, given)
    assert list(data) == ["p", "x"]
    assert all(torch.equal(data[c], expected[c]) for c in data)


def test_masks_and_subsets_of_shots(generator):
    given = arguments("scalar", 4)
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[2, 1] = False
    given["receivers"] = {"u": (given["receivers"]["u"], mask)}
    v = models_of("scalar", generator)[0]
    there = Survey("scalar", **given)
    data = there.simulate(v)
    assert float(data[2, 1].abs().max()) == 0
    assert float(data[2, 0].abs().max()) > 0
    for shots in ([1, 2], [0, 3], [2]):
        assert torch.equal(there.simulate(v, shots=shots), data[shots])


@pytest.mark.parametrize("explicit", [False, True])
def test_off_grid_locations(explicit, generator):
    given = arguments("scalar", 3, location_interpolation_halfwidth=2)
    amplitudes, locations = given["sources"]["u"]
    places = [0.8 * p + 2.2 for p in (locations, given["receivers"]["u"])]
    places[1] = places[1] + 0.1 * torch.arange(3)[:, None, None]
    if explicit:
        places = [deepwave.Hicks(p, halfwidth=2, dtype=D) for p in places]
    given |= {"sources": {"u": (amplitudes, places[0])}, "receivers": {"u": places[1]}}
    v = models_of("scalar", generator)[0]
    there = Survey("scalar", **given)
    data = there.simulate(v)
    assert relative(data, plain("scalar", (v,), given)["u"]) < 1e-14
    assert relative(there.simulate(v, shots=[2]), data[2:]) < 1e-14


def masked(given, generator):
    mask = torch.rand(4, 4, generator=generator) < 0.7
    mask[:, 0] = True
    given["receivers"] = {"u": (given["receivers"]["u"], mask)}


def off_grid(given, generator):
    source, (amplitudes, places) = next(iter(given["sources"].items()))
    moves = 0.1 + 0.3 * torch.rand(4, 1, 2, generator=generator, dtype=D)
    given["sources"] = {
        source: (amplitudes, deepwave.Hicks(places + moves, halfwidth=2, dtype=D))
    }
    spots = given["receivers"]["u"] + moves
    given["receivers"] = {"u": deepwave.Hicks(spots, halfwidth=2, dtype=D)}


def with_wavefields(given, generator):
    given["wavefield_0"] = torch.rand(4, *SHAPE, generator=generator, dtype=D)
    given["origin"] = [0, 0]


@pytest.mark.filterwarnings("ignore::deepwave.MigrationWarning")
@pytest.mark.parametrize("change", [masked, off_grid, with_wavefields])
def test_select_is_the_survey_of_some_shots_in_their_order(change, generator):
    (v,) = models_of("scalar", generator)
    given = arguments("scalar", 4)
    change(given, generator)
    there = Survey("scalar", **given)
    some = there.select([3, 0, 2])
    assert (some.n_shots, some.resolved) == (3, there.resolved)
    assert some.data_shapes == {"u": (3, 4, NT)}
    expected = there.simulate(v)
    assert torch.equal(some.simulate(v), expected[[3, 0, 2]])
    # of a selection again, one by one, and in another dtype
    assert torch.equal(some.select([2, 0]).simulate(v), expected[[2, 3]])
    assert torch.equal(some.simulate(v, shots=[1]), expected[[0]])
    assert there.n_shots == 4, "the caller's own is as it was"
    low = some.to(torch.float32).simulate(v.float())
    torch.testing.assert_close(low.double(), expected[[3, 0, 2]], rtol=1e-3, atol=1)


@pytest.mark.filterwarnings("ignore::deepwave.MigrationWarning")
def test_shots_are_drawn_along_the_line_of_places_off_the_grid():
    places = torch.tensor([[[2.0, 9.0]], [[2.5, 3.5]], [[2.5, 6.2]]], dtype=D)
    # the first shot, on a node, has one cell and the others sixteen
    where = deepwave.Hicks(places, halfwidth=2, dtype=D)
    points = parse_sources({"u": (wavelets(3), where)})["u"][1]
    assert torch.equal(points.centres(), places[:, 0])
    assert torch.equal(points.select([2, 0]).centres(), places[[2, 0], 0])
    given = arguments("scalar", 3)
    there = Survey("scalar", **{**given, "sources": {"u": (wavelets(3), where)}})
    assert there.draw(3) == [0, 1, 2]


@pytest.mark.parametrize(
    ("shots", "message"), [([], "at least"), ([4], "0 to 3"), ([1, 1], "each index once")]
)
def test_bad_selections(shots, message):
    with pytest.raises(ValueError, match=message):
        survey(n_shots=4).select(shots)


def test_nt_pads_and_cuts_wavelets(generator):
    v = models_of("scalar", generator)[0]
    for nt in (NT - 20, NT + 20):
        data = survey(nt=nt).simulate(v)
        assert data.shape[-1] == nt
        assert torch.equal(data, plain("scalar", (v,), {**arguments(), "nt": nt})["u"])


def test_initial_wavefields_go_with_their_shots(generator):
    v = models_of("scalar", generator)[0]
    start = rand((3, *SHAPE), generator)
    there = survey(n_shots=3, wavefield_0=start, origin=[0, 0])
    data = there.simulate(v)
    assert torch.equal(there.simulate(v, shots=[2]), data[2:])
    assert not torch.equal(data, survey(n_shots=3).simulate(v))


# -- the time step ----------------------------------------------------------------------


def test_unstable_dt_is_resolved_before_anything_runs(generator):
    v = models_of("scalar", generator)[0]
    given = arguments("scalar", 2)
    amplitudes, locations = given["sources"]["u"]
    given |= {"dt": 4 * DT, "sources": {"u": (amplitudes[..., ::4], locations)}}
    there = Survey("scalar", **given)
    step = there.resolved
    assert step.step_ratio > 1
    assert step.inner_dt == pytest.approx(4 * DT / step.step_ratio)
    assert step.inner_nt == step.nt * step.step_ratio
    assert f"ratio {step.step_ratio}" in there.info
    data = there.simulate(v)
    # deepwave itself steps as finely, and resamples on both sides
    assert relative(data, plain("scalar", (v,), given)["u"]) < 1e-13
    assert data.shape == (2, 4, NT // 4)


def test_stable_dt_is_left_alone():
    there = survey()
    assert there.resolved.step_ratio == 1
    assert there.resolved.inner_dt == DT
    assert "nothing is resampled" in there.info


@pytest.mark.filterwarnings("ignore:dt~")
def test_inner_step_is_always_stable(generator):
    """At exact multiples of the limit, dt / ratio rounds above it in one of ten."""
    for _ in range(300):
        spacing, vel = (float(rand((), generator, 0.1, 1)) for _ in range(2))
        n = int(torch.randint(1, 20, (), generator=generator))
        dt = n * 0.6 * spacing / (vel * 2**0.5)
        step = resolve_time_step([spacing, spacing], dt, 10, vel)
        again = deepwave.discretisation.cfl_condition_n([spacing] * 2, step.inner_dt, vel)
        assert again[1] == 1
        assert n <= step.step_ratio <= n + 1


def test_resampling_options_are_passed_on(generator):
    v = models_of("scalar", generator)[0]
    given = arguments(
        "scalar", 1, freq_taper_frac=0.2, time_pad_frac=0.5, time_taper=True
    )
    amplitudes, locations = given["sources"]["u"]
    given |= {"dt": 4 * DT, "sources": {"u": (amplitudes[..., ::4], locations)}}
    data = Survey("scalar", **given).simulate(v)
    assert relative(data, plain("scalar", (v,), given)["u"]) < 1e-13


def test_courant_number_is_passed_on():
    loose = survey(dt=2 * DT, courant_number=0.8).resolved.step_ratio
    assert loose < survey(dt=2 * DT, courant_number=0.3).resolved.step_ratio


# -- what it says, and moves to ---------------------------------------------------------


def test_zero_width_is_taken_as_asked_for_and_told(generator, monkeypatch):
    """No warning from the survey, which pytest would raise; deepwave's own physics."""
    monkeypatch.setattr(deepwave._common, "_warned_once_causes", set())
    there = survey(pml_width=[0, 4, 4, 4])
    v = models_of("scalar", generator)[0]
    data = there.simulate(v)
    expected = plain("scalar", (v,), arguments(pml_width=[0, 4, 4, 4]))["u"]
    assert torch.equal(data, expected)
    assert "zero width" in there.info
    named = survey(pml_width=[0, 4, 4, 4], boundary=["free", "pml", "pml", "pml"])
    assert "zero width" not in named.info
    assert not torch.equal(named.simulate(v), expected)


def test_a_caller_still_hears_of_zero_width(generator, monkeypatch):
    """What silences the survey's own calls silences no one else's."""
    monkeypatch.setattr(deepwave._common, "_warned_once_causes", set())
    v = models_of("scalar", generator)[0]
    survey().simulate(v)
    survey(n_shots=1, pml_width=[4, 0, 4, 4]).simulate(v)
    given = arguments(pml_width=[0, 4, 4, 4])
    spacing, dt = given.pop("grid_spacing"), given.pop("dt")
    with pytest.warns(deepwave.ZeroWidthFaceWarning):
        deepwave.scalar(v, spacing, dt, **given)


def test_float32_stays_float32(generator):
    v = models_of("scalar", generator)[0]
    single_precision = survey().to(torch.float32)
    data = single_precision.simulate(v.float())
    assert data.dtype == torch.float32
    assert relative(data.double(), survey().simulate(v)) < 1e-4
    assert survey().dtype == D


def test_lossy_storage_and_survey_pad_are_told():
    assert "Lossy" in survey(storage_compression=True).info
    assert "depend on which shots" in survey(survey_pad=2).info


# -- bad acquisitions -------------------------------------------------------------------


def changed(**changes):
    return lambda: Survey("scalar", **{**arguments("scalar", 2), **changes})


AMPLITUDES, LOCATIONS = arguments("scalar", 2)["sources"]["u"]
RECEIVERS = arguments("scalar", 2)["receivers"]["u"]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (changed(sources={}), ValueError, "no sources"),
        (changed(receivers={}), ValueError, "no receivers"),
        (changed(receivers={"u": RECEIVERS[:0]}), ValueError, "no shot or no point"),
        (changed(receivers={"u": RECEIVERS[:, :0]}), ValueError, "no shot or no point"),
        (changed(receivers={"u": RECEIVERS[:1]}), ValueError, "numbers of shots differ"),
        (
            changed(receivers={"u": RECEIVERS[..., :1]}),
            ValueError,
            "numbers of coordinates differ",
        ),
        (changed(receivers={"p": RECEIVERS}), ValueError, "receiver channel 'p'"),
        (changed(sources={"p": (AMPLITUDES, LOCATIONS)}), ValueError, "channel 'p'"),
        (changed(sources={"u": LOCATIONS}), TypeError, r"\(amplitudes, locations\)"),
        (
            changed(sources={"u": (AMPLITUDES[:, 0], LOCATIONS)}),
            ValueError,
            r"expected \[2, 1, time\]",
        ),
        (
            changed(sources={"u": (AMPLITUDES.long(), LOCATIONS)}),
            TypeError,
            "floating-point",
        ),
        (
            changed(sources={"u": (AMPLITUDES / 0, LOCATIONS)}),
            ValueError,
            "NaN or infinite",
        ),
        (changed(receivers={"u": [1, 2]}), ValueError, "must be a tensor"),
        (
            changed(receivers={"u": (RECEIVERS, torch.ones(2, 4))}),
            ValueError,
            "Boolean tensor",
        ),
        (changed(dt=0.0), ValueError, "dt is 0.0"),
        (changed(dt=-DT), ValueError, "must be positive"),
        (changed(max_vel=float("nan")), ValueError, "max_vel is nan"),
        (changed(pml_freq=0), ValueError, "pml_freq is 0"),
        (changed(grid_spacing=[1.0, 2.0, 3.0]), ValueError, "2 dimensions"),
        (changed(grid_spacing=-1.0), ValueError, "positive"),
        (changed(nt=0), ValueError, "nt is 0"),
        (changed(pml_widht=3), TypeError, "no option 'pml_widht'"),
        (changed(source_amplitudes=AMPLITUDES), TypeError, "sources="),
        (
            changed(model_gradient_sampling_interval=2),
            ValueError,
            "makes gradients inexact",
        ),
        (lambda: Survey("sclar", **arguments()), ValueError, "deepwave has .*'scalar'"),
        (lambda: Survey("scalar_born", **arguments()), ValueError, "'scalar'"),
    ],
)
def test_bad_acquisition(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_wavelets_of_several_lengths_need_nt():
    given = arguments("acoustic", 2)
    amplitudes, locations = given["sources"]["volume_rate"]
    given["sources"]["x"] = (amplitudes[..., :-1], locations)
    with pytest.raises(ValueError, match=r"\[71, 72\] samples"):
        Survey("acoustic", **given)
    assert Survey("acoustic", nt=NT, **given).resolved.nt == NT
    given["sources"]["x"] = (amplitudes.float(), locations)
    with pytest.raises(ValueError, match="wavelets differ"):
        Survey("acoustic", **given)


# -- bad models -------------------------------------------------------------------------


def model_with(value):
    v = torch.full(SHAPE, 2000.0, dtype=D)
    v[3, 5] = value
    return v


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (model_with(MAX_VEL + 1), ValueError, r"reaches 2501.*max_vel=2500.*\(3, 5\)"),
        (model_with(-1.0), ValueError, r"-1 at its lowest.*\(3, 5\)"),
        (model_with(0.0), ValueError, "not positive"),
        (model_with(float("nan")), ValueError, "1 NaN or infinite"),
        (model_with(float("inf")), ValueError, "1 NaN or infinite"),
        (model_with(2000.0).float(), ValueError, "float32.*survey.to"),
        (model_with(2000.0)[None], ValueError, "the survey is 2-D"),
        ((model_with(2000.0),) * 2, ValueError, "takes 1 models"),
        ({"vp": model_with(2000.0)}, ValueError, r"takes \['v'\].*parameterisation"),
        ("model", TypeError, "not a torch.Tensor"),
        (model_with(2000.0)[:4], ValueError, r"receiver \(u\) 0 of shot 0.*4 × 17"),
        (model_with(2000.0)[:2], ValueError, r"source \(u\) 0 of shot 0.*2 × 17"),
    ],
)
def test_bad_model(model, error, message):
    with pytest.raises(error, match=message):
        survey().simulate(model)


def test_the_fastest_allowed_model_is_allowed():
    survey().simulate(model_with(MAX_VEL))


def test_unphysical_elastic_models(generator):
    lamb, mu, buoyancy = models_of("elastic", generator)
    there = survey("elastic")
    with pytest.raises(ValueError, match="lamb \\+ 2 mu is negative"):
        there.simulate((lamb - 1e11, mu, buoyancy))
    with pytest.raises(ValueError, match="'mu' is -"):
        there.simulate((lamb, mu - 1e10, buoyancy))
    with pytest.raises(ValueError, match="max_vel=4000"):
        there.simulate((3 * lamb, 3 * mu, buoyancy))
    fluid = (lamb + 2 * mu, torch.zeros_like(mu), buoyancy)
    assert float(there.simulate(fluid).norm()) > 0


def test_inactive_points_may_be_anywhere(generator):
    v = models_of("scalar", generator)[0]
    given = arguments("scalar", 2)
    away = given["receivers"]["u"].clone()
    away[1, 2] = 99
    mask = torch.ones(2, 4, dtype=torch.bool)
    mask[1, 2] = False
    there = Survey("scalar", **{**given, "receivers": {"u": (away, mask)}})
    assert float(there.simulate(v)[1, 2].abs().max()) == 0
    away[1, 2] = deepwave.IGNORE_LOCATION
    there = Survey("scalar", **{**given, "receivers": {"u": away}})
    assert float(there.simulate(v)[1, 2].abs().max()) == 0


def test_float32_model_at_its_stated_max_vel_runs(generator):
    """1999.9 in float32 is above 1999.9."""
    v = torch.full(models_of("scalar", generator)[0].shape, 1999.9)
    single = survey(max_vel=1999.9, dtype=torch.float32)
    assert single.simulate(v).dtype == torch.float32
    with pytest.raises(ValueError, match="above the survey's max_vel"):
        single.simulate(v * 1.001)
