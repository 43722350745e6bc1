"""Wrong calls of hvpopt.fwi are refused by class and in words, at the door."""

import math

import numpy as np
import pytest
import torch
from waves import DT, NT, SHAPE, D, arguments, one_thread, survey

from hvpopt.fwi import (
    L2,
    BandFilter,
    CoarseGrid,
    DeepwaveMisfit,
    Envelope,
    FunctionMisfit,
    Gathers,
    Huber,
    LinearMoveout,
    Log,
    Mute,
    OffsetLimits,
    SlownessSquared,
    SubRegion,
    Survey,
    WaveformMisfit,
    gauss_newton_diagonal,
    read_gathers,
    read_model,
    source_illumination,
    write_gathers,
    write_model,
)

__all__ = ["one_thread"]

NAN = math.nan
V = torch.full(SHAPE, 1900.0, dtype=D)
DATA = torch.full((2, 4, NT), 0.1, dtype=D)
AMPLITUDES, CELLS = arguments()["sources"]["u"]
RECEIVERS = arguments()["receivers"]["u"]


def make(propagator="scalar", **options):
    return Survey(propagator, **{**arguments(), **options})


def misfit(observed=DATA, *given, **options):
    return WaveformMisfit(survey(), observed, *given, **options)


def hessian(**options):
    return misfit().hessian(V, **options)


def weights(**options):
    return misfit(DATA, L2(**options))


def diagonal(**options):
    return gauss_newton_diagonal(misfit(), V, **options)


def lit(**options):
    return source_illumination(misfit(), V, **options)


