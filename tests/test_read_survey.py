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
    misfit = WaveformMisfit(
        found.survey, found.observed, L2(sample_weights=found.sample_weights)
    )
    v, _ = models(generator, torch.float32)
    residual = (found.survey.simulate(v) - expected) * weights
    mean = float(residual.double().square().mean())
    assert float(misfit.value(v)) == pytest.approx(mean, rel=1e-4)
    cut = read_survey(path, **GIVEN, nt=20)
    assert torch.equal(cut.observed, expected[..., :20])


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
