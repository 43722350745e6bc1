"""Where a model lies on a device, steps copy numbers to the host, and no vectors.

The other way, random vectors may go: they are drawn on the host, so that they are the
same on every device. How often the host waits for a number is counted on every device: by
torch's sync debug mode on a GPU, by the calls that would wait on a CPU.
"""

import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from on_device import DEVICE
from torch.utils._python_dispatch import TorchDispatchMode
from waves import SHAPE, models_of, one_thread, perturbed, survey

import hvpopt
from hvpopt.fwi import WaveformMisfit

__all__ = ["one_thread"]
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")

#: Coefficients of a Krylov space may be copied together; a model has 204 cells.
LARGE = 64
#: The last step that is looked at; a sampled run goes on with the whole, whose first step
#: measures and smooths a diagonal on the host again.
LAST = 12
#: How often the package may wait in an evaluation, without what deepwave does: a product
#: looks whether its vector, its sum over groups and its result are finite; a value looks
#: at the model's bounds, and at itself.
WAITS = {"product": 3, "value": 7, "gradient": 8}
#: The same in a step, and beside each of its products.
WAITS_IN_STEP, WAITS_BESIDE_PRODUCT = 80, 16
PACKAGE = str(Path(hvpopt.__file__).parent)
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
needs_device = pytest.mark.skipif(
    DEVICE.type == "cpu", reason="on the CPU all memory is the host's; set HVPOPT_DEVICE"
)


class Copies(TorchDispatchMode):
    """Notes tensors of more than LARGE entries that go from one device to another.

    Attributes:
        found: Each as ``(from, to, shape)``, while ``noting``.
        noting: Default True.
    """

    def __init__(self, noting=True):
        super().__init__()
        self.found, self.noting = [], noting

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if self.noting and func in COPIES:
            source = args[COPIES.index(func)]  # copy_ writes to its first argument
            if source.device != out.device and out.numel() > LARGE:
                pair = (source.device.type, out.device.type)
                self.found.append((*pair, tuple(out.shape)))
        return out

    @property
    def to_host(self):
        return [shape for _, to, shape in self.found if to == "cpu"]

    def note_after_first_step(self, _, record):
        self.noting = 1 <= record.iteration < LAST


class Reads(TorchDispatchMode):
    """Notes the file of each call in the package that reads a number from a tensor."""

    READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in self.READS:
            frame, torch_files = sys._getframe(1), str(Path(torch.__file__).parent)
            while frame.f_code.co_filename.startswith(torch_files):
                frame = frame.f_back
            self.found.append(frame.f_code.co_filename)
        return func(*args, **(kwargs or {}))


@contextmanager
def waits():
    """Yield a list that gets an entry for each wait of the package for the device."""
    found = []
    if DEVICE.type == "cuda":
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield found
            finally:
                torch.cuda.set_sync_debug_mode(before)
        files = [w.filename for w in told if "synchroni" in str(w.message)]
    else:
        with Reads() as reads:
            yield found
        files = reads.found
    found += [name for name in files if name.startswith(PACKAGE)]


def run(misfit, start, method, max_iter=4, **options):
    """Return the copies to the host in all steps after the first, and the result."""
    copies = Copies(noting=False)
    with copies:
        result = hvpopt.minimize(
            misfit,
            start,
            method=method,
            max_iter=max_iter,
            callback=copies.note_after_first_step,
            **options,
        )
        copies.noting = False
    assert result.nit >= max_iter
    return copies.to_host, result


def problem(generator, n_shots=3):
    acquisition = survey("scalar", n_shots)
    models = models_of("scalar", generator)
    (start,) = perturbed(models, generator)
    return WaveformMisfit(acquisition, acquisition.simulate(models)), start


def test_waits_are_seen():
    model = torch.ones(SHAPE, dtype=torch.float64)
    with waits() as found:
        hvpopt.MatrixOperator(torch.eye(3, dtype=torch.float64)) @ model[0, :3]
        float(model.sum())  # not the package's
    assert found


@pytest.mark.parametrize("what", WAITS)
def test_evaluations_wait_for_few_numbers(what, generator):
    misfit, start = problem(generator)
    operator = misfit.hessian(start)
    vector = torch.rand(operator.size, generator=generator, dtype=torch.float64)
    call = {
        "product": lambda: operator @ vector,
        "value": lambda: misfit.value(start),
        "gradient": lambda: misfit.value_and_gradient(start),
    }[what]
    call()  # plans the groups
    with waits() as found:
        call()
    assert 0 < len(found) <= WAITS[what]


@pytest.mark.parametrize(
    "method", [hvpopt.QuasiNewton, hvpopt.TrustRegionNewton, hvpopt.LineSearchNewton]
)
def test_steps_wait_for_few_numbers(method, generator):
    misfit, start = problem(generator)
    with waits() as found:
        result = hvpopt.minimize(misfit, start, method=method(), max_iter=6)
    most = WAITS_IN_STEP * result.nit + WAITS_BESIDE_PRODUCT * result.counts.products
    assert 0 < len(found) <= most


def test_copies_are_seen():
    other = torch.device("meta")
    model = torch.ones(SHAPE)
    with Copies() as copies:
        model[:2].to(other)
        assert not copies.found, "small"
        model.to(other)
        torch.empty(SHAPE, device=other).copy_(model)
        model.to(torch.float64)
        model.clone()
    assert copies.found == 2 * [(DEVICE.type, "meta", SHAPE)]


@needs_device
def test_host_copies_are_seen(generator):
    model = torch.rand(SHAPE, generator=generator)
    ways = (model.cpu, model.tolist, model.numpy, model[0].tolist)
    found = []
    for way in ways:
        with Copies() as copies:
            way()
        found.append(copies.to_host)
    assert found == [[SHAPE]] * 3 + [[]]


@needs_device
@pytest.mark.parametrize("method", [hvpopt.QuasiNewton, hvpopt.TrustRegionNewton])
def test_steps_on_a_device_copy_no_vector(method, generator):
    misfit, start = problem(generator)
    copies, result = run(misfit, start, method(), lower=1500.0, upper=2400.0)
    assert result.x.device == start.device
    assert copies == []


@needs_device
def test_sampled_steps_on_a_device_copy_no_vector(generator):
    misfit, start = problem(generator, n_shots=4)
    method = hvpopt.StochasticQuasiNewton()
    copies, result = run(misfit, start, method, max_iter=LAST, lower=1500.0, upper=2400.0)
    assert result.x.device == start.device
    assert copies == []


@needs_device
def test_products_and_an_eigenvalue_copy_no_vector(generator):
    misfit, start = problem(generator)
    operator = misfit.hessian(start)
    seed = torch.rand(operator.size, generator=generator, dtype=torch.float64)
    operator @ seed  # plans the groups
    with Copies() as copies:
        estimate = hvpopt.smallest_eigenvalue(operator, tol=0.3, start=seed)
        hvpopt.cg(operator, seed, max_products=5)
    assert estimate.vector.device == start.device
    assert copies.to_host == []
