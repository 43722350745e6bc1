"""Wrong calls of hvpopt.fwi are refused by class and in words, at the door."""

import math

import numpy as np
import pytest
import torch
from waves import DT, NT, SHAPE, D, arguments, one_thread, survey

from hvpopt.fwi import (
    L2,
    CoarseGrid,
    DeepwaveMisfit,
    Envelope,
    FunctionMisfit,
    Gathers,
    Huber,
    Log,
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
    "propagator number": (lambda: make(3), TypeError, "propagator is an int 3"),
    "propagator class": (lambda: make(Survey), TypeError, "propagator is a class Survey"),
    "propagator name": (
        lambda: make("sclar"),
        ValueError,
        "'sclar'; deepwave has 'acoustic'",
    ),
    "spacing text": (lambda: make(grid_spacing="5"), TypeError, "grid_spacing is a str"),
    "spacing none": (lambda: make(grid_spacing=None), TypeError, "grid_spacing is a?"),
    "spacing texts": (lambda: make(grid_spacing=["5", 5]), TypeError, "must be a number"),
    "spacing nan": (lambda: make(grid_spacing=NAN), ValueError, "grid_spacing is nan"),
    "spacing bool": (lambda: make(grid_spacing=True), TypeError, "bool True"),
    "spacing empty": (lambda: make(grid_spacing=[]), ValueError, "one number or one for"),
    "spacing in km": (
        lambda: make(grid_spacing=0.005, dt=0.02),
        ValueError,
        "grid_spacing in metres",
    ),
    "dt text": (lambda: make(dt="0.004"), TypeError, "dt is a str '0.004'"),
    "dt none": (lambda: make(dt=None), TypeError, "dt is None"),
    "dt nan": (lambda: make(dt=NAN), ValueError, "dt is nan; it must be positive"),
    "dt complex": (lambda: make(dt=1j), TypeError, "dt is a complex"),
    "dt in milliseconds": (lambda: make(dt=4), ValueError, r"4 ms is 0\.004"),
    "dt of half a millisecond": (lambda: make(dt=0.5), ValueError, r"dt is in seconds"),
    "max_vel text": (lambda: make(max_vel="2500"), TypeError, "max_vel is a str"),
    "max_vel nan": (lambda: make(max_vel=NAN), ValueError, "max_vel is nan"),
    "max_vel model": (lambda: make(max_vel=V), TypeError, "max_vel is a Tensor"),
    "max_vel in km/s": (lambda: make(max_vel=2.5), ValueError, r"velocities are in m/s"),
    "pml_freq text": (lambda: make(pml_freq="25"), TypeError, "pml_freq is a str"),
    "pml_freq nan": (lambda: make(pml_freq=NAN), ValueError, "pml_freq is nan"),
    "nt float": (lambda: make(nt=72.0), TypeError, "nt is a float 72.0; .* an integer"),
    "nt text": (lambda: make(nt="72"), TypeError, "nt is a str"),
    "nt true": (lambda: make(nt=True), TypeError, "nt is a bool True"),
    "nt zero": (lambda: make(nt=0), ValueError, "nt is 0; it must be at least 1"),
    "pml_width text": (lambda: make(pml_width="20"), TypeError, "pml_width is a str"),
    "pml_width float": (lambda: make(pml_width=2.5), TypeError, "pml_width is a float"),
    "pml_width negative": (lambda: make(pml_width=[-1] * 4), ValueError, "at least 0"),
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
    "simulate number": (lambda: survey().simulate(V, shots=1), TypeError, "shots are an"),
    "simulate text": (lambda: survey().simulate(V, shots="01"), TypeError, "are a str"),
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
    "misfit number": (lambda: misfit(DATA, 2), TypeError, "the misfit is a int, not"),
    "misfit name": (lambda: misfit(DATA, "l1"), ValueError, "there is 'l2'"),
    "map number": (lambda: misfit(parameterisation=3), TypeError, "must be callable"),
    "map class": (
        lambda: misfit(parameterisation=SlownessSquared),
        TypeError,
        r"instance, SlownessSquared\(",
    ),
    "group float": (lambda: misfit(shots_per_group=1.5), TypeError, "float 1.5"),
    "group text": (lambda: misfit(shots_per_group="2"), TypeError, "a str '2'"),
    "group true": (lambda: misfit(shots_per_group=True), TypeError, "bool True"),
    "group none left": (lambda: misfit(shots_per_group=0), ValueError, "at least 1"),
    "memory words": (lambda: misfit(memory_limit="much"), ValueError, "such as '2GB'"),
    "memory dots": (lambda: misfit(memory_limit="1.2.3GB"), ValueError, "such as '2GB'"),
    "memory nan": (lambda: misfit(memory_limit=NAN), ValueError, "memory_limit is nan"),
    "memory list": (lambda: misfit(memory_limit=[2]), TypeError, "memory_limit is a"),
    "engine number": (lambda: misfit(engine=1), ValueError, "engine is 1"),
    "engine list": (lambda: misfit(engine=["born"]), ValueError, "engine is .'born'"),
    "encoded text": (
        lambda: misfit().encoded_hessian(V, seed="a"),
        TypeError,
        "seed is a str 'a'",
    ),
    "encoded float": (
        lambda: misfit().encoded_hessian(V, seed=1.5),
        TypeError,
        "seed is a float",
    ),
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
    "sample text": (lambda: misfit().sample("2"), TypeError, "size is a str"),
    "sample none": (lambda: misfit().sample(0), ValueError, "size is 0"),
    "selected twice": (lambda: misfit().select([0, 0]), ValueError, "each index once"),
    "drawn seed": (lambda: misfit().draw(1, seed=-1), ValueError, "seed is -1"),
    "drawn float": (lambda: misfit().draw(1.0), TypeError, "n_shots is a float"),
    "name number": (lambda: misfit(name=3), TypeError, "name is an int 3"),
    "on bad shot": (lambda: misfit(on_bad_shot=None), ValueError, "on_bad_shot is None"),
    "without a list": (lambda: misfit().without([0]), TypeError, "parts is a list"),
    "without 7": (lambda: misfit().without({"shot 7": "far"}), ValueError, "no shot 7"),
    "kind number": (lambda: hessian(kind=3), TypeError, "kind is 3"),
    "select shot 7": (lambda: misfit().select([7]), ValueError, "shots 0 to 1"),
    "select last shot": (lambda: misfit().select([-1]), ValueError, r"are \[-1\]"),
    "select twice": (lambda: misfit().select([0, 0]), ValueError, "each index once"),
    "select half": (lambda: misfit().select([0.5]), TypeError, "0.5 is no index"),
    "select text": (lambda: misfit().select("all"), TypeError, "shots are a str 'all'"),
    "select one": (lambda: misfit().select(0), TypeError, "shots are an int 0"),
    "value numpy": (lambda: misfit().value(V.numpy()), TypeError, "got ndarray"),
    "value km/s": (lambda: misfit().value(V / 1000), ValueError, "2500.0"),
    "encoded zero": (
        lambda: misfit().encoded_hessian(V, n_encoded=0),
        ValueError,
        "n_encoded is 0; it must be from 1 to 2",
    ),
    "encoded half": (
        lambda: misfit().encoded_hessian(V, n_encoded=1.5),
        TypeError,
        "n_encoded is a float",
    ),
    "encoded seed": (
        lambda: misfit().encoded_hessian(V, seed="a"),
        TypeError,
        "seed is a str",
    ),
    "weights numpy": (
        lambda: weights(trace_weights=np.ones((2, 4))),
        TypeError,
        "trace weights of channel 'u' are ndarray",
    ),
    "weights list": (lambda: weights(sample_weights=[1.0] * NT), TypeError, "are list"),
    "weights channel": (
        lambda: weights(trace_weights={"p": torch.ones(2, 4)}),
        ValueError,
        r"channels \['p'\]; the data have \['u'\]",
    ),
    "huber text": (lambda: Huber("0.1"), TypeError, "delta is a str"),
    "huber nan": (lambda: Huber(NAN), ValueError, "delta is nan"),
    "huber true": (lambda: Huber(True), TypeError, "delta is a bool"),
    "envelope text": (lambda: Envelope("1e-3"), TypeError, "damping is a str"),
    "function number": (lambda: FunctionMisfit(3), TypeError, "not a function"),
    "deepwave number": (lambda: DeepwaveMisfit(3), TypeError, "not a function"),
}

