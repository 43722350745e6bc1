"""Surveys read from files, against the same surveys made by hand."""

import math

import deepwave
import numpy as np
import pytest
import torch
from segy_files import write_line, write_traces
from waves import D, one_thread, rand, relative  # noqa: F401

import hvpopt
from hvpopt.fwi import L2, Gathers, Survey, WaveformMisfit, read_survey

pytestmark = pytest.mark.filterwarnings("ignore::deepwave.MigrationWarning")

H, DT, NT, FREQ, MAX_VEL = 10.0, 0.002, 90, 15.0, 2500.0
SHAPE = (16, 44)
SHOTS, RECEIVERS = 3, 6
#: Of a survey on a grid from (0, 0).
GIVEN = {
    "wavelet": FREQ,
    "grid_spacing": H,
    "max_vel": MAX_VEL,
    "origin": (0.0, 0.0),
    "shape": SHAPE,
    "pml_width": 6,
}
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


def streamer(shot_step=40.0, depth=20.0, first=120.0, near=-40.0, step=20.0):
    """Sources ``[shot, 3]`` and receivers that move with them, metres."""
    sources = torch.zeros(SHOTS, 3, dtype=D)
    sources[:, 0] = depth
    sources[:, 2] = first + shot_step * torch.arange(SHOTS)
    receivers = torch.zeros(SHOTS, RECEIVERS, 3, dtype=D)
    receivers[..., 0] = 30.0
    receivers[..., 2] = sources[:, None, 2] + near + step * torch.arange(RECEIVERS)
    return sources, receivers


def spread():
    """The same sources, and receivers that stay."""
    sources, receivers = streamer()
    return sources, receivers[:1].repeat(SHOTS, 1, 1)


def cells(positions):
    return positions[..., [0, 2]] / H


def by_hand(sources, receivers, dtype, **options):
    """Return the survey of cells, as a person makes it."""
    wavelet = deepwave.wavelets.ricker(FREQ, NT, DT, 1.5 / FREQ, dtype=D).to(dtype)
    given = {"pml_width": 6, "max_vel": MAX_VEL, "pml_freq": FREQ} | options
    return Survey(
        given.pop("propagator", "scalar"),
        grid_spacing=H,
        dt=DT,
        sources={given.pop("source", "u"): (wavelet.repeat(SHOTS, 1, 1), sources)},
        receivers={given.pop("receiver", "u"): receivers},
        **given,
    )


def on_nodes(sources, receivers, dtype):
    return by_hand(
        cells(sources)[:, None].round().long(), cells(receivers).round().long(), dtype
    )


def models(generator, dtype):
    """A true model and a start."""
    v = rand(SHAPE, generator, 1900, 2100).to(dtype)
    return v, torch.full_like(v, 2000.0)


def noise(generator, shots=SHOTS, receivers=RECEIVERS, samples=NT):
    return torch.randn(shots, receivers, samples, generator=generator)


# -- round trips --------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("line", [streamer, spread])
def test_inversion_from_a_file_is_that_by_hand_bit_for_bit(
    line, dtype, generator, tmp_path
):
    sources, receivers = line()
    true, start = models(generator, dtype)
    hand = on_nodes(sources, receivers, dtype)
    observed = hand.simulate(true).float().to(dtype)  # as a file holds it
    path = write_line(tmp_path / "line.sgy", observed, sources, receivers)
    found = read_survey(path, **GIVEN, dtype=dtype)
    assert torch.equal(found.observed, observed)
    assert (found.origin, found.shape, found.spacing) == ((0.0, 0.0), SHAPE, (H, H))
    assert found.trace_weights is None
    assert found.sample_weights is None
    assert not found.dropped
    assert found.shots == (0, 1, 2)
    assert found.survey.fixed_spread == (line is spread)
    assert found.survey.resolved == hand.resolved
    assert torch.equal(found.survey.simulate(true), hand.simulate(true))
    runs = [
        hvpopt.minimize(
            WaveformMisfit(survey, data), start, lower=1500.0, upper=MAX_VEL, max_iter=2
        )
        for survey, data in ((found.survey, found.observed), (hand, observed))
    ]
    assert runs[0].nit == 2
    assert not torch.equal(runs[0].x, start)
    assert torch.equal(runs[0].x, runs[1].x)
    assert runs[0].fun == runs[1].fun


@pytest.mark.parametrize("endian", ["big", "little"])
@pytest.mark.parametrize("feet", [False, True])
def test_units_and_byte_order(feet, endian, generator, tmp_path):
    data = noise(generator)
    sources, receivers = streamer()
    factor = 1 / 0.3048 if feet else 1.0
    path = write_line(
        tmp_path / "line.segy",
        data,
        sources * factor,
        receivers * factor,
        endian=endian,
        mfeet=2 if feet else 1,
    )
    order = None if endian == "big" else endian
    # a hundredth of a foot is 3e-4 cells
    found = read_survey(path, **GIVEN, byte_order=order)
    assert torch.equal(found.observed, data)
    v = models(generator, torch.float32)[0]
    expected = on_nodes(sources, receivers, torch.float32).simulate(v)
    assert torch.equal(found.survey.simulate(v), expected)


def test_gathers_are_read_as_their_file_is(generator, tmp_path):
    data, (sources, receivers) = noise(generator), streamer()
    path = write_line(tmp_path / "line.sgy", data, sources, receivers)
    gathers = Gathers(data.clone(), DT, sources.clone(), receivers.clone())
    from_file = read_survey(path, **GIVEN)
    found = read_survey(gathers, **GIVEN, source_depth=20)
    v = models(generator, torch.float32)[0]
    assert torch.equal(found.survey.simulate(v), from_file.survey.simulate(v))
    assert torch.equal(found.observed, data)
    assert found.info == from_file.info
    for mine, given in ((gathers.data, data), (gathers.sources, sources)):
        assert torch.equal(mine, given)
    assert read_survey(gathers, **GIVEN, dtype=D).observed.dtype == D


# -- off the grid -------------------------------------------------------------------


def off_grid(generator):
    """A streamer in hundredths of a metre, away from nodes."""
    sources, receivers = streamer(depth=63.0)
    receivers[..., 0] = 74.0
    for where in (sources, receivers):
        moves = torch.randint(100, 400, where.shape, generator=generator).to(D) / 100
        where[..., [0, 2]] += moves[..., [0, 2]]
    return sources, receivers


@dtypes
def test_off_grid_positions_are_deepwaves_own(dtype, generator, tmp_path):
    sources, receivers = off_grid(generator)
    (v, _), tolerance = models(generator, dtype), 1e-4 if dtype != D else 1e-11
    path = write_line(tmp_path / "line.sgy", noise(generator), sources, receivers)
    found = read_survey(path, **GIVEN, dtype=dtype, snap=0)
    assert "are interpolated (Hicks, 8 cells" in found.info
    hand = by_hand(
        deepwave.Hicks(cells(sources)[:, None], dtype=dtype),
        deepwave.Hicks(cells(receivers), dtype=dtype),
        dtype,
    )
    # deepwave itself makes its own of places in floats
    floats = by_hand(cells(sources)[:, None].to(dtype), cells(receivers).to(dtype), dtype)
    data = found.survey.simulate(v)
    assert float(data.abs().max()) > 0
    assert relative(data, hand.simulate(v)) < tolerance
    assert relative(data, floats.simulate(v)) < tolerance