SURVEYS = {
    "propagator number": (lambda: make(3), TypeError, "propagator is 3; pass a text"),
    "propagator class": (
        lambda: make(Survey),
        TypeError,
        "propagator is the class Survey",
    ),
    "propagator name": (
        lambda: make("sclar"),
        ValueError,
        "'sclar'; deepwave has 'acoustic'",
    ),
    "spacing text": (
        lambda: make(grid_spacing="5"),
        TypeError,
        "grid_spacing is '5'; pass",
    ),
    "spacing none": (
        lambda: make(grid_spacing=None),
        TypeError,
        "grid_spacing is None; pass",
    ),
    "spacing texts": (lambda: make(grid_spacing=["5", 5]), TypeError, "pass a number"),
    "spacing nan": (lambda: make(grid_spacing=NAN), ValueError, "grid_spacing is nan"),
    "spacing bool": (lambda: make(grid_spacing=True), TypeError, "grid_spacing is True"),
    "spacing empty": (lambda: make(grid_spacing=[]), ValueError, "one number or one for"),
    "spacing in km": (
        lambda: make(grid_spacing=0.005, dt=0.02),
        ValueError,
        "grid_spacing in metres",
    ),
    "dt text": (lambda: make(dt="0.004"), TypeError, "dt is '0.004'; pass"),
    "dt none": (lambda: make(dt=None), TypeError, "dt is None"),
    "dt nan": (lambda: make(dt=NAN), ValueError, "dt is nan; it must be positive"),
    "dt complex": (lambda: make(dt=1j), TypeError, "dt is 1j; pass a number"),
    "dt in milliseconds": (lambda: make(dt=4), ValueError, r"4 ms is 0\.004"),
    "dt of half a millisecond": (lambda: make(dt=0.5), ValueError, r"dt is in seconds"),
    "max_vel text": (lambda: make(max_vel="2500"), TypeError, "max_vel is '2500'"),
    "max_vel nan": (lambda: make(max_vel=NAN), ValueError, "max_vel is nan"),
    "max_vel model": (lambda: make(max_vel=V), TypeError, "max_vel is a Tensor"),
    "max_vel in km/s": (lambda: make(max_vel=2.5), ValueError, r"velocities are in m/s"),
    "pml_freq text": (lambda: make(pml_freq="25"), TypeError, "pml_freq is '25'"),
    "pml_freq nan": (lambda: make(pml_freq=NAN), ValueError, "pml_freq is nan"),
    "nt float": (lambda: make(nt=72.5), ValueError, "nt is 72.5; it must be a whole"),
    "nt text": (lambda: make(nt="72"), TypeError, "nt is '72'; pass a number"),
    "nt true": (lambda: make(nt=True), TypeError, "nt is True; pass a number"),
    "nt zero": (lambda: make(nt=0), ValueError, "nt is 0; it must be at least 1"),
    "pml_width text": (lambda: make(pml_width="20"), TypeError, "pml_width is '20'"),
    "pml_width float": (lambda: make(pml_width=2.5), ValueError, "pml_width is 2.5; it"),
    "pml_width negative": (
        lambda: make(pml_width=[-1] * 4),
        ValueError,
        "width is -1; it",
    ),
    "sources tuple": (lambda: make(sources=(AMPLITUDES, CELLS)), TypeError, "a dict"),
    "sources none": (lambda: make(sources=None), TypeError, "sources is None"),
    "sources numpy": (
        lambda: make(sources={"u": (AMPLITUDES.numpy(), CELLS)}),
        TypeError,
        "must be a floating-point torch.Tensor",
    ),
    "wavelets of integers": (
        lambda: make(sources={"u": (AMPLITUDES.int(), CELLS)}),
        TypeError,
        "must be a floating-point torch.Tensor",
    ),
    "wavelets nan": (
        lambda: make(sources={"u": (AMPLITUDES * NAN, CELLS)}),
        ValueError,
        "NaN or infinite samples",
    ),
    "cells list": (
        lambda: make(sources={"u": (AMPLITUDES, CELLS.tolist())}),
        ValueError,
        "must be a tensor",
    ),
    "cells boolean": (
        lambda: make(sources={"u": (AMPLITUDES, CELLS > 0)}),
        TypeError,
        "are torch.bool; they must be cell indices",
    ),
    "cells complex": (
        lambda: make(sources={"u": (AMPLITUDES, CELLS + 0j)}),
        TypeError,
        "are torch.complex",
    ),
    "cells nan": (
        lambda: make(sources={"u": (AMPLITUDES, CELLS * NAN)}),
        ValueError,
        "NaN or infinite coordinates",
    ),
    "receivers tensor": (lambda: make(receivers=RECEIVERS), TypeError, "is a Tensor"),
    "receivers boolean": (
        lambda: make(receivers={"u": RECEIVERS > 3}),
        TypeError,
        "are torch.bool",
    ),
    "receivers three": (
        lambda: make(receivers={"u": (RECEIVERS, None, None)}),
        TypeError,
        "got a tuple of 3",
    ),
    "receivers numpy": (
        lambda: make(receivers={"u": RECEIVERS.numpy()}),
        ValueError,
        "must be a tensor",
    ),
    "simulate numpy": (lambda: survey().simulate(V.numpy()), TypeError, "is a ndarray"),
    "simulate shot 7": (
        lambda: survey().simulate(V, shots=[7]),
        ValueError,
        r"shots are \[7\]; the survey has shots 0 to 1",
    ),
    "simulate last shot": (
        lambda: survey().simulate(V, shots=[-1]),
        ValueError,
        r"shots are \[-1\]",
    ),
    "simulate no shot": (lambda: survey().simulate(V, shots=[]), ValueError, "at least"),
    "simulate number": (
        lambda: survey().simulate(V, shots=1),
        TypeError,
        "shots are 1; pass",
    ),
    "simulate text": (
        lambda: survey().simulate(V, shots="01"),
        TypeError,
        "are '01'; pass",
    ),
    "simulate mask": (
        lambda: survey().simulate(V, shots=[True, False]),
        TypeError,
        "True is no index",
    ),
    "simulate km/s": (lambda: survey().simulate(V / 1000), ValueError, "both are in m/s"),
    "survey to int": (lambda: survey().to(dtype=torch.int32), TypeError, "torch.float32"),
    "survey to text": (lambda: survey().to(dtype="float32"), TypeError, "torch.float32"),
}

