"""Where a model lies on a device, steps copy numbers to the host, and no vectors.

The other way, random vectors may go: they are drawn on the host, so that they are the
same on every device.
"""

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