def test_gradient_and_product_off_the_grid(generator, tmp_path):
    sources, receivers = off_grid(generator)
    v, start = models(generator, D)
    path = write_line(tmp_path / "line.sgy", noise(generator), sources, receivers)
    found = read_survey(path, **GIVEN, dtype=D)
    misfit = WaveformMisfit(found.survey, found.survey.simulate(v))
    w = rand(SHAPE, generator, -1)
    exact = WaveformMisfit(
        found.survey, found.survey.simulate(v), engine="double-backprop"
    )
    assert relative(misfit.hessian(start) @ w, exact.hessian(start) @ w) < 1e-10
    slope = (misfit.value(start + 1e-3 * w) - misfit.value(start - 1e-3 * w)) / 2e-3
    gradient = misfit.value_and_gradient(start)[1]
    assert float((gradient * w).sum()) == pytest.approx(float(slope), rel=1e-5)


def test_spread_off_the_grid_can_be_encoded_and_selected(generator, tmp_path):
    sources, receivers = off_grid(generator)
    receivers = receivers[:1].repeat(SHOTS, 1, 1)
    path = write_line(tmp_path / "line.sgy", noise(generator), sources, receivers)
    survey = read_survey(path, **GIVEN, dtype=D).survey
    v, _ = models(generator, D)
    data = survey.simulate(v)
    assert survey.fixed_spread
    codes = rand((2, SHOTS), generator, -1)
    mixed = torch.einsum("es,srt->ert", codes, data)
    assert relative(survey.encode(codes).simulate(v), mixed) < 1e-11
    assert torch.equal(survey.select([2, 0]).simulate(v), data[[2, 0]])
    assert relative(survey.to(torch.float32).simulate(v.float()).double(), data) < 1e-4


@pytest.mark.parametrize("face", ["free", "rigid"])
def test_mirror_above_is_at_depth_zero(face, generator, tmp_path):
    sources, receivers = streamer(depth=13.0)
    receivers[..., 0] = 17.0
    path = write_line(tmp_path / "line.sgy", noise(generator), sources, receivers)
    boundary = {"boundary": [face, "pml", "pml", "pml"], "pml_width": [0, 6, 6, 6]}
    given = {**GIVEN, **boundary, "origin": None}
    found = read_survey(path, **given, dtype=D)
    plane = {"free": H, "rigid": H / 2}[face]
    assert found.origin[0] == plane
    v, _ = models(generator, D)
    # deepwave folds the windows of places in floats by itself
    start = torch.tensor(found.origin, dtype=D)
    hand = by_hand(
        (sources[:, None][..., [0, 2]] - start) / H,
        (receivers[..., [0, 2]] - start) / H,
        D,
        **boundary,
    )
    assert relative(found.survey.simulate(v), hand.simulate(v)) < 1e-11


@pytest.mark.parametrize("channel", ["y", "x"])
def test_velocity_components_lie_between_the_cells(channel, generator, tmp_path):
    """Deepwave itself knows where the nodes of a component are, of places in floats."""
    sources, receivers = streamer(depth=60.0)
    receivers[..., 0] = 70.0
    path = write_line(tmp_path / "line.sgy", noise(generator), sources, receivers)
    options = {"propagator": "elastic", "max_vel": 4000.0}
    given = {**GIVEN, **options, "receiver_channel": channel}
    found = read_survey(path, **given, dtype=D)
    v = rand(SHAPE, generator, 2800, 3200)
    model = deepwave.vpvsrho_to_lambmubuoyancy(v, v / 2, 0 * v + 2000)
    hand = by_hand(
        cells(sources)[:, None],
        cells(receivers),
        D,
        source="pressure_rate",
        receiver=channel,
        **options,
    )
    assert set(found.survey.data_shapes) == {channel}
    assert relative(found.survey.simulate(model), hand.simulate(model)) < 1e-11


def test_every_position_moved_to_its_node(generator, tmp_path):
    sources, receivers = off_grid(generator)
    path = write_line(tmp_path / "line.sgy", noise(generator), sources, receivers)
    found = read_survey(path, **GIVEN, snap=0.5)
    assert "All positions are on nodes" in found.info
    v, _ = models(generator, torch.float32)
    expected = on_nodes(sources, receivers, torch.float32).simulate(v)
    assert torch.equal(found.survey.simulate(v), expected)


def test_receivers_of_one_node_share_it(generator):
    sources, receivers = streamer()
    receivers[:, 1] = receivers[:, 0]
    found = read_survey(Gathers(noise(generator), DT, sources, receivers), **GIVEN)
    data = found.survey.simulate(models(generator, torch.float32)[0])
    torch.testing.assert_close(data[:, 1], data[:, 0], rtol=0, atol=0)
    assert float(data[:, 2].sub(data[:, 0]).abs().max()) > 0


# -- the line and the grid ----------------------------------------------------------


def turned(positions, angle, x=5000.0, y=-300.0):
    """Return positions with the x axis turned by an angle about a point of the map."""
    z, _, along = positions.unbind(-1)
    return torch.stack([z, y + along * math.sin(angle), x + along * math.cos(angle)], -1)


@pytest.mark.parametrize("degrees", [0, 30, 90, 120, 200, 250])
def test_line_in_any_direction(degrees, generator):
    angle = math.radians(degrees)
    sources, receivers = streamer()
    gathers = Gathers(
        noise(generator), DT, turned(sources, angle), turned(receivers, angle)
    )
    ends = tuple(
        turned(torch.tensor([0.0, 0.0, along], dtype=D), angle)[[2, 1]].tolist()
        for along in (0.0, 1000.0)
    )
    v, _ = models(generator, torch.float32)
    expected = on_nodes(sources, receivers, torch.float32).simulate(v)
    found = read_survey(gathers, **GIVEN, line=ends)
    assert torch.equal(found.survey.simulate(v), expected)
    # by its best line, along which x (or y) grows, the ends are alike
    free = {**GIVEN, "origin": None, "shape": None}
    straight = read_survey(Gathers(gathers.data, DT, sources, receivers), **free)
    chosen = read_survey(gathers, **free)
    assert chosen.shape == straight.shape
    v = rand(chosen.shape, generator, 1900, 2100).float()
    mirrored = v.flip(1) if degrees > 135 else v  # along falling x, y
    data = chosen.survey.simulate(mirrored), straight.survey.simulate(v)
    assert relative(*data) < 1e-4


def test_crooked_line_is_refused_and_may_be_projected(generator, tmp_path):
    sources, receivers = streamer()
    receivers[2, :, 1] = 60.0
    path = write_line(tmp_path / "line.sgy", noise(generator), sources, receivers)
    words = (
        r"positions lie up to \d+\.?\d* m off their line .* more than max_off_line=20 m"
    )
    with pytest.raises(ValueError, match=words) as error:
        read_survey(path, **GIVEN)
    allowed = int(str(error.value).split("Pass max_off_line=")[1].split()[0])
    found = read_survey(
        path, **{**GIVEN, "origin": None, "shape": None}, max_off_line=allowed
    )
    assert "m off it, and projecting them changed offsets by up to" in found.info
    straight = read_survey(path, **GIVEN, line=((0, 0), (1, 0)), max_off_line=60)
    assert "up to 60 m off it" in straight.info
    with pytest.raises(ValueError, match=r"off their line .*of shot 2 farthest"):
        read_survey(path, **GIVEN, line=((0, 0), (1, 0)), max_off_line=59)