MISFITS = {
    "survey none": (lambda: WaveformMisfit(None, DATA), TypeError, "survey is None"),
    "survey class": (lambda: WaveformMisfit(Survey, DATA), TypeError, "class Survey"),
    "observed numpy": (lambda: misfit(DATA.numpy()), TypeError, "are a ndarray"),
    "observed list": (lambda: misfit(DATA.tolist()), TypeError, "are a list"),
    "observed nan": (lambda: misfit(DATA * NAN), ValueError, "NaN or infinite samples"),
    "misfit class": (lambda: misfit(DATA, L2), TypeError, r"an instance, L2\(\)"),
    "misfit module class": (
        lambda: misfit(DATA, torch.nn.MSELoss),
        TypeError,
        r"an instance, MSELoss\(\)",
    ),
    "misfit number": (lambda: misfit(DATA, 2), TypeError, "the misfit is 2, not a fun"),
    "misfit name": (lambda: misfit(DATA, "l1"), ValueError, "there is 'l2'"),
    "map number": (lambda: misfit(parameterisation=3), TypeError, "must be callable"),
    "map class": (
        lambda: misfit(parameterisation=SlownessSquared),
        TypeError,
        r"instance, SlownessSquared\(",
    ),
    "group float": (lambda: misfit(shots_per_group=1.5), ValueError, "group is 1.5; it"),
    "group text": (lambda: misfit(shots_per_group="2"), TypeError, "group is '2'"),
    "group true": (lambda: misfit(shots_per_group=True), TypeError, "group is True"),
    "group none left": (lambda: misfit(shots_per_group=0), ValueError, "at least 1"),
    "memory words": (lambda: misfit(memory_limit="much"), ValueError, "such as '2GB'"),
    "memory dots": (lambda: misfit(memory_limit="1.2.3GB"), ValueError, "such as '2GB'"),
    "memory nan": (lambda: misfit(memory_limit=NAN), ValueError, "memory_limit is nan"),
    "memory list": (lambda: misfit(memory_limit=[2]), TypeError, "memory_limit is a"),
    "engine number": (lambda: misfit(engine=1), TypeError, "engine is 1"),
    "engine list": (lambda: misfit(engine=["born"]), TypeError, "engine is a list"),
    "sketch none": (lambda: misfit().sketch(V, seed=None), TypeError, "seed is None"),
    "codes list": (lambda: misfit().encode([[1.0]]), TypeError, "codes is a list"),
    "codes flat": (
        lambda: misfit().encode(torch.ones(2)),
        ValueError,
        "codes have shape",
    ),
    "codes nan": (
        lambda: misfit().encode(torch.full((1, misfit().survey.n_shots), torch.nan)),
        ValueError,
        "codes have NaN",
    ),
    "parts list": (lambda: misfit().without(["shot 0"]), TypeError, "parts is a list"),
    "parts number": (lambda: misfit().without({7: "?"}), ValueError, "has no 7"),
    "parts of a sum": (
        lambda: (1.0 * misfit() + misfit()).without(["a"]),
        TypeError,
        "parts is a list",
    ),
    "sample text": (lambda: misfit().sample("2"), TypeError, "size is '2'; pass"),
    "sample none": (lambda: misfit().sample(0), ValueError, r"size is 0; .* \[1, 2\]"),
    "sample half": (lambda: misfit().sample(1.5), ValueError, "size is 1.5; it must be"),
    "sample seed": (lambda: misfit().sample(1, seed="a"), TypeError, "seed is 'a'; pass"),
    "sample float": (lambda: misfit().sample(1, seed=1.5), ValueError, "seed is 1.5; it"),
    "selected twice": (lambda: misfit().select([0, 0]), ValueError, "each index once"),
    "drawn seed": (lambda: misfit().draw(1, seed=-1), ValueError, "seed is -1"),
    "drawn float": (lambda: misfit().draw(1.5), ValueError, "n_shots is 1.5; it"),
    "name number": (lambda: misfit(name=3), TypeError, "name is 3; pass a text"),
    "on bad shot": (lambda: misfit(on_bad_shot=None), TypeError, "on_bad_shot is None"),
    "without a list": (lambda: misfit().without([0]), TypeError, "parts is a list"),
    "without 7": (lambda: misfit().without({"shot 7": "far"}), ValueError, "no shot 7"),
    "kind number": (lambda: hessian(kind=3), TypeError, "kind is 3"),
    "select shot 7": (lambda: misfit().select([7]), ValueError, "shots 0 to 1"),
    "select last shot": (lambda: misfit().select([-1]), ValueError, r"are \[-1\]"),
    "select twice": (lambda: misfit().select([0, 0]), ValueError, "each index once"),
    "select half": (lambda: misfit().select([0.5]), TypeError, "0.5 is no index"),
    "select text": (lambda: misfit().select("all"), TypeError, "shots are 'all'; pass"),
    "select one": (lambda: misfit().select(0), TypeError, "shots are 0; pass a seq"),
    "value numpy": (lambda: misfit().value(V.numpy()), TypeError, "got ndarray"),
    "value km/s": (lambda: misfit().value(V / 1000), ValueError, "2500.0"),
    "weights numpy": (
        lambda: weights(trace_weights=np.ones((2, 4))),
        TypeError,
        "trace weights of channel 'u' are a ndarray",
    ),
    "weights list": (lambda: weights(sample_weights=[1.0] * NT), TypeError, "are a list"),
    "weights channel": (
        lambda: weights(trace_weights={"p": torch.ones(2, 4)}),
        ValueError,
        r"channels \['p'\]; the data have \['u'\]",
    ),
    "huber text": (lambda: Huber("0.1"), TypeError, "delta is '0.1'"),
    "huber nan": (lambda: Huber(NAN), ValueError, "delta is nan"),
    "huber true": (lambda: Huber(True), TypeError, "delta is True"),
    "envelope text": (lambda: Envelope("1e-3"), TypeError, "damping is '1e-3'"),
    "function number": (lambda: FunctionMisfit(3), TypeError, "not a function"),
    "deepwave number": (lambda: DeepwaveMisfit(3), TypeError, "not a function"),
}

