"""Round trips of models and gathers, and an error for each thing that does not fit."""

import sys

import deepwave
import numpy as np
import pytest
import torch

from hvpopt.fwi.io.formats import (
    Gathers,
    read_gathers,
    read_model,
    write_gathers,
    write_model,
)

SUFFIXES = [".npy", ".bin", ".sgy"]
suffixes = pytest.mark.parametrize("suffix", SUFFIXES)


def need(suffix):
    if suffix in (".sgy", ".segy"):
        pytest.importorskip("segyio")


def velocity(*shape):
    generator = torch.Generator().manual_seed(0)
    return 1500 + 3000 * torch.rand(shape, generator=generator)


def gathers(shots=3, receivers=4, samples=6, dt=0.004):
    data = torch.randn(
        shots, receivers, samples, generator=torch.Generator().manual_seed(1)
    )
    sources = torch.zeros(shots, 3, dtype=torch.float64)
    sources[:, 0], sources[:, 2] = 12.5, 100.0 * torch.arange(shots)
    where = torch.zeros(receivers, 3, dtype=torch.float64)
    where[:, 0], where[:, 1], where[:, 2] = (
        -3.25,
        7.5,
        torch.arange(receivers).double() * 10.001,
    )
    return Gathers(data, dt, sources, where)


def segy(path, traces, headers, interval=4000, endian="big", **binary):
    """Write a SEG-Y file by segyio alone, as another program would."""
    segyio = pytest.importorskip("segyio")
    spec = segyio.spec()
    spec.format, spec.endian = 5, endian
    spec.samples, spec.tracecount = np.arange(traces.shape[1]) * 4.0, len(traces)
    with segyio.create(str(path), spec) as file:
        file.bin.update(hdt=interval, **binary)
        for i, (trace, header) in enumerate(zip(traces, headers, strict=True)):
            file.header[i] = {getattr(segyio.TraceField, k): v for k, v in header.items()}
            file.trace[i] = np.asarray(trace, np.float32)
    return path


def traces(count, samples=5):
    return np.random.default_rng(0).standard_normal((count, samples)).astype(np.float32)


