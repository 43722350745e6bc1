"""Put what the tests make on the device that ``HVPOPT_DEVICE`` names; default the CPU.

Tensors that a test, or an example that it runs, makes without a device are moved there,
random ones after they are drawn on the CPU, so that they are the same on every device.
Tensors that the package makes are left as they are: torch's default device stays the CPU,
as it does for a person whose model lies on a GPU, and a tensor that the package makes on
the wrong device is not hidden.
"""

import os
import sys
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

DEVICE = torch.device(os.environ.get("HVPOPT_DEVICE", "cpu"))
ROOT = Path(__file__).parents[1]
#: Folders whose code stands for a person's: their tensors are moved.
PERSONS = (f"{ROOT / 'tests'}{os.sep}", f"{ROOT / 'examples'}{os.sep}")
#: Folders whose code has to name the device itself.
PACKAGES = (f"{ROOT / 'hvpopt'}{os.sep}", f"{os.sep}deepwave{os.sep}")
#: What makes tensors on the CPU whatever it is given: a person moves the result.
WAVELETS = f"{os.sep}deepwave{os.sep}wavelets.py"

MAKERS = {
    torch.arange,
    torch.as_tensor,
    torch.empty,
    torch.eye,
    torch.full,
    torch.linspace,
    torch.logspace,
    torch.ones,
    torch.rand,
    torch.randint,
    torch.randn,
    torch.randperm,
    torch.tensor,
    torch.zeros,
}
TO_ARRAY = {torch.Tensor.numpy, torch.Tensor.__array__}


def cpu_only(reason):
    """Skip a test on any other device, for a reason that is told."""
    return pytest.mark.skipif(DEVICE.type != "cpu", reason=f"on the CPU only: {reason}")


def asked_by_a_person():
    """Return True if the call comes from a test or an example, not from a package."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(PERSONS):
            return True
        if any(package in name for package in PACKAGES) and not name.endswith(WAVELETS):
            return False
        frame = frame.f_back
    return True


class OnDevice(TorchFunctionMode):
    """Move new tensors of tests to ``DEVICE``, and those that become arrays from it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in TO_ARRAY and asked_by_a_person():
            return func(args[0].cpu(), *args[1:], **kwargs)
        made = func(*args, **kwargs)
        if (
            func not in MAKERS
            or kwargs.get("device") is not None
            or any(isinstance(a, torch.Tensor) for a in args[:1])
            or not asked_by_a_person()
        ):
            return made
        moved = made.detach().to(DEVICE)
        # transforms of torch.func refuse the call even where it asks for nothing
        return moved.requires_grad_() if made.requires_grad else moved
