"""``python -m hvpopt.fwi info``: what it says is in the file, and its line reads it."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from segy_files import write_line, write_traces
from waves import D, one_thread  # noqa: F401

import hvpopt
from hvpopt.fwi.__main__ import main
from hvpopt.fwi.io.segy_info import segy_info

SHOTS, RECEIVERS, NT, DT = 4, 5, 120, 0.002


def streamer():
    sources = torch.zeros(SHOTS, 3, dtype=D)
    sources[:, 0], sources[:, 1] = 6.0, 40.0
    sources[:, 2] = 300.0 + 50.0 * torch.arange(SHOTS)
    receivers = torch.zeros(SHOTS, RECEIVERS, 3, dtype=D)
    receivers[..., 0], receivers[..., 1] = 8.5, 40.0
    receivers[..., 2] = sources[:, None, 2] + 25.0 * torch.arange(1, RECEIVERS + 1)
    return sources, receivers


def recordings(seed, frequency=12.0):
    """Waves of one frequency, with random amplitudes and times."""
    draw = np.random.default_rng(seed)
    time = DT * np.arange(NT) - draw.uniform(0.08, 0.16, (SHOTS, RECEIVERS, 1))
    window = np.exp(-((frequency * time) ** 2))
    size = draw.uniform(1, 3, (SHOTS, RECEIVERS, 1))
    return size * window * np.cos(2 * math.pi * frequency * time)


def rows(told):
    """Return what is told, by the first word of each line."""
    return dict(
        line.split(maxsplit=1) if line[0] != "b" else ("bad", line.split(maxsplit=2)[2])
        for line in told.splitlines()[1:]
        if line and not line.startswith(("hvpopt", "reads", "dominant"))
    )


def reading(told):
    """Return what the suggested line reads."""
    (line,) = [x for x in told.splitlines() if x.startswith("hvpopt.fwi.read_survey(")]
    return eval(line, {"hvpopt": hvpopt})


def test_what_is_told_of_a_streamer(seed, tmp_path):
    data = recordings(seed).astype(np.float32)
    data[1, 2] = 0.0
    data[3, 4, 7] = math.inf
    path = write_line(tmp_path / "line.sgy", data, *streamer(), dt=DT)
    told = segy_info(path)
    good = np.delete(data.reshape(-1, NT), 19, 0).astype(np.float64)
    low, high, rms = good.min(), good.max(), (good**2).mean() ** 0.5
    found = rows(told)
    assert told.startswith(str(path))
    assert found["format"] == "SEG-Y revision 0, big-endian, 4-byte IEEE floats"
    assert found["traces"] == "20, of 120 samples every 2 ms, from 0 ms"
    assert found["shots"] == "4 by FieldRecord, 5 receivers each"
    assert found["spread"].startswith("moving")
    assert found["offsets"] == "25 to 125 m"
    assert found["sources"] == "x 300 to 450 m, y 40 m, depth 6 m"
    assert found["receivers"] == "x 325 to 575 m, y 40 m, depth 8.5 m"
    assert found["line"] == "x; positions lie up to 0 m off it"
    assert found["units"] == "metres"
    assert found["amplitudes"] == f"{low:.6g} to {high:.6g}, root mean square {rms:.6g}"
    assert found["bad"].startswith("1 dead (all samples zero), 1 with NaN or infinite")
    assert found["frequency"].endswith("Hz, dominant")
    assert float(found["frequency"].split()[0]) == pytest.approx(12.0, abs=0.7 / NT / DT)
    survey = reading(told)
    assert survey.survey.n_shots == SHOTS
    assert {k: len(v) for k, v in survey.dropped.items()} == {"dead": 1, "not finite": 1}
    v = torch.full(survey.shape, 2000.0)
    assert survey.survey.simulate(v).shape == survey.observed.shape


def fixed(sources, receivers):
    return sources, receivers[:1].repeat(SHOTS, 1, 1)


def crooked(sources, receivers):
    sources = sources.clone()
    sources[2, 1] += 41.0
    return sources, receivers


def areal(sources, receivers):
    sources, receivers = sources.clone(), receivers.clone()
    sources[:, 1] = 200.0 * torch.arange(SHOTS)
    return sources, receivers


@pytest.mark.parametrize(
    ("change", "word", "option"),
    [
        (fixed, "spread      fixed", "wavelet="),
        (crooked, "spread      moving", "max_off_line="),
        (areal, "spread      moving", "n_dimensions=3"),
    ],
)
@pytest.mark.parametrize("endian", ["big", "little"])
def test_line_that_is_suggested_reads_the_file(
    change, word, option, endian, seed, tmp_path
):
    path = write_line(
        tmp_path / "a line.sgy",
        recordings(seed),
        *change(*streamer()),
        dt=DT,
        endian=endian,
        mfeet=1,
    )
    told = segy_info(path)
    assert word in told
    assert option in told
    assert f"{endian}-endian" in told
    assert ("byte_order='little'" in told) == (endian == "little")
    found = reading(told)
    assert found.survey.n_dimensions == (3 if change is areal else 2)
    np.testing.assert_array_equal(found.observed, recordings(seed).astype(np.float32))


def test_uneven_shots_by_another_header(seed, tmp_path):
    exists = np.ones((SHOTS, RECEIVERS), bool)
    exists[0, 3:] = False
    path = write_line(
        tmp_path / "line.sgy",
        recordings(seed),
        *streamer(),
        exists=exists,
        headers=lambda s, _: {
            "FieldRecord": 7,
            "EnergySourcePoint": 40 - s,
            "DelayRecordingTime": 4 * s,
        },
        mfeet=2,
        dt=DT,
    )
    told = segy_info(path)
    assert rows(told)["shots"] == "4 by EnergySourcePoint, 3 to 5 receivers each"
    assert rows(told)["traces"] == "18, of 120 samples every 2 ms, from 0 to 12 ms"
    assert rows(told)["units"].startswith("feet")
    found = reading(told)
    assert found.survey.n_shots == SHOTS
    assert found.trace_weights.sum() == 18
    assert "by TraceNumber" not in segy_info(path, shot_key="EnergySourcePoint")
    assert "cannot tell its shots apart" in segy_info(path, shot_key="FieldRecord")


def test_files_that_read_survey_cannot_read(seed, tmp_path):
    data, places = (
        recordings(seed).reshape(-1, NT),
        [{"FieldRecord": i} for i in range(20)],
    )
    nowhere = write_traces(tmp_path / "a.sgy", data, places, dt=DT)
    assert "read_survey needs positions: SourceX and SourceY" in segy_info(nowhere)
    degrees = [{"SourceX": 1, "CoordinateUnits": 3}] * 20
    arcs = segy_info(write_traces(tmp_path / "b.sgy", data, degrees, dt=DT))
    assert "cannot read it as it is" in arcs
    assert "degrees" in arcs
    timeless = write_line(tmp_path / "c.sgy", recordings(seed), *streamer(), dt=DT)
    raw = bytearray(timeless.read_bytes())
    raw[3216:3218] = b"\0\0"  # the file's sampling interval; its traces' are zero
    timeless.write_bytes(raw)
    assert "pass the right one as dt=" in segy_info(timeless)
    quiet = write_line(tmp_path / "d.sgy", 0 * recordings(seed), *streamer(), dt=DT)
    assert "no trace is live" in segy_info(quiet)


# -- what traces are ----------------------------------------------------------------


def test_codes_that_are_not_plain_are_told(seed, tmp_path):
    """Dead noise, a sweep of another frequency, and what they would do to the rest."""
    draw = np.random.default_rng(seed)
    data = recordings(seed)
    codes = np.ones((SHOTS, RECEIVERS), int)
    codes[:, 4], codes[1, 2] = 6, 2
    data[codes == 6] = 1e3 * recordings(seed, 60.0)[codes == 6]
    data[codes == 2] = 1e3 * draw.standard_normal(NT)
    path = write_line(
        tmp_path / "line.sgy",
        data,
        *streamer(),
        dt=DT,
        headers=lambda s, r: {
            "TraceIdentificationCode": int(codes[s, r]),
            **({"GroupX": 0} if codes[s, r] != 1 else {}),
        },
    )
    told = segy_info(path)
    assert (
        "trace codes 15 of code 1 (seismic), 1 of code 2 (dead), 4 of code 6 (sweep)"
        in (told)
    )
    assert rows(told)["shots"] == "4 by FieldRecord, 4 receivers each"
    assert rows(told)["bad"].endswith("infinite samples, 1 marked dead")
    good = data[codes == 1].astype(np.float32).astype(np.float64)
    assert rows(told)["amplitudes"].startswith(f"{good.min():.6g} to {good.max():.6g}")
    assert float(rows(told)["frequency"].split()[0]) == pytest.approx(12.0, abs=3.0)
    found = reading(told)
    assert found.observed.shape[1] == RECEIVERS - 1
    assert found.trace_weights.sum() == 15
    plain = write_line(tmp_path / "b.sgy", recordings(seed), *streamer(), dt=DT)
    assert "trace codes" not in segy_info(plain)


def test_sensors_are_told_and_one_is_read(seed, tmp_path):
    codes = np.where(np.arange(RECEIVERS) % 2, 13, 12)[None].repeat(SHOTS, 0)
    path = write_line(
        tmp_path / "line.sgy",
        recordings(seed),
        *streamer(),
        dt=DT,
        headers=lambda s, r: {"TraceIdentificationCode": int(codes[s, r])},
    )
    told = segy_info(path)
    assert "12 of code 12 (vertical), 8 of code 13 (crossline)" in told
    assert rows(told)["shots"] == "4 by FieldRecord, 3 receivers each"
    assert "component='vertical'" in told
    found = reading(told)
    expected = recordings(seed).astype(np.float32)[:, ::2]
    np.testing.assert_array_equal(found.observed, expected)
    sweeps = write_line(
        tmp_path / "sweeps.sgy",
        recordings(seed),
        *streamer(),
        dt=DT,
        headers=lambda s, r: {"TraceIdentificationCode": 6},  # noqa: ARG005
    )
    assert "20 of code 6 (sweep)" in segy_info(sweeps)
    assert reading(segy_info(sweeps)).observed.shape[:2] == (SHOTS, RECEIVERS)


def test_traces_shorter_than_the_file_are_told(seed, tmp_path):
    path = write_line(
        tmp_path / "line.sgy",
        recordings(seed) * (np.arange(NT) < 100),
        *streamer(),
        dt=DT,
        headers=lambda s, r: {"TRACE_SAMPLE_COUNT": 100 + r},  # noqa: ARG005
    )
    told = segy_info(path)
    assert rows(told)["traces"].endswith("from 0 ms; 100 to 104 samples recorded")
    assert reading(told).sample_weights.shape == (SHOTS, RECEIVERS, NT)


# -- positions that are rounded -----------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "along", "option"),
    [(1, 1, None), (0, 30, "snap="), (60, 0, "source_depth=")],
)
def test_sources_that_jitter_are_of_one_shot(depth, along, option, seed, tmp_path):
    draw = np.random.default_rng(seed)
    moves = draw.integers(-1, 2, (SHOTS, RECEIVERS, 2))
    moves[:, 0], moves[:, 1] = 1, -1
    sources, receivers = streamer()
    path = write_line(
        tmp_path / "line.sgy",
        recordings(seed),
        sources,
        receivers,
        dt=DT,
        headers=lambda s, r: {
            "SourceDepth": round(100 * float(sources[s, 0]))
            + depth * int(moves[s, r, 0]),
            "SourceX": round(100 * float(sources[s, 2])) + along * int(moves[s, r, 1]),
        },
    )
    told = segy_info(path)
    assert rows(told)["shots"] == "4 by FieldRecord, 5 receivers each"
    far = f"{2 * max(depth, along) / 100:g} m in {'depth' if depth else 'x'}"
    assert f"sources of one shot differ by up to {far}" in told
    assert "shot_key" not in told
    assert ("snap=" in told) == (option == "snap=")
    assert ("source_depth=" in told) == (option == "source_depth=")
    assert reading(told).survey.n_shots == SHOTS
    plain = write_line(tmp_path / "b.sgy", recordings(seed), sources, receivers, dt=DT)
    assert "differ by up to" not in segy_info(plain)


@pytest.mark.parametrize("degrees", [0, 30, 45, 60, 90, 135, 200])
@pytest.mark.parametrize("scalar", [-100, 1])
@pytest.mark.parametrize("step", [25.0, 12.5])
def test_cells_fit_the_distance_between_receivers(degrees, scalar, step, seed, tmp_path):
    turn = math.radians(degrees)
    size, n = (100, 40) if scalar == -100 else (1, 40)
    headers = []
    for r in range(n):
        along = 500.0 + step * r
        x, y = along * math.cos(turn), along * math.sin(turn)
        headers.append(
            {
                "FieldRecord": 1,
                "SourceGroupScalar": scalar,
                "SourceX": size,
                "GroupX": round(size * x),
                "GroupY": round(size * y),
            }
        )
    data = np.tile(recordings(seed).reshape(-1, NT), (2, 1))
    told = segy_info(write_traces(tmp_path / "l.sgy", data, headers, dt=DT))
    cells = float(told.split("grid_spacing=")[1].split(",")[0])
    ratio = max(step / cells, cells / step)
    assert ratio == pytest.approx(round(ratio), rel=1e-9)


@pytest.mark.parametrize(
    ("code", "name"), [(1, "4-byte IBM floats"), (5, "4-byte IEEE floats")]
)
def test_number_formats(code, name, seed, tmp_path):
    path = write_line(tmp_path / "l.sgy", recordings(seed), *streamer(), dt=DT, code=code)
    told = segy_info(path)
    assert name in told
    low = float(rows(told)["amplitudes"].split()[0])
    assert low == pytest.approx(recordings(seed).min(), rel=1e-5)


# -- the command --------------------------------------------------------------------


def test_command_prints_it(seed, tmp_path, capsys):
    path = write_line(tmp_path / "line.sgy", recordings(seed), *streamer(), dt=DT)
    assert main(["info", str(path)]) == 0
    printed = capsys.readouterr()
    assert printed.out == segy_info(path) + "\n"
    assert printed.err == ""
    assert main(["info", str(path), "--shot-key", "SourceX"]) == 0
    assert "4 by SourceX" in capsys.readouterr().out


def test_command_by_python_m(seed, tmp_path):
    path = write_line(tmp_path / "line.sgy", recordings(seed), *streamer(), dt=DT)
    root = Path(hvpopt.__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-m", "hvpopt.fwi", "info", str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == segy_info(path) + "\n"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.sgy", None, "there is no file"),
        ("d.npy", b"0" * 9, "must end in .sgy or .segy"),
        ("short.sgy", b"", "cannot be read as SEG-Y"),
        ("text.sgy", b"no SEG-Y at all " * 300, "the code of its number format"),
        ("cut.sgy", 5000, "cannot be read as SEG-Y"),
        ("headers.sgy", 3600, "headers.sgy holds no traces"),
        ("fixed.sgy", 4, "holds 4-byte fixed-point numbers (format 4), which segyio"),
        ("zero.sgy", 0, "the code of its number format"),
    ],
)
def test_command_fails_with_words_and_status_2(
    name, content, words, seed, tmp_path, capsys
):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        whole = write_line(tmp_path / "whole.sgy", recordings(seed), *streamer(), dt=DT)
        raw = bytearray(whole.read_bytes())
        if content < 100:
            raw[3224:3226] = content.to_bytes(2, "big")
        path.write_bytes(raw[:content] if content > 100 else raw)
    assert main(["info", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert words in printed.err
    assert len(printed.err.splitlines()) == 1


@pytest.mark.parametrize("arguments", [[], ["info"], ["infos", "a.sgy"]])
def test_usage_errors_have_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert "usage: python -m hvpopt.fwi" in capsys.readouterr().err


def test_unknown_header_is_an_error(seed, tmp_path, capsys):
    path = write_line(tmp_path / "line.sgy", recordings(seed), *streamer(), dt=DT)
    assert main(["info", str(path), "--shot-key", "Shot"]) == 2
    assert "'Shot' is no SEG-Y trace header" in capsys.readouterr().err