class TestModels:
    @suffixes
    @pytest.mark.parametrize("shape", [(7, 5), (4, 3, 5), (6,)])
    def test_round_trip(self, tmp_path, suffix, shape):
        need(suffix)
        path, model = tmp_path / f"v{suffix}", velocity(*shape)
        write_model(path, model)
        found = read_model(path, shape=shape if suffix == ".bin" else None)
        expected = model[:, None] if suffix == ".sgy" and len(shape) == 1 else model
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)
        assert [p.name for p in tmp_path.iterdir()] == [path.name]

    @pytest.mark.parametrize("suffix", [".npy", ".bin"])
    def test_float64(self, tmp_path, suffix):
        path, model = tmp_path / f"v{suffix}", velocity(4, 3).double() + 1e-9
        write_model(path, model)
        found = read_model(path, shape=(4, 3), file_dtype="float64", dtype=torch.float64)
        assert torch.equal(found, model)

    @suffixes
    def test_km_per_second(self, tmp_path, suffix):
        need(suffix)
        path, model = tmp_path / f"v{suffix}", velocity(4, 3)
        write_model(path, model, units="km/s")
        found = read_model(path, units="km/s", shape=(4, 3))
        torch.testing.assert_close(found, model, rtol=1e-6, atol=0)
        assert float(read_model(path, units=None, shape=(4, 3)).max()) < 5

    def test_density_and_other_quantities(self, tmp_path):
        np.save(tmp_path / "rho.npy", np.array([[1.0, 2.2]]))
        found = read_model(tmp_path / "rho.npy", units="g/cm3")
        assert found.tolist() == [[1000.0, 2200.0]]
        np.save(tmp_path / "q.npy", np.array([[-1.0, 0.0]]))
        assert read_model(tmp_path / "q.npy", units=None).tolist() == [[-1.0, 0.0]]

    def test_water_has_no_shear_velocity(self, tmp_path):
        np.save(tmp_path / "vs.npy", np.array([[0.0, 800.0]]))
        assert read_model(tmp_path / "vs.npy").tolist() == [[0.0, 800.0]]

    def test_integers_fortran_and_big_endian_npy(self, tmp_path):
        model = np.asfortranarray(velocity(3, 4).round().numpy())
        for i, array in enumerate([model.astype(np.int16), model.astype(">f8"), model]):
            np.save(tmp_path / f"{i}.npy", array)
            assert torch.equal(
                read_model(tmp_path / f"{i}.npy"), torch.tensor(model.copy())
            )

    def test_raw_bytes_by_order(self, tmp_path):
        model = 1000.0 * torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
        for order, file_dtype, expected in [
            ("C", "<f4", [1, 2, 3, 4, 5, 6]),
            ("F", ">f8", [1, 4, 2, 5, 3, 6]),
        ]:
            path = tmp_path / f"{order}.bin"
            byte_order = "big" if ">" in file_dtype else None
            options = {
                "order": order, "file_dtype": file_dtype[1:], "byte_order": byte_order
            }  # fmt: skip
            write_model(path, model, **options)
            assert np.fromfile(path, file_dtype).tolist() == [
                1000.0 * x for x in expected
            ]
            assert torch.equal(read_model(path, shape=(2, 3), **options), model)

    def test_the_callers_tensor_is_left_alone(self, tmp_path):
        model = velocity(3, 4).requires_grad_()
        before = model.detach().clone()
        write_model(tmp_path / "v.npy", model, units="km/s")
        assert torch.equal(model, before)

    def test_segy_section_of_another_program(self, tmp_path):
        section = 2000 + traces(3)
        path = segy(tmp_path / "v.segy", section, [{"CDP": i} for i in range(3)])
        assert torch.equal(read_model(path), torch.tensor(section.T.copy()))

    def test_segy_cube_in_any_trace_order(self, tmp_path):
        cube = 2000 + traces(6)
        lines = [(il, xl) for xl in (7, 5) for il in (10, 30, 20)]
        headers = [{"INLINE_3D": il, "CROSSLINE_3D": xl} for il, xl in lines]
        path = segy(tmp_path / "v.sgy", cube, headers)
        found = read_model(path)
        assert found.shape == (5, 3, 2)
        for trace, (il, xl) in zip(cube, lines, strict=True):
            column = found[:, [10, 20, 30].index(il), [5, 7].index(xl)]
            assert torch.equal(column, torch.tensor(trace))
        assert read_model(path, shape=(5, 6)).shape == (5, 6)

    def test_segy_little_endian(self, tmp_path):
        pytest.importorskip("segyio")
        model = velocity(5, 3)
        write_model(tmp_path / "v.sgy", model, byte_order="little")
        found = read_model(tmp_path / "v.sgy", byte_order="little")
        assert torch.equal(found, model)