MAPS = {
    "slowness text": (lambda: SlownessSquared("2000"), TypeError, "reference is a str"),
    "slowness nan": (lambda: SlownessSquared(NAN), ValueError, "reference is nan"),
    "log true": (lambda: Log(True), TypeError, "reference is a bool True"),
    "log none": (lambda: Log(None), TypeError, "reference is None"),
    "log numpy": (lambda: Log()(V.numpy()), TypeError, "called with tensors"),
    "bound text": (lambda: Log().bounds("1500"), TypeError, "a bound is '1500'"),
    "bound complex": (lambda: Log().bounds(1j), TypeError, "a bound is 1j"),
    "bound nan": (lambda: Log().bounds(NAN), ValueError, "a bound of nan"),
    "unknowns numpy": (lambda: Log().unknowns(V.numpy()), TypeError, "got ndarray"),
    "grid numbers": (lambda: CoarseGrid(3, 5), TypeError, "the coarse shape is 3"),
    "grid floats": (lambda: CoarseGrid((2.5,), (5,)), TypeError, "float 2.5"),
    "grid text": (lambda: CoarseGrid("ab", (5, 5)), TypeError, "coarse shape is 'ab'"),
    "region numpy": (lambda: SubRegion(V.numpy(), slice(1)), TypeError, "got ndarray"),
    "region text": (lambda: SubRegion(V, "all"), TypeError, "the region is 'all'"),
}