MAPS = {
    "slowness text": (lambda: SlownessSquared("2000"), TypeError, "reference is '2000'"),
    "slowness nan": (lambda: SlownessSquared(NAN), ValueError, "reference is nan"),
    "log true": (lambda: Log(True), TypeError, "reference is True"),
    "log none": (lambda: Log(None), TypeError, "reference is None"),
    "log numpy": (lambda: Log()(V.numpy()), TypeError, "called with tensors"),
    "bound text": (lambda: Log().bounds("1500"), TypeError, "a bound is '1500'"),
    "bound complex": (lambda: Log().bounds(1j), TypeError, "a bound is 1j"),
    "bound nan": (lambda: Log().bounds(NAN), ValueError, "a bound of nan"),
    "unknowns numpy": (lambda: Log().unknowns(V.numpy()), TypeError, "got ndarray"),
    "grid numbers": (lambda: CoarseGrid(3, 5), TypeError, "the coarse shape is 3"),
    "grid floats": (lambda: CoarseGrid((2.5,), (5,)), ValueError, "shape is 2.5; it"),
    "grid text": (lambda: CoarseGrid("ab", (5, 5)), TypeError, "coarse shape is 'ab'"),
    "region numpy": (lambda: SubRegion(V.numpy(), slice(1)), TypeError, "got ndarray"),
    "region text": (lambda: SubRegion(V, "all"), TypeError, "the region is 'all'"),
}