class TestGathers:
    @suffixes
    def test_round_trip(self, tmp_path, suffix):
        need(suffix)
        path, wrote = tmp_path / f"d{suffix}", gathers()
        write_gathers(path, wrote)
        known = {} if suffix == ".sgy" else {"dt": 0.004}
        found = read_gathers(path, shape=(3, 4, 6), **known)
        assert torch.equal(found.data, wrote.data)
        assert found.dt == 0.004
        assert found.live is None
        if suffix == ".sgy":
            torch.testing.assert_close(found.sources, wrote.sources, rtol=0, atol=1e-9)
            torch.testing.assert_close(
                found.receivers, wrote.receivers, rtol=0, atol=1e-9
            )
        else:
            assert found.sources is None

    def test_float64_raw_fortran(self, tmp_path):
        wrote = Gathers(gathers().data.double() / 3, 0.001)
        options = {"file_dtype": "float64", "order": "F", "byte_order": "big"}
        write_gathers(tmp_path / "d.bin", wrote, **options)
        found = read_gathers(
            tmp_path / "d.bin", shape=(3, 4, 6), dt=0.001, dtype=torch.float64, **options
        )
        assert torch.equal(found.data, wrote.data)

    def test_positions_become_cells(self):
        found = gathers()
        cells = deepwave.to_cells(found.sources[..., [0, 2]], 12.5)
        assert cells.tolist() == [[1.0, 0.0], [1.0, 8.0], [1.0, 16.0]]
        assert found.receivers.shape == (3, 4, 3)

    @pytest.mark.parametrize(
        ("scalar", "factor"), [(-100, 0.01), (10, 10.0), (0, 1.0), (1, 1.0), (-1, 1.0)]
    )
    def test_scalars(self, tmp_path, scalar, factor):
        header = {
            "SourceGroupScalar": scalar, "ElevationScalar": scalar,
            "SourceX": 300, "SourceY": 200, "SourceDepth": 50,
            "SourceSurfaceElevation": 20,
            "GroupX": 700, "GroupY": -100, "ReceiverGroupElevation": 40,
        }  # fmt: skip
        found = read_gathers(segy(tmp_path / "d.sgy", traces(1), [header]))
        assert found.sources[0].tolist() == [30 * factor, 200 * factor, 300 * factor]
        assert found.receivers[0, 0].tolist() == [
            -40 * factor,
            -100 * factor,
            700 * factor,
        ]

    def test_feet(self, tmp_path):
        path = segy(tmp_path / "d.sgy", traces(1), [{"SourceX": 100}], mfeet=2)
        assert float(read_gathers(path).sources[0, 2]) == pytest.approx(30.48)

    def test_shots_in_the_files_order(self, tmp_path):
        keys, data = [9, 4, 9, 4, 2, 2], traces(6)
        headers = [
            {"FieldRecord": k, "SourceX": k, "GroupX": i} for i, k in enumerate(keys)
        ]
        found = read_gathers(segy(tmp_path / "d.sgy", data, headers))
        assert found.sources[:, 2].tolist() == [9.0, 4.0, 2.0]
        assert found.receivers[..., 2].tolist() == [[0.0, 2.0], [1.0, 3.0], [4.0, 5.0]]
        expected = torch.tensor(data[np.array([[0, 2], [1, 3], [4, 5]])])
        assert torch.equal(found.data, expected)

    def test_no_positions(self, tmp_path):
        found = read_gathers(segy(tmp_path / "d.sgy", traces(2), [{}, {}]))
        assert found.sources is None
        assert found.receivers is None

    def test_padding_and_back(self, tmp_path):
        keys = [1, 1, 1, 2]
        headers = [{"FieldRecord": k, "GroupX": 5 + i} for i, k in enumerate(keys)]
        path = segy(tmp_path / "d.sgy", traces(4), headers)
        found = read_gathers(path, pad=True)
        assert found.live.tolist() == [[True, True, True], [True, False, False]]
        assert float(found.data[1, 1:].abs().max()) == 0.0
        assert bool(found.receivers[~found.live].isnan().all())
        write_gathers(tmp_path / "again.sgy", found)
        again = read_gathers(tmp_path / "again.sgy", pad=True)
        assert torch.equal(again.data, found.data)
        assert torch.equal(again.live, found.live)

    def test_far_positions_keep_what_fits(self, tmp_path):
        pytest.importorskip("segyio")
        wrote = gathers()
        wrote.sources[:, 1] = 6_543_210.12
        write_gathers(tmp_path / "d.sgy", wrote)
        found = read_gathers(tmp_path / "d.sgy")
        assert float(found.sources[0, 1]) == pytest.approx(6_543_210.12, abs=1e-8)

    def test_dt_of_the_caller_wins(self, tmp_path):
        path = segy(tmp_path / "d.sgy", traces(1), [{}], interval=2000)
        assert read_gathers(path).dt == 0.002
        assert read_gathers(path, dt=0.001).dt == 0.001

    def test_long_interval(self, tmp_path):
        # read as a signed 2-byte number it would be negative
        path = segy(tmp_path / "d.sgy", traces(1), [{}], interval=40000)
        assert read_gathers(path).dt == 0.04