@pytest.mark.parametrize("n_dimensions", [2, 3])
def test_grid_chosen_holds_all_and_keeps_the_surface_on_a_node(
    n_dimensions, generator, tmp_path
):
    sources, receivers = off_grid(generator)
    sources[:, 0] -= 60.0  # three to seven metres deep
    path = write_line(tmp_path / "line.sgy", noise(generator), sources, receivers)
    given = {**GIVEN, "origin": None, "shape": None, "n_dimensions": n_dimensions}
    found = read_survey(path, **given, margin=5)
    assert found.origin[0] == -3 * H  # a window of eight cells about the first
    places = torch.cat([sources, receivers.flatten(0, 1)])
    last = float(places[:, 2].max())
    assert found.origin[-1] == pytest.approx(float(places[:, 2].min()) - 5 * H)
    assert last + 5 * H <= found.origin[-1] + (found.shape[-1] - 1) * H < last + 6 * H
    offset = float((receivers - sources[:, None])[..., 1:].norm(dim=-1).max())
    depth = found.origin[0] + (found.shape[0] - 1) * H
    assert max(offset / 2, float(places[:, 0].max()) + 3 * H) <= depth + 1e-9
    assert "chosen to hold them" in found.info
    data = found.survey.simulate(torch.full(found.shape, 2000.0))
    assert data.shape == (SHOTS, RECEIVERS, NT)
    deep = read_survey(path, **given, depth=400.0)
    assert deep.origin[0] + (deep.shape[0] - 1) * H >= 400.0


@pytest.mark.parametrize("given", [{"origin": (0.0, 0.0)}, {"shape": (12, 20)}])
def test_grid_that_the_error_names_holds_all(given, generator, tmp_path):
    sources, receivers = streamer(depth=7.0)
    path = write_line(tmp_path / "line.sgy", noise(generator), sources, receivers)
    free = {**GIVEN, "origin": None, "shape": None}
    with pytest.raises(
        ValueError, match=r"sources? of shots? [012, ]+ lie outside"
    ) as error:
        read_survey(path, **{**free, **given})
    named = str(error.value).split("A grid that holds all: ")[1].split(";")[0]
    grid = eval(f"dict({named})")
    found = read_survey(path, **{**free, **grid})
    assert found.survey.simulate(torch.full(found.shape, 2000.0)).isfinite().all()


# -- traces that do not take part ---------------------------------------------------


def test_uneven_shots_and_bad_traces(generator, tmp_path):
    sources, receivers = streamer()
    data = noise(generator)
    exists = torch.ones(SHOTS, RECEIVERS, dtype=torch.bool)
    exists[1, 4:] = False
    data[0, 2] = 0.0
    data[2, 1, 5] = math.nan
    path = write_line(tmp_path / "line.sgy", data, sources, receivers, exists=exists)
    found = read_survey(path, **GIVEN, dtype=D)
    live = exists.clone()
    live[0, 2] = live[2, 1] = False
    assert torch.equal(found.trace_weights, live.to(D))
    assert {k: v.tolist() for k, v in found.dropped.items()} == {
        "dead": [[0, 2]],
        "not finite": [[2, 1]],
    }
    assert "3 to 6" not in found.info
    assert "3 shots of 4 to 5 live receivers" in found.info
    v, _ = models(generator, D)
    simulated = found.survey.simulate(v)
    whole = on_nodes(sources, receivers, D).simulate(v)
    expected = torch.where(live[..., None], whole, 0.0)
    assert torch.equal(simulated, expected)
    misfit = WaveformMisfit(
        found.survey, found.observed, L2(trace_weights=found.trace_weights)
    )
    squares = (whole - data.to(D))[live].square().sum() / data.numel()
    assert float(misfit.value(v)) == pytest.approx(float(squares), rel=1e-12)
    assert not found.survey.fixed_spread


def test_shot_without_a_live_trace_is_left_out(generator, tmp_path):
    sources, receivers = streamer()
    data = noise(generator)
    data[1] = 0.0
    path = write_line(tmp_path / "line.sgy", data, sources, receivers)
    wavelets = rand((SHOTS, NT), generator, -1)
    found = read_survey(path, **{**GIVEN, "wavelet": wavelets}, pml_freq=FREQ, dtype=D)
    assert found.shots == (0, 2)
    assert "no live trace: 1 shot" in found.info
    assert found.dropped["dead"].tolist() == [[1, r] for r in range(data.shape[1])]
    assert torch.equal(found.observed, data[[0, 2]].to(D))
    v, _ = models(generator, D)
    places = cells(sources)[:, None].long(), cells(receivers).long()
    hand = Survey(
        "scalar", grid_spacing=H, dt=DT, max_vel=MAX_VEL, pml_freq=FREQ, pml_width=6,
        sources={"u": (wavelets[:, None], places[0])}, receivers={"u": places[1]},
    )  # fmt: skip
    assert torch.equal(found.survey.simulate(v), hand.simulate(v)[[0, 2]])