FILES = {
    "path number": (lambda _: read_model(3), TypeError, "path is 3; pass a string or"),
    "path bytes": (lambda _: read_model(b"v.npy"), TypeError, "path is b'v.npy'"),
    "no file": (lambda p: read_model(p / "none.npy"), FileNotFoundError, "no file"),
    "units": (lambda p: read_model(p / "v.npy", units=3), TypeError, "units is 3"),
    "dtype": (lambda p: read_model(p / "v.npy", dtype="f"), TypeError, "torch.float32"),
    "int": (lambda p: read_model(p / "v.npy", dtype=torch.int32), TypeError, "torch.int"),
    "shape": (lambda p: read_model(p / "v.npy", shape=12), TypeError, "shape is 12; pa"),
    "shape float": (
        lambda p: read_model(p / "v.npy", shape=(12.5, 17)),
        ValueError,
        "an entry of shape is 12.5; it must be a whole number",
    ),
    "shape negative": (
        lambda p: read_model(p / "v.bin", shape=(-1, 17)),
        ValueError,
        "at least 1",
    ),
    "file_dtype": (
        lambda p: read_model(p / "v.bin", shape=SHAPE, file_dtype=4),
        TypeError,
        "file_dtype is 4",
    ),
    "byte_order": (
        lambda p: read_model(p / "v.bin", shape=SHAPE, byte_order="<"),
        ValueError,
        "byte_order is '<'",
    ),
    "segy byte_order": (
        lambda p: read_model(p / "v.sgy", byte_order=">"),
        ValueError,
        "byte_order is '>'",
    ),
    "write numpy": (
        lambda p: write_model(p / "w.npy", V.numpy()),
        TypeError,
        "a ndarray; pass a torch.Tensor",
    ),
    "write path": (lambda _: write_model(3, V), TypeError, "path is 3; pass"),
    "overwrite": (
        lambda p: write_model(p / "v.npy", V, overwrite="no"),
        TypeError,
        "overwrite is 'no'; pass True or False",
    ),
    "write tensor": (
        lambda p: write_gathers(p / "d.npy", DATA),
        TypeError,
        r"gathers is a Tensor; .*Gathers\(data, dt\)",
    ),
    "gathers dt text": (
        lambda p: read_gathers(p / "v.npy", dt="0.004"),
        TypeError,
        "dt is '0.004'; pass a number",
    ),
    "gathers dt in ms": (
        lambda p: read_gathers(p / "v.npy", dt=4),
        ValueError,
        r"4 ms is 0\.004",
    ),
    "gathers dt nan": (
        lambda p: read_gathers(p / "v.npy", dt=NAN),
        ValueError,
        "dt is nan; it is in seconds",
    ),
    "gathers pad": (
        lambda p: read_gathers(p / "v.npy", dt=DT, pad="yes"),
        TypeError,
        "pad is 'yes'; pass True or False",
    ),
    "gathers key": (
        lambda p: read_gathers(p / "v.npy", dt=DT, shot_key=9),
        TypeError,
        "shot_key is 9; pass a text",
    ),
    "gathers numpy": (
        lambda _: Gathers(DATA.numpy(), DT),
        TypeError,
        "data is a ndarray",
    ),
    "gathers list": (
        lambda _: Gathers(DATA, DT, sources=[[0, 0, 0]]),
        TypeError,
        "sources is a list",
    ),
    "gathers live": (
        lambda _: Gathers(DATA, DT, live=torch.ones(2, 4)),
        TypeError,
        "live is torch.float32",
    ),
}

DIAGONALS = {
    "misfit": (lambda: gauss_newton_diagonal(None, V), TypeError, "misfit is None"),
    "survey": (lambda: source_illumination(survey(), V), TypeError, "is a Survey"),
    "probes": (lambda: diagonal(n_probes=0), ValueError, "n_probes is 0"),
    "half a probe": (lambda: diagonal(n_probes=1.5), ValueError, "n_probes is 1.5; it"),
    "width": (lambda: diagonal(smooth=-1), ValueError, "smooth is -1"),
    "width text": (
        lambda: diagonal(smooth="3"),
        TypeError,
        "smooth is '3'; pass a number",
    ),
    "damping": (lambda: diagonal(damping=NAN), ValueError, "damping is nan"),
    "seed": (lambda: diagonal(seed=None), TypeError, "seed is None"),
    "lit width": (lambda: lit(smooth=NAN), ValueError, "smooth is nan"),
    "lit damping": (lambda: lit(damping="1"), TypeError, "damping is '1'; pass"),
    "select none": (lambda: misfit().select([]), ValueError, "at least one"),
}