class TestFiles:
    @pytest.mark.parametrize("read", [read_model, read_gathers])
    def test_missing(self, tmp_path, read):
        with pytest.raises(FileNotFoundError, match=r"there is no file .*v\.npy"):
            read(tmp_path / "v.npy")

    @pytest.mark.parametrize("read", [read_model, read_gathers])
    def test_suffix(self, tmp_path, read):
        with pytest.raises(ValueError, match=r"suffix '\.mat'; known are \.npy, \.bin"):
            read(tmp_path / "v.mat")

    @suffixes
    def test_no_overwriting(self, tmp_path, suffix):
        need(suffix)
        path = tmp_path / f"v{suffix}"
        path.write_bytes(b"precious")
        for write, what in [(write_model, velocity(2, 2)), (write_gathers, gathers())]:
            with pytest.raises(FileExistsError, match="overwrite=True"):
                write(path, what)
            assert path.read_bytes() == b"precious"
            write(path, what, overwrite=True)
            path.write_bytes(b"precious")

    @suffixes
    def test_a_failed_write_leaves_the_old_file(self, tmp_path, suffix):
        need(suffix)
        path = tmp_path / f"v{suffix}"
        path.write_bytes(b"precious")
        with pytest.raises(ValueError, match="file_dtype is 'complex64'"):
            write_model(path, velocity(2, 2), file_dtype="complex64", overwrite=True)
        assert path.read_bytes() == b"precious"
        assert len(list(tmp_path.iterdir())) == 1

    def test_no_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="make it first"):
            write_model(tmp_path / "none" / "v.npy", velocity(2, 2))

    def test_no_segyio(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "segyio", None)
        (tmp_path / "v.sgy").write_bytes(b"0" * 4000)
        for act in (
            lambda: read_model(tmp_path / "v.sgy"),
            lambda: read_gathers(tmp_path / "v.sgy"),
            lambda: write_model(tmp_path / "w.sgy", velocity(2, 2)),
        ):
            with pytest.raises(ImportError, match=r'pip install "hvpopt\[segy\]"'):
                act()

    @pytest.mark.parametrize("content", [b"0" * 100, b"0" * 5000])
    def test_no_segy(self, tmp_path, content):
        pytest.importorskip("segyio")
        (tmp_path / "v.sgy").write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as SEG-Y"):
            read_model(tmp_path / "v.sgy")

    def test_no_npy(self, tmp_path):
        (tmp_path / "v.npy").write_bytes(b"not an array")
        with pytest.raises(ValueError, match=r"no \.npy file of plain numbers"):
            read_model(tmp_path / "v.npy")
        np.save(tmp_path / "c.npy", np.ones((2, 2), complex))
        with pytest.raises(TypeError, match="complex128, not real numbers"):
            read_model(tmp_path / "c.npy")