@pytest.mark.parametrize("start", [[8, 8, 8], [-8, -8, -8], [0, 8, 4], [-4, 0, 2]])
def test_recordings_that_start_before_or_after_the_shot(start, generator, tmp_path):
    sources, receivers = streamer()
    data = noise(generator)
    path = write_line(
        tmp_path / "line.sgy",
        data,
        sources,
        receivers,
        headers=lambda s, r: {"DelayRecordingTime": start[s]},  # noqa: ARG005
    )
    found = read_survey(path, **GIVEN)
    shifts = [s // 2 for s in start]  # 2 ms a sample
    length = NT + max(shifts)
    weights = torch.zeros(SHOTS, RECEIVERS, length)
    expected = torch.zeros(SHOTS, RECEIVERS, length)
    for shot, shift in enumerate(shifts):
        for i in range(NT):
            if i + shift >= 0:
                expected[shot, :, i + shift] = data[shot, :, i]
                weights[shot, :, i + shift] = 1.0
    assert torch.equal(found.observed, expected)
    if bool((weights == 1).all()):
        assert found.sample_weights is None
    elif len(set(shifts)) == 1:
        assert torch.equal(found.sample_weights, weights[0, 0])
    else:
        assert torch.equal(found.sample_weights, weights)
    assert found.survey.resolved.nt == length
    padded = f"zero here: the first {max(start)} ms" in found.info
    assert padded == (found.sample_weights is not None)
    assert (f"before the shot: up to {-min(start)} ms" in found.info) == (min(start) < 0)
    check_misfit_of_weights(found, expected, weights, generator)
    cut = read_survey(path, **GIVEN, nt=20)
    assert torch.equal(cut.observed, expected[..., :20])


def check_misfit_of_weights(found, expected, weights, generator):
    """The weighted misfit of what was read is the mean square of what was recorded."""
    misfit = WaveformMisfit(
        found.survey, found.observed, L2(sample_weights=found.sample_weights)
    )
    v, _ = models(generator, torch.float32)
    residual = (found.survey.simulate(v) - expected) * weights
    mean = float(residual.double().square().mean())
    assert float(misfit.value(v)) == pytest.approx(mean, rel=1e-4)


def coded(codes, counts=None):
    """Return headers that say what each trace is, and how long."""

    def headers(s, r):
        own = {"TraceIdentificationCode": int(codes[s, r])}
        if counts is not None:
            own["TRACE_SAMPLE_COUNT"] = int(counts[s, r])
        return own

    return headers


def some(generator, low, high):
    """Random whole numbers ``[shot, receiver]`` from low to below high."""
    return torch.randint(low, high, (SHOTS, RECEIVERS), generator=generator)


def test_plain_trace_codes_say_nothing(generator, tmp_path):
    data, places = noise(generator), streamer()
    plain = write_line(tmp_path / "a.sgy", data, *places)
    headers = coded(some(generator, -1, 2))
    path = write_line(tmp_path / "b.sgy", data, *places, headers=headers)
    found = read_survey(path, **GIVEN)
    assert torch.equal(found.observed, data)
    assert found.info == read_survey(plain, **GIVEN).info
    assert torch.equal(hvpopt.fwi.read_gathers(path).data, data)


@pytest.mark.parametrize("endian", ["big", "little"])
def test_trace_marked_dead_takes_no_part(endian, generator, tmp_path):
    data, (sources, receivers) = noise(generator), streamer()
    dead = some(generator, 0, 3) == 0
    dead[0, 0] = True
    dead[:, 1] = False  # no shot of dead traces alone
    # what a dead trace has in its headers and samples counts for nothing
    data[dead] *= 1e3
    data[0, 0, 3] = math.nan
    path = write_line(
        tmp_path / "line.sgy",
        data,
        sources,
        receivers,
        headers=lambda s, r: {
            "TraceIdentificationCode": 2 if dead[s, r] else 1,
            **({"SourceX": 0, "GroupY": 9**6} if dead[s, r] else {}),
            **({"DelayRecordingTime": 4} if dead[s, r] else {}),
            **({"SourceGroupScalar": 1000} if dead[s, r] else {}),
        },
        endian=endian,
    )
    order = {"byte_order": endian}
    found = read_survey(path, **GIVEN, **order)
    assert torch.equal(found.trace_weights, (~dead).float())
    assert {k: v.tolist() for k, v in found.dropped.items()} == {
        "dead": dead.nonzero().tolist()
    }
    assert torch.equal(found.observed, torch.where(dead[..., None], 0.0, data))
    assert f"Left out, dead: {int(dead.sum())} trace" in found.info
    gathers = hvpopt.fwi.read_gathers(path, **order)
    assert torch.equal(gathers.data, found.observed)
    assert torch.equal(gathers.sources, sources)
    taken = read_survey(path, **GIVEN, **order, component=1)
    assert torch.equal(taken.observed, found.observed)


def test_auxiliary_traces_are_left_out(generator, tmp_path):
    data, (sources, receivers) = noise(generator), streamer()
    auxiliary = torch.tensor([[0, 5], [1, 0], [2, 3]])
    codes = torch.ones(SHOTS, RECEIVERS)
    for i, (s, r) in enumerate(auxiliary.tolist()):
        codes[s, r] = (6, 4, 9)[i]
        data[s, r] *= 1e4
    path = write_line(
        tmp_path / "line.sgy", data, sources, receivers, headers=coded(codes)
    )
    found = read_survey(path, **GIVEN)
    keep = codes == 1
    assert torch.equal(found.observed, data[keep].reshape(SHOTS, RECEIVERS - 1, NT))
    assert not found.dropped
    assert (
        "Left out, not seismic data: 1 of code 4 (time break), 1 of code 6 (sweep), "
        "1 of code 9 (near-field gun signature)." in found.info
    )
    where = receivers[keep].reshape(SHOTS, RECEIVERS - 1, 3)
    hand = on_nodes(sources, where, torch.float32)
    v, _ = models(generator, torch.float32)
    assert torch.equal(found.survey.simulate(v), hand.simulate(v))
    gathers = hvpopt.fwi.read_gathers(path)
    assert torch.equal(gathers.data, found.observed)
    sweep = hvpopt.fwi.read_gathers(path, component=6)
    assert torch.equal(sweep.data[0, 0], data[0, 5])
    only = write_line(
        tmp_path / "aux.sgy", data, sources, receivers, headers=coded(0 * codes + 6)
    )
    words = r"holds no seismic traces .*18 of code 6 \(sweep\); .*pass their code as comp"
    with pytest.raises(ValueError, match=words):
        read_survey(only, **GIVEN)


def test_sensors_of_one_file_are_chosen(generator, tmp_path):
    """Hydrophones and vertical geophones by turns, as a cable records them."""
    data, (sources, receivers) = noise(generator), streamer()
    codes = torch.where(torch.arange(RECEIVERS) % 2 == 0, 11, 12).repeat(SHOTS, 1)
    codes[0, 0] = 2
    path = write_line(
        tmp_path / "line.sgy", data, sources, receivers, headers=coded(codes)
    )
    words = (
        r"several sensors .*: 8 of code 11 \(pressure\), 9 of code 12 \(vertical\); "
        "pass component='pressure' or 'vertical'"
    )
    for read in (hvpopt.fwi.read_gathers, lambda p: read_survey(p, **GIVEN)):
        with pytest.raises(ValueError, match=words):
            read(path)
    for name, code in (("pressure", 11), ("vertical", 12)):
        kept = [
            data[s][(codes[s] == code) | (codes[s] == 2)].clone() for s in range(SHOTS)
        ]
        kept[0][0] = 0.0  # the dead trace may have been of either
        for component in (name, code, np.int64(code)):
            found = read_survey(path, **GIVEN, component=component)
            for own, expected in zip(found.observed, kept, strict=True):
                assert torch.equal(own[: len(expected)], expected)
            assert f"of code {code} ({name})" in found.info
            assert found.dropped["dead"].tolist() == [[0, 0]]
            gathers = hvpopt.fwi.read_gathers(path, component=component, pad=True)
            assert torch.equal(gathers.data, found.observed)
    one = write_line(
        tmp_path / "one.sgy", data, sources, receivers, headers=coded(0 * codes + 12)
    )
    alone = read_survey(one, **GIVEN)
    assert torch.equal(alone.observed, data)
    assert "Component: 18 of code 12 (vertical)." in alone.info


@pytest.mark.parametrize(
    ("component", "error", "words"),
    [
        ("inline", ValueError, r"of which .* has no trace; it has 18 of code 1 \(seis"),
        (14, ValueError, "component is 14, of which"),
        ("hydrophone", ValueError, r"component is 'hydrophone'; it must be one of"),
        (1.5, ValueError, "must be a whole number"),
        ([11], TypeError, "component"),
    ],
)
def test_wrong_components(component, error, words, generator, tmp_path):
    path = write_line(tmp_path / "line.sgy", noise(generator), *streamer())
    with pytest.raises(error, match=words):
        read_survey(path, **GIVEN, component=component)


def test_component_of_gathers_is_an_error(generator):
    gathers = Gathers(noise(generator), DT, *streamer())
    with pytest.raises(ValueError, match="Gathers hold those of one component"):
        read_survey(gathers, **GIVEN, component="pressure")


@pytest.mark.parametrize("delay", [0, 8])
def test_traces_shorter_than_the_file(delay, generator, tmp_path):
    data, places = noise(generator), streamer()
    counts = some(generator, 40, NT + 1)
    counts[0, 1], counts[1, 2] = 0, NT  # zero says nothing
    ends = torch.where(counts == 0, NT, counts)
    data = data * (torch.arange(NT) < ends[..., None])
    path = write_line(
        tmp_path / "line.sgy",
        data,
        *places,
        headers=lambda s, r: {
            "TRACE_SAMPLE_COUNT": int(counts[s, r]),
            "DelayRecordingTime": delay,
        },
    )
    counts[0, 1] = NT
    first = round(delay * 1e-3 / DT)
    weights = torch.zeros(SHOTS, RECEIVERS, NT + first)
    expected = torch.zeros(SHOTS, RECEIVERS, NT + first)
    for s in range(SHOTS):
        for r in range(RECEIVERS):
            end = int(counts[s, r])
            weights[s, r, first : first + end] = 1.0
            expected[s, r, first : first + end] = data[s, r, :end]
    found = read_survey(path, **GIVEN)
    assert torch.equal(found.observed, expected)
    assert torch.equal(found.sample_weights, weights)
    assert "the end of some traces" in found.info
    if not delay:
        assert torch.equal(hvpopt.fwi.read_gathers(path).data, expected)
    check_misfit_of_weights(found, expected, weights, generator)


def test_traces_all_shorter_than_the_file(generator, tmp_path):
    data = noise(generator) * (torch.arange(NT) < 70)
    path = write_line(
        tmp_path / "line.sgy",
        data,
        *streamer(),
        headers=lambda s, r: {"TRACE_SAMPLE_COUNT": 70},  # noqa: ARG005
    )
    found = read_survey(path, **GIVEN)
    assert torch.equal(found.sample_weights, (torch.arange(NT) < 70).float())
    assert "zero here: the end of all traces;" in found.info
    assert read_survey(path, **GIVEN, nt=70).sample_weights.all()


def test_a_stale_count_of_samples_loses_nothing(generator, tmp_path):
    data, places = noise(generator), streamer()
    headers = coded(torch.ones(SHOTS, RECEIVERS), some(generator, 1, NT))
    path = write_line(tmp_path / "line.sgy", data, *places, headers=headers)
    assert torch.equal(hvpopt.fwi.read_gathers(path).data, data)
    found = read_survey(path, **GIVEN)
    assert torch.equal(found.observed, data)
    assert found.sample_weights is None
    told = f"{SHOTS * RECEIVERS} traces hold samples after the end that their headers"
    assert told in found.info


@pytest.mark.parametrize("nt", [1, 39, 40])
def test_samples_before_the_recording_are_not_data(nt, generator, tmp_path):
    path = write_line(
        tmp_path / "line.sgy",
        noise(generator),
        *streamer(),
        headers=lambda s, r: {"DelayRecordingTime": 80 + 2 * s},  # noqa: ARG005
    )
    with pytest.raises(ValueError, match=rf"nt is {nt}, .* start at 0.08 s .* above 40"):
        read_survey(path, **GIVEN, nt=nt)
    assert float(read_survey(path, **GIVEN, nt=41).observed.abs().max()) > 0


# -- positions that are rounded -----------------------------------------------------


def jittered(generator, size, axes=(0, 1, 2)):
    """Return moves of each trace's source, centimetres ``[shot, receiver, 3]``."""
    moves = torch.randint(-size, size + 1, (SHOTS, RECEIVERS, 3), generator=generator)
    moves[:, 0], moves[:, 1] = size, -size
    taken = torch.zeros(3, dtype=torch.long)
    taken[list(axes)] = 1
    return moves * taken


def write_jittered(path, data, moves, first=120.0):
    sources, receivers = streamer(first=first)
    places = (100 * sources).round().long()[:, None] + moves
    return write_line(
        path,
        data,
        sources,
        receivers,
        headers=lambda s, r: dict(
            zip(("SourceDepth", "SourceY", "SourceX"), places[s, r].tolist(), strict=True)
        ),
    ), places.double().mean(1) / 100


def test_source_positions_rounded_in_headers_are_their_mean(generator, tmp_path):
    data = noise(generator)
    path, mean = write_jittered(tmp_path / "line.sgy", data, jittered(generator, 1))
    gathers = hvpopt.fwi.read_gathers(path)
    torch.testing.assert_close(gathers.sources, mean, rtol=0, atol=1e-9)
    found = read_survey(path, **GIVEN, snap=2e-3)
    assert "Source positions differ by up to 0.02 m within a shot; their mean is" in (
        found.info
    )
    straight = read_survey(Gathers(data, DT, mean, gathers.receivers), **GIVEN, snap=2e-3)
    v, _ = models(generator, torch.float32)
    assert torch.equal(found.survey.simulate(v), straight.survey.simulate(v))


def test_sources_that_jitter_need_a_word(generator, tmp_path):
    data = noise(generator)
    path, mean = write_jittered(tmp_path / "line.sgy", data, jittered(generator, 30))
    words = (
        r"those of FieldRecord 10[123] lie up to 0.6 m apart in depth \(up to 0.02 m is "
        r"taken for rounding\) and 0.6 m apart in y .* apart in x .* snap= .*_depth="
    )
    for read in (hvpopt.fwi.read_gathers, lambda p: read_survey(p, **GIVEN)):
        with pytest.raises(ValueError, match=words):
            read(path)
    found = read_survey(path, **GIVEN, snap=0.06)
    straight = Gathers(data, DT, mean, streamer()[1])
    v, _ = models(generator, torch.float32)
    expected = read_survey(straight, **GIVEN, snap=0.06).survey.simulate(v)
    assert torch.equal(found.survey.simulate(v), expected)


def test_depth_of_the_caller_settles_depths_that_jitter(generator, tmp_path):
    data = noise(generator)
    path, _ = write_jittered(tmp_path / "line.sgy", data, jittered(generator, 50, [0]))
    with pytest.raises(ValueError, match="1 m apart in depth"):
        read_survey(path, **GIVEN)
    found = read_survey(path, **GIVEN, source_depth=20.0)
    plain = read_survey(write_line(tmp_path / "p.sgy", data, *streamer()), **GIVEN)
    assert found.info == plain.info
    v, _ = models(generator, torch.float32)
    assert torch.equal(found.survey.simulate(v), plain.survey.simulate(v))


def test_sources_a_unit_of_coarse_headers_apart(tmp_path):
    """A metre may be rounding where headers count metres; ten where they count tens."""
    for scalar, step, good in (
        (1, 1, True),
        (1, 2, False),
        (10, 1, False),
        (-10, 1, True),
    ):
        headers = [
            {"FieldRecord": 7, "SourceX": 500 + step * i, "SourceGroupScalar": scalar}
            for i in range(2)
        ]
        path = write_traces(tmp_path / "d.sgy", np.ones((2, 9)), headers)
        if good:
            unit = scalar if scalar > 0 else -1 / scalar
            found = hvpopt.fwi.read_gathers(path).sources[0, 2]
            assert float(found) == pytest.approx((500 + step / 2) * unit)
        else:
            with pytest.raises(ValueError, match="several source positions within one"):
                hvpopt.fwi.read_gathers(path)


# -- wavelets and depths ------------------------------------------------------------


def test_wavelet_from_each_kind_of_source(generator, tmp_path):
    sources, receivers = streamer()
    path = write_line(tmp_path / "line.sgy", noise(generator), sources, receivers)
    ricker = deepwave.wavelets.ricker(FREQ, NT, DT, 1.5 / FREQ, dtype=torch.float32)
    np.save(tmp_path / "w.npy", ricker.numpy())
    np.save(tmp_path / "each.npy", ricker.repeat(SHOTS, 1).numpy())
    write_traces(tmp_path / "w.sgy", ricker[None].numpy(), [{}], dt=DT)
    v, _ = models(generator, torch.float32)
    given = {k: value for k, value in GIVEN.items() if k != "wavelet"}
    found = [
        read_survey(path, **given, wavelet=wavelet, pml_freq=FREQ).survey.simulate(v)
        for wavelet in (
            ricker,
            ricker.numpy(),
            ricker.repeat(SHOTS, 1),
            tmp_path / "w.npy",
            str(tmp_path / "each.npy"),
            tmp_path / "w.sgy",
        )
    ]
    for data in found:
        assert torch.equal(data, found[0])
    # rounded to single precision after it is made, not before
    by_number = read_survey(path, **given, wavelet=FREQ, pml_freq=FREQ)
    assert relative(by_number.survey.simulate(v), found[0]) < 1e-5
    assert read_survey(path, **given, wavelet=FREQ).survey.pml_freq == FREQ
    assert read_survey(path, **given, wavelet=ricker).survey.pml_freq == pytest.approx(
        FREQ, abs=0.5
    )


def test_depths_of_the_caller_win(generator, tmp_path):
    sources, receivers = streamer()
    flat = sources.clone(), receivers.clone()
    for where in flat:
        where[..., 0] = 0.0
    path = write_line(tmp_path / "line.sgy", noise(generator), *flat)
    found = read_survey(path, **GIVEN, source_depth=20.0, receiver_depth=30.0)
    v, _ = models(generator, torch.float32)
    expected = on_nodes(sources, receivers, torch.float32).simulate(v)
    assert torch.equal(found.survey.simulate(v), expected)


def test_what_is_told(generator, tmp_path):
    sources, receivers = streamer()
    path = write_line(tmp_path / "line.sgy", noise(generator), sources, receivers)
    found = read_survey(path, **GIVEN)
    for words in (
        "3 shots of 6 live receivers.",
        "Line: x.",
        "sources at 20 m, receivers at 30 m",
        "Grid: 16 × 44 cells of 10 × 10 m from (0.0, 0.0) m.",
        "All positions are on nodes.",
        "scalar, 2-D, 3 shots, 90 samples of 0.002 s",
    ):
        assert words in found.info
    assert found.info in repr(found)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_survey_on_a_gpu(generator, tmp_path):
    sources, receivers = off_grid(generator)
    path = write_line(tmp_path / "line.sgy", noise(generator), sources, receivers)
    v, start = models(generator, D)
    host = read_survey(path, **GIVEN, dtype=D)
    there = read_survey(path, **GIVEN, dtype=D, device="cuda")
    assert there.observed.is_cuda
    assert (
        relative(there.survey.simulate(v.cuda()).cpu(), host.survey.simulate(v)) < 1e-10
    )
    moved = host.survey.to(device="cuda")
    assert relative(moved.simulate(v.cuda()).cpu(), host.survey.simulate(v)) < 1e-10
    slopes = [
        WaveformMisfit(f.survey, f.observed).value_and_gradient(
            start.to(f.observed.device)
        )
        for f in (host, there)
    ]
    assert relative(slopes[1][1].cpu(), slopes[0][1]) < 1e-8


# -- wrong calls --------------------------------------------------------------------


def without(names):
    return {k: v for k, v in GIVEN.items() if k not in names}


WRONG = {
    "wavelet of a list": ({"wavelet": [1.0, 2.0]}, TypeError, "wavelet is a list; give"),
    "no wavelet": ({"wavelet": None}, TypeError, "a Ricker wavelet's frequency"),
    "fast wavelet": ({"wavelet": 200.0}, ValueError, "s: at most 125 Hz are"),
    "wavelets of other shots": (
        {"wavelet": torch.ones(2, 5)}, ValueError, r"shape \(2, 5\).* file's 3 shots"
    ),
    "zero wavelet": ({"wavelet": torch.zeros(9)}, ValueError, "the wavelet is zero"),
    "wavelet of another name": ({"wavelet": "w.wav"}, FileNotFoundError, "no file w.wav"),
    "constant wavelet": ({"wavelet": torch.ones(90)}, ValueError, "pass pml_freq="),
    "axes of the origin": ({"origin": (0.0,)}, ValueError, r"2 numbers, for \(depth"),
    "axes of the shape": ({"shape": (9, 9, 9)}, ValueError, "must have 2 numbers"),
    "spacing": ({"grid_spacing": -5.0}, ValueError, "grid_spacing is -5.0"),
    "dimensions": ({"n_dimensions": 4}, ValueError, "n_dimensions is 4"),
    "line": ({"line": (0, 1)}, ValueError, r"give the two ends \(\(x, y\), \(x, y\)\)"),
    "line of a point": ({"line": ((0, 1), (0, 1))}, ValueError, "be finite and differ"),
    "dt": ({"dt": 2.0}, ValueError, "4 ms is 0.004"),
    "channel": ({"receiver_channel": "p"}, ValueError, "unknown receiver channel 'p'"),
    "propagator": ({"propagator": "skalar"}, ValueError, "propagator is 'skalar'"),
    "header": ({"shot_key": "Shot"}, ValueError, "'Shot' is no SEG-Y trace header"),
    "shots not told apart": (
        {"shot_key": "TraceNumber"}, ValueError, "several source positions"
    ),
    "samples": ({"nt": 91}, ValueError, r"nt is 91; it must lie in \[1, 90\]"),
    "dtype": ({"dtype": torch.int32}, (TypeError, ValueError), "dtype"),
    "halfwidth": ({"halfwidth": 11}, ValueError, "halfwidth is 11"),
    "option": ({"pml_widht": 3}, TypeError, "no option 'pml_widht'"),
    "byte order": ({"byte_order": "little"}, ValueError, "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls(name, generator, tmp_path):
    option, error, words = WRONG[name]
    path = write_line(tmp_path / "line.sgy", noise(generator), *streamer())
    with pytest.raises(error, match=words):
        read_survey(path, **{**GIVEN, **option})


def test_files_that_do_not_do(generator, tmp_path):
    data, (sources, receivers) = noise(generator), streamer()
    np.save(tmp_path / "d.npy", data.numpy())
    with pytest.raises(ValueError, match=r"no SEG-Y file .* Gathers"):
        read_survey(tmp_path / "d.npy", **GIVEN)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none"):
        read_survey(tmp_path / "none.sgy", **GIVEN)
    with pytest.raises(TypeError, match=r"path \(which may be hvpopt.fwi.Gathers\) is a"):
        read_survey(data, **GIVEN)
    path = write_line(tmp_path / "a.sgy", data, 0 * sources, 0 * receivers)
    with pytest.raises(ValueError, match=r"no positions of sources .* Gathers"):
        read_survey(path, **GIVEN)
    sources[:, 1:] = 0.0
    path = write_line(tmp_path / "b.sgy", data, sources, receivers)
    with pytest.raises(ValueError, match="no source positions: SourceX and SourceY are"):
        read_survey(path, **GIVEN)
    path = write_line(tmp_path / "c.sgy", 0 * data, *streamer())
    with pytest.raises(ValueError, match="no trace is live"):
        read_survey(path, **GIVEN)
    late = write_line(
        tmp_path / "d.sgy", data, *streamer(),
        headers=lambda s, r: {"DelayRecordingTime": 3},  # noqa: ARG005
    )  # fmt: skip
    with pytest.raises(
        ValueError, match=r"starts at 3 ms .* whole number of samples of 2"
    ):
        read_survey(late, **GIVEN)
    other = write_traces(tmp_path / "w.sgy", np.ones((1, 9)), [{}], dt=0.004)
    with pytest.raises(ValueError, match=r"sampled at 0.004 s, the data at 0.002 s"):
        read_survey(late, **{**GIVEN, "wavelet": other})


@pytest.mark.parametrize(
    ("wrong", "meant"), [("max_offline", "max_off_line"), ("depht", "depth")]
)
def test_an_option_spelt_wrong_is_told_which_was_meant(wrong, meant, generator):
    gathers = Gathers(noise(generator), DT, *streamer())
    with pytest.raises(TypeError, match=f"{wrong!r}; did you mean {meant!r}"):
        read_survey(gathers, **GIVEN, **{wrong: 3})


def test_gathers_that_do_not_do(generator):
    data, (sources, receivers) = noise(generator), streamer()
    with pytest.raises(ValueError, match="the gathers hold no positions of receivers"):
        read_survey(Gathers(data, DT, sources), **GIVEN)
    receivers[1, 3, 2] = math.nan
    with pytest.raises(ValueError, match="first that of receiver 3 of shot 1"):
        read_survey(Gathers(data, DT, sources, receivers), **GIVEN)
    receivers[1, 3, 2] = 1e4
    with pytest.raises(
        ValueError, match=r"1 receiver of shot 1 lie outside.*receiver 3 of shot 1"
    ):
        read_survey(Gathers(data, DT, sources, receivers), **GIVEN)


def test_source_on_a_free_surface(generator):
    sources, receivers = streamer(depth=0.0)
    gathers = Gathers(noise(generator), DT, sources, receivers)
    boundary = {"boundary": ["free", "pml", "pml", "pml"], "pml_width": [0, 6, 6, 6]}
    with pytest.raises(ValueError, match="The free face above lies at depth 0 m"):
        read_survey(gathers, **{**GIVEN, "origin": None, **boundary})


# -- where the face above lies ------------------------------------------------------

#: Propagator, condition, receiver channel, depths and x of the first receiver, such that
#: all are on nodes of cells of 2.5 m and not of 10 m; and how near the two come.
REFLECTING = {
    "scalar, free": ("scalar", "free", None, (12.5, 17.5, 240.0), 0.03),
    "scalar, rigid": ("scalar", "rigid", None, (13.75, 18.75, 240.0), 0.03),
    "scalar, without width": ("scalar", None, None, (12.5, 17.5, 240.0), 0.1),
    "acoustic, free": ("acoustic", "free", None, (12.5, 17.5, 240.0), 0.05),
    "acoustic, rigid": ("acoustic", "rigid", None, (13.75, 18.75, 240.0), 0.05),
    "acoustic, without width": ("acoustic", None, None, (13.75, 18.75, 240.0), 0.05),
    "acoustic, free, down": ("acoustic", "free", "y", (12.5, 18.75, 240.0), 0.1),
    "acoustic, rigid, down": ("acoustic", "rigid", "y", (13.75, 7.5, 240.0), 0.1),
    "acoustic, free, along": ("acoustic", "free", "x", (12.5, 17.5, 241.25), 0.1),
    "acoustic, rigid, along": ("acoustic", "rigid", "x", (13.75, 18.75, 241.25), 0.1),
}


def below_a_face(generator, source_depth, receiver_depth, first=240.0):
    sources = torch.tensor([[source_depth, 0.0, 200.0]], dtype=D)
    receivers = torch.zeros(1, RECEIVERS, 3, dtype=D)
    receivers[..., 0] = receiver_depth
    receivers[..., 2] = first + 20.0 * torch.arange(RECEIVERS)
    return Gathers(noise(generator, shots=1, samples=150).to(D), DT, sources, receivers)


def faced(propagator, condition, h, gathers, **options):
    """Return what is read below a face that reflects, its data over a cell's area."""
    width = round(60 / h)
    given = {
        "wavelet": 12.0,
        "grid_spacing": h,
        "max_vel": MAX_VEL,
        "propagator": propagator,
        "depth": 200.0,
        "margin": width,
        "pml_width": [0, width, width, width],
        **({"boundary": [condition, "pml", "pml", "pml"]} if condition else {}),
        **options,
    }
    found = read_survey(gathers, **given)
    v = torch.full(found.shape, 2000.0, dtype=D)
    rho = torch.full_like(v, 1000.0)
    model = {
        "scalar": v,
        "acoustic": (v, rho),
        "elastic": deepwave.vpvsrho_to_lambmubuoyancy(v, v / 2, rho),
    }[propagator]
    return found, found.survey.simulate(model) / h**2


@pytest.mark.parametrize("name", REFLECTING)
def test_face_that_reflects_is_at_depth_zero_off_the_nodes_too(name, generator):
    """Cells a quarter as large, on whose nodes all positions lie, are the truth."""
    propagator, condition, channel, places, tolerance = REFLECTING[name]
    gathers = below_a_face(generator, *places)
    option = {"receiver_channel": channel}
    found, data = faced(propagator, condition, 10.0, gathers, **option)
    fine, truth = faced(propagator, condition, 2.5, gathers, **option)
    assert "lie between nodes" in found.info
    assert "All positions are on nodes." in fine.info
    assert relative(data, truth) < tolerance
    word = condition or {"scalar": "free"}.get(propagator, "rigid")
    for told in (found.info, fine.info):
        assert f"The {word} face above lies at depth 0 m." in told


def test_elastic_wall_is_at_depth_zero(generator):
    gathers = below_a_face(generator, 15.0, 25.0)  # on nodes of both
    found, data = faced("elastic", None, 10.0, gathers)
    _, truth = faced("elastic", None, 10.0 / 3, gathers)
    assert "The rigid face above lies at depth 0 m." in found.info
    assert relative(data, truth) < 0.05


def test_face_without_width_on_nodes_is_one_cell_above(generator):
    gathers = below_a_face(generator, 20.0, 30.0)
    found, _ = faced("scalar", None, 20.0, gathers, snap=0.5)
    assert found.origin[0] == 20.0
    given, _ = faced("scalar", None, 10.0, gathers, origin=(0.0, 100.0))
    assert "The free face above lies at depth -10 m." in given.info


def test_elastic_wall_refuses_what_is_between_nodes(generator):
    gathers = below_a_face(generator, 13.0, 25.0)
    words = "only taken on nodes, which lie at depths of 5, 15, … m: pass source_depth="
    with pytest.raises(ValueError, match=words):
        faced("elastic", "rigid", 10.0, gathers)
    expected = faced("elastic", "rigid", 10.0, below_a_face(generator, 15.0, 25.0))[1]
    for option in ({"snap": 0.5}, {"source_depth": 15.0}):
        moved = faced("elastic", "rigid", 10.0, gathers, **option)[1]
        assert torch.equal(moved, expected)
    read = faced("elastic", "pml", 10.0, gathers, pml_width=6)[0]
    assert "face above" not in read.info
    # room for a vacuum above the surface, as deepwave has a free one
    room = faced("elastic", None, 10.0, gathers, origin=(-60.0, 100.0))[0]
    assert "The rigid face above lies at depth -65 m." in room.info
    with pytest.raises(
        ValueError, match=r"elastic has no free face .* a vacuum: no buoy"
    ):
        faced("elastic", "free", 10.0, gathers)


@pytest.mark.parametrize("depth", [0.0, -500.0])
@pytest.mark.parametrize("boundary", [{"boundary": ["free", "pml", "pml", "pml"]}, {}])
@pytest.mark.parametrize("propagator", ["scalar", "acoustic"])
def test_positions_on_or_above_a_free_face_are_told_what_to_do(
    depth, boundary, propagator, generator
):
    if propagator == "acoustic" and not boundary:
        boundary = {"boundary": ("free", "pml", "pml", "pml")}
    gathers = below_a_face(generator, depth, depth)
    given = {"wavelet": 12.0, "grid_spacing": 10.0, "max_vel": MAX_VEL}
    given |= {"propagator": propagator, "pml_width": [0, 6, 6, 6], **boundary}
    words = (
        "The free face above lies at depth 0 m. A free surface holds the field at zero "
        "there, .* pass source_depth="
    )
    with pytest.raises(ValueError, match=words) as error:
        read_survey(gathers, **given)
    assert "A grid that holds all" not in str(error.value)
    assert "boundary='pml' and its pml_width above zero" in str(error.value)
    absorbing = {**given, "boundary": "pml", "pml_width": 6}
    shifted = gathers.sources.clone(), gathers.receivers.clone()
    for where in shifted:  # ten metres below the surface
        where[..., 0] += 10.0 - depth
    subtracted = Gathers(gathers.data, DT, *shifted)
    below = float(str(error.value).split("face's plus ")[1].split(" m;")[0])
    calls = [
        read_survey(gathers, **given, source_depth=10.0, receiver_depth=10.0),
        read_survey(subtracted, **given),
        read_survey(gathers, **given, origin=(depth - 10.0 + below, 100.0)),
        read_survey(gathers, **absorbing),
    ]
    assert f"face above lies at depth {depth - 10:g} m." in calls[2].info
    for found in calls:
        v = torch.full(found.shape, 2000.0, dtype=D)
        model = v if propagator == "scalar" else (v, 0 * v + 1000)
        assert float(found.survey.simulate(model).abs().max()) > 0
    assert calls[0].origin == calls[1].origin


def test_faces_must_be_named_one_by_one(generator):
    gathers = below_a_face(generator, 20.0, 30.0)
    for option in ({"boundary": ["free", "pml"]}, {"pml_width": [0, 6]}):
        with pytest.raises(ValueError, match=r"must name 4 faces"):
            read_survey(gathers, **{**GIVEN, **option})


# -- the grid's depth, and what is told of nodes ------------------------------------


@pytest.mark.parametrize("deep", [0, 1])
def test_default_depth_counts_from_the_deepest_position(deep, generator):
    places = streamer(depth=20.0)
    places[deep][..., 0] = 500.0
    gathers = Gathers(noise(generator), DT, *places)
    found = read_survey(gathers, **without(["origin", "shape"]))
    offset = float((places[1] - places[0][:, None])[..., 1:].norm(dim=-1).max())
    last = found.origin[0] + (found.shape[0] - 1) * H
    assert 500.0 + offset / 2 <= last < 500.0 + offset / 2 + H


def test_receivers_moved_to_one_node_are_told(generator):
    sources, receivers = streamer(step=4.0)
    gathers = Gathers(noise(generator), DT, sources, receivers)
    found = read_survey(gathers, **GIVEN, snap=0.5)
    assert "All positions are on nodes. Some receivers of a shot share one." in found.info
    assert "between nodes" not in found.info
    data = found.survey.simulate(models(generator, torch.float32)[0])
    nodes = (receivers[..., 2] / H).round()
    for s in range(SHOTS):
        for r in range(1, RECEIVERS):
            same = bool(nodes[s, r] == nodes[s, r - 1])
            assert torch.equal(data[s, r], data[s, r - 1]) == same


# -- files that segyio takes for others ---------------------------------------------


def with_format(path, code, endian="big"):
    raw = bytearray(path.read_bytes())
    raw[3224:3226] = code.to_bytes(2, endian)
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("endian", ["big", "little"])
@pytest.mark.parametrize("code", [0, 4, 7, 13, 14, 15, 17, 4000])
def test_number_formats_that_are_not_decoded(code, endian, generator, tmp_path):
    path = write_line(tmp_path / "line.sgy", noise(generator), *streamer(), endian=endian)
    with_format(path, code, endian)
    words = rf"format.* {code}.* convert .* to 4-byte IEEE floats \(format 5\) first"
    for read in (
        lambda: read_survey(path, **GIVEN, byte_order=endian),
        lambda: hvpopt.fwi.read_gathers(path, byte_order=endian),
        lambda: hvpopt.fwi.read_model(path, byte_order=endian, units=None),
    ):
        with pytest.raises(ValueError, match=words):
            read()


@pytest.mark.parametrize("code", [2, 3, 6, 8, 9, 10, 11, 12, 16])
@pytest.mark.filterwarnings("ignore:Implicit conversion")
def test_number_formats_that_are_decoded(code, generator, tmp_path):
    data = torch.randint(1, 100, (SHOTS, RECEIVERS, NT), generator=generator).float()
    path = write_line(tmp_path / "line.sgy", data, *streamer(), code=code)
    assert torch.equal(read_survey(path, **GIVEN).observed, data)


def test_byte_order_that_would_do_is_named(generator, tmp_path):
    path = write_line(tmp_path / "a.sgy", noise(generator), *streamer(), endian="little")
    with pytest.raises(ValueError, match=r"is 1280, .*pass byte_order='little'"):
        read_survey(path, **GIVEN)


def test_files_of_headers_alone(generator, tmp_path):
    path = write_line(tmp_path / "line.sgy", noise(generator), *streamer())
    path.write_bytes(path.read_bytes()[:3600])
    for read in (
        lambda: read_survey(path, **GIVEN),
        lambda: hvpopt.fwi.read_gathers(path),
        lambda: hvpopt.fwi.read_model(path),
        lambda: read_survey(
            Gathers(noise(generator), DT, *streamer()), **{**GIVEN, "wavelet": path}
        ),
    ):
        with pytest.raises(ValueError, match=r"line\.sgy holds no traces"):
            read()


@pytest.mark.parametrize("delay", [-60, 4])
def test_wavelet_that_does_not_start_at_zero_is_refused(delay, generator, tmp_path):
    path = write_line(tmp_path / "line.sgy", noise(generator), *streamer())
    header = {"DelayRecordingTime": delay}
    wavelet = write_traces(tmp_path / "w.sgy", np.ones((1, 9)), [header], dt=DT)
    words = rf"of .*w.sgy starts at {delay} ms \(DelayRecordingTime\); shift it"
    with pytest.raises(ValueError, match=words):
        read_survey(path, **{**GIVEN, "wavelet": wavelet})


def test_depth_of_the_caller_is_no_position(tmp_path):
    path = write_traces(tmp_path / "line.sgy", np.ones((1, NT)), [{}], dt=DT)
    with pytest.raises(ValueError, match="holds no positions of sources"):
        read_survey(path, **GIVEN, source_depth=20.0)