CALLS = {
    f"{group}: {name}": call
    for group, calls in (
        ("survey", SURVEYS),
        ("misfit", MISFITS),
        ("map", MAPS),
        ("diagonal", DIAGONALS),
    )
    for name, call in calls.items()
}


@pytest.mark.parametrize(("call", "error", "words"), CALLS.values(), ids=CALLS)
def test_wrong_call(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.fixture
def folder(tmp_path):
    np.save(tmp_path / "v.npy", V.numpy())
    V.float().numpy().tofile(tmp_path / "v.bin")
    (tmp_path / "v.sgy").write_bytes(bytes(4000))
    return tmp_path


@pytest.mark.parametrize(("call", "error", "words"), FILES.values(), ids=FILES)
def test_wrong_file(call, error, words, folder):
    with pytest.raises(error, match=words):
        call(folder)


def test_there_are_many():
    assert len(CALLS) + len(FILES) >= 60


def test_numbers_of_other_libraries_are_numbers():
    there = make(
        dt=np.float64(DT),
        max_vel=torch.tensor(2500.0),
        grid_spacing=np.array([5.0, 6.0]),
        nt=np.int64(NT),
        pml_width=[np.int64(4)] * 4,
    )
    assert there.resolved == survey().resolved
    assert torch.equal(there.simulate(V), survey().simulate(V))
    both = there.simulate(V, shots=torch.tensor([1, 0]))
    assert torch.equal(both, there.simulate(V)[[1, 0]])
    assert misfit().select(np.array([1])).hessian(V).shots == [1]
    assert misfit().draw(np.int64(2), seed=np.int64(3)).hessian(V).shots == [0, 1]


def test_whole_floats_are_taken_as_integers():
    there = make(nt=float(NT), pml_width=[4.0] * 4)
    assert there.options["pml_width"] == [4] * 4
    assert torch.equal(there.simulate(V), survey().simulate(V))
    assert misfit().draw(1.0, seed=0.0).hessian(V).shots == [0]
    assert CoarseGrid((3.0,), torch.Size([5])).coarse == (3,)
    assert BandFilter(high=3, order=2.0).order == 2


@pytest.mark.parametrize("wrong", [torch.ones(1), np.ones(1), [1.0], torch.tensor(True)])
def test_numbers_of_several_axes_are_refused(wrong):
    for call in (lambda: make(max_vel=wrong), lambda: Log(wrong), lambda: Huber(wrong)):
        with pytest.raises(TypeError, match="pass a number"):
            call()


@pytest.mark.parametrize("wrong", [math.inf, -math.inf, NAN])
def test_numbers_that_are_not_finite_are_refused(wrong):
    for call in (
        lambda: LinearMoveout(2e3, wrong),
        lambda: Mute(wrong),
        lambda: OffsetLimits(nearest=wrong),
        lambda: make(dt=wrong),
    ):
        with pytest.raises(ValueError, match=f"is {wrong}; it must be"):
            call()


def test_shots_are_taken_once_in_their_order():
    both = survey().simulate(V)
    assert torch.equal(survey().simulate(V, shots=iter([1, 0])), both[[1, 0]])
    for wrong in ([0.0], [torch.tensor(0.5)], [np.bool_(True)]):
        with pytest.raises(TypeError, match="is no index"):
            survey().simulate(V, shots=wrong)


def test_units_that_agree_with_each_other_are_taken():
    """Kilometres and kilometres per second: their ratio is all that waves see."""
    there = make(grid_spacing=[0.005, 0.006], max_vel=2.5)
    assert there.resolved.step_ratio == survey().resolved.step_ratio