class TestWhatDoesNotFit:
    def test_bytes(self, tmp_path):
        velocity(3, 4).numpy().tofile(tmp_path / "v.bin")
        with pytest.raises(ValueError, match=r"has 48 bytes.*float32 takes 60; check"):
            read_model(tmp_path / "v.bin", shape=(3, 5))
        with pytest.raises(ValueError, match="takes 96; pass file_dtype='float32'"):
            read_model(tmp_path / "v.bin", shape=(3, 4), file_dtype="float64")

    def test_raw_needs_a_shape(self, tmp_path):
        velocity(3, 4).numpy().tofile(tmp_path / "v.bin")
        with pytest.raises(ValueError, match=r"pass shape=\("):
            read_model(tmp_path / "v.bin")

    @suffixes
    def test_shape(self, tmp_path, suffix):
        need(suffix)
        write_model(tmp_path / f"v{suffix}", velocity(3, 4))
        with pytest.raises(
            ValueError, match=r"shape \(3, 4\), not|bytes; shape \(4, 4\)"
        ):
            read_model(tmp_path / f"v{suffix}", shape=(4, 4))

    @pytest.mark.parametrize(
        ("option", "words"),
        [
            ({"order": "A"}, "order is 'A'"),
            ({"byte_order": "middle"}, "byte_order is 'middle'"),
            ({"file_dtype": "float33"}, "file_dtype is 'float33'"),
            ({"units": "ft/s"}, "units is 'ft/s'"),
        ],
    )
    def test_options(self, tmp_path, option, words):
        velocity(3, 4).numpy().tofile(tmp_path / "v.bin")
        with pytest.raises(ValueError, match=words):
            read_model(tmp_path / "v.bin", shape=(3, 4), **option)

    @pytest.mark.parametrize(
        ("values", "units", "words"),
        [
            ([[1.5, 4.5]], "m/s", "up to 4.5, .*plausible in m/s; pass units='km/s'"),
            ([[1500, 4500]], "km/s", "pass units='m/s'"),
            ([[1.0, 2.2]], "kg/m3", "pass units='g/cm3'"),
            ([[1e9, 2e9]], "m/s", "check units and byte order, or units=None"),
            ([[-1.0, 2e3]], "m/s", "negative values, down to -1 m/s"),
        ],
    )
    def test_units(self, tmp_path, values, units, words):
        np.save(tmp_path / "v.npy", np.array(values))
        with pytest.raises(ValueError, match=words):
            read_model(tmp_path / "v.npy", units=units)

    def test_units_of_what_is_written(self, tmp_path):
        with pytest.raises(ValueError, match=r"up to 4.5, .* multiply it by 1000"):
            write_model(tmp_path / "v.npy", torch.tensor([[1.5, 4.5]]), units="km/s")
        assert not (tmp_path / "v.npy").exists()
        words = (
            r"up to 4.5, .* models are in m/s, .* multiply it by 1000 if it is in km/s"
        )
        km = torch.tensor([[1.5, 4.5]])
        for units in ("m/s", "km/s"):
            with pytest.raises(ValueError, match=words) as error:
                write_model(tmp_path / "v.npy", km, units=units)
            assert "pass units='" not in str(error.value)
        write_model(tmp_path / "v.npy", km * 1000)
        assert torch.equal(read_model(tmp_path / "v.npy"), km * 1000)
        with pytest.raises(
            ValueError, match=r"in kg/m3, .* multiply it by 1000 if it is in"
        ):
            write_model(tmp_path / "rho.npy", torch.tensor([[1.0, 2.2]]), units="kg/m3")
        with pytest.raises(ValueError, match=r"up to 1e\+09, .*; check its values, or"):
            write_model(tmp_path / "rho.npy", torch.tensor([[1e9]]))

    def test_nan(self, tmp_path):
        model = velocity(3, 4)
        model[1, 2] = float("nan")
        np.save(tmp_path / "v.npy", model.numpy())
        words = r"has 1 NaN or infinite values of 12, the first at \(1, 2\)"
        with pytest.raises(ValueError, match=words):
            read_model(tmp_path / "v.npy")
        with pytest.raises(ValueError, match=words):
            write_model(tmp_path / "w.npy", model)

    @pytest.mark.parametrize("shape", [(2, 2, 2, 2), (0, 3)])
    def test_axes_of_models(self, tmp_path, shape):
        np.save(tmp_path / "v.npy", np.full(shape, 2000.0))
        with pytest.raises(ValueError, match="does not fit a model"):
            read_model(tmp_path / "v.npy")

    def test_no_rounding_on_the_way_out(self, tmp_path):
        with pytest.raises(TypeError, match=r"torch\.int64 is no model"):
            write_model(tmp_path / "v.npy", torch.full((2, 2), 2500), units="km/s")
        with pytest.raises(ValueError, match="'int16'; write 'float32' or 'float64'"):
            write_model(tmp_path / "v.npy", velocity(2, 2), file_dtype="int16")

    def test_axes_of_gathers(self, tmp_path):
        np.save(tmp_path / "d.npy", traces(3))
        with pytest.raises(ValueError, match="does not fit gathers"):
            read_gathers(tmp_path / "d.npy", dt=0.004)
        with pytest.raises(ValueError, match=r"data\[None\]"):
            Gathers(torch.zeros(3, 5), 0.004)

    def test_dt(self, tmp_path):
        np.save(tmp_path / "d.npy", gathers().data.numpy())
        with pytest.raises(ValueError, match=r"pass dt=..., in seconds"):
            read_gathers(tmp_path / "d.npy")
        for dt in (4.0, 0.0, -0.004, float("nan")):
            with pytest.raises(ValueError, match=r"4 ms is 0\.004"):
                read_gathers(tmp_path / "d.npy", dt=dt)

    @pytest.mark.parametrize(
        ("name", "shape"), [("sources", (2, 3)), ("receivers", (4, 2)), ("live", (3, 3))]
    )
    def test_positions_of_gathers(self, name, shape):
        data = gathers().data
        with pytest.raises(ValueError, match=f"{name} has shape .*expected"):
            Gathers(data, 0.004, **{name: torch.zeros(shape)})

    def test_segy_dt(self, tmp_path):
        header = {"TRACE_SAMPLE_INTERVAL": 2000}
        path = segy(tmp_path / "d.sgy", traces(1), [header])
        with pytest.raises(
            ValueError, match=r"intervals \[2000, 4000\] µs.*pass the right"
        ):
            read_gathers(path)
        path = segy(tmp_path / "e.sgy", traces(1), [{}], interval=0)
        with pytest.raises(ValueError, match=r"of zero µs"):
            read_gathers(path)

    def test_segy_dt_to_write(self, tmp_path):
        pytest.importorskip("segyio")
        for dt in (0.1, 0.00012345678):
            with pytest.raises(ValueError, match="whole number of microseconds"):
                write_gathers(tmp_path / "d.sgy", gathers(dt=dt))

    def test_segy_positions_to_write(self, tmp_path):
        pytest.importorskip("segyio")
        path = tmp_path / "d.sgy"
        with pytest.raises(ValueError, match="give Gathers sources and receivers"):
            write_gathers(path, Gathers(gathers().data, 0.004))
        for value, words in [(float("nan"), "NaN or infinite"), (3e9, "reach 3e")]:
            wrote = gathers()
            wrote.sources[0, 0] = value
            with pytest.raises(ValueError, match=words):
                write_gathers(path, wrote)
        assert not path.exists()

    def test_segy_irregular_shots(self, tmp_path):
        headers = [{"FieldRecord": k} for k in (1, 1, 1, 8, 3, 3, 3)]
        path = segy(tmp_path / "d.sgy", traces(7), headers)
        words = r"1 to 3 receivers per shot: 1 of 3 shots.*FieldRecord 8\); pass pad=True"
        with pytest.raises(ValueError, match=words):
            read_gathers(path)

    def test_segy_shots_not_told_apart(self, tmp_path):
        headers = [{"FieldRecord": 7, "SourceX": 5 * i} for i in range(2)]
        path = segy(tmp_path / "d.sgy", traces(2), headers)
        with pytest.raises(ValueError, match=r"FieldRecord 7 lie up to 5 m apart in x"):
            read_gathers(path)
        assert read_gathers(path, shot_key="SourceX").data.shape == (2, 1, 5)
        with pytest.raises(ValueError, match="'Shot' is no SEG-Y trace header"):
            read_gathers(path, shot_key="Shot")

    def test_segy_degrees(self, tmp_path):
        path = segy(tmp_path / "d.sgy", traces(1), [{"CoordinateUnits": 3}])
        with pytest.raises(ValueError, match="project them to metres"):
            read_gathers(path)

    def test_segy_delay(self, tmp_path):
        path = segy(tmp_path / "d.sgy", traces(1), [{"DelayRecordingTime": 12}])
        with pytest.raises(ValueError, match="start at 12 ms"):
            read_gathers(path)

    def test_segy_cube_with_a_hole(self, tmp_path):
        headers = [
            {"INLINE_3D": i, "CROSSLINE_3D": j} for i, j in [(1, 1), (1, 2), (2, 1)]
        ]
        path = segy(tmp_path / "v.sgy", 2000 + traces(3), headers)
        with pytest.raises(ValueError, match=r"2 inlines × 2.*pass shape=\(5, 3\)"):
            read_model(path)

    def test_segy_wrong_byte_order(self, tmp_path):
        path = segy(tmp_path / "v.sgy", 2000 + traces(3), [{}] * 3, endian="little")
        with pytest.raises(ValueError, match=r"byte_order|plausible|NaN"):
            read_model(path)