FILES = {
    "path number": (lambda _: read_model(3), TypeError, "path is an int 3"),
    "path bytes": (lambda _: read_model(b"v.npy"), TypeError, "path is a bytes"),
    "no file": (lambda p: read_model(p / "none.npy"), FileNotFoundError, "no file"),
    "units": (lambda p: read_model(p / "v.npy", units=3), ValueError, "units is 3"),
    "dtype": (lambda p: read_model(p / "v.npy", dtype="f"), TypeError, "torch.float32"),
    "int": (lambda p: read_model(p / "v.npy", dtype=torch.int32), TypeError, "torch.int"),
    "shape": (lambda p: read_model(p / "v.npy", shape=12), TypeError, "shape is an int"),
    "shape float": (
        lambda p: read_model(p / "v.npy", shape=(12.0, 17)),
        TypeError,
        "float 12.0",
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
        "a ndarray; it must be a torch.Tensor",
    ),
    "write path": (lambda _: write_model(3, V), TypeError, "path is an int"),
    "overwrite": (
        lambda p: write_model(p / "v.npy", V, overwrite="no"),
        TypeError,
        "overwrite is a str 'no'",
    ),
    "write tensor": (
        lambda p: write_gathers(p / "d.npy", DATA),
        TypeError,
        r"gathers is a Tensor; .*Gathers\(data, dt\)",
    ),
    "gathers dt text": (
        lambda p: read_gathers(p / "v.npy", dt="0.004"),
        TypeError,
        "dt is a str",
    ),
    "gathers dt in ms": (
        lambda p: read_gathers(p / "v.npy", dt=4),
        ValueError,
        r"4 ms is 0\.004",
    ),
    "gathers dt nan": (
        lambda p: read_gathers(p / "v.npy", dt=NAN),
        ValueError,
        "dt=nan is not plausible",
    ),
    "gathers pad": (
        lambda p: read_gathers(p / "v.npy", dt=DT, pad="yes"),
        TypeError,
        "pad is a str",
    ),
    "gathers key": (
        lambda p: read_gathers(p / "v.npy", dt=DT, shot_key=9),
        TypeError,
        "shot_key is an int 9",
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
    "half a probe": (lambda: diagonal(n_probes=1.5), TypeError, "n_probes is a float"),
    "width": (lambda: diagonal(smooth=-1), ValueError, "smooth is -1"),
    "width text": (
        lambda: diagonal(smooth="3"),
        TypeError,
        "smooth is a str",
    ),
    "damping": (lambda: diagonal(damping=NAN), ValueError, "damping is nan"),
    "seed": (lambda: diagonal(seed=None), TypeError, "seed is None"),
    "lit width": (lambda: lit(smooth=NAN), ValueError, "smooth is nan"),
    "lit damping": (lambda: lit(damping="1"), TypeError, "damping is a str"),
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


def test_units_that_agree_with_each_other_are_taken():
    """Kilometres and kilometres per second: their ratio is all that waves see."""
    there = make(grid_spacing=[0.005, 0.006], max_vel=2.5)
    assert there.resolved.step_ratio == survey().resolved.step_ratio
