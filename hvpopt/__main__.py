"""``python -m hvpopt``: versions, devices and threads, for reports of bugs."""

from __future__ import annotations

import argparse
import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from hvpopt._version import __version__

#: Libraries that hvpopt needs, and those that it can use.
LIBRARIES = ("torch", "deepwave", "scipy", "numpy", "tqdm", "safetensors")
OPTIONAL = ("matplotlib", "segyio", "pylops")


def report() -> dict[str, str]:
    """Return what a report of a bug needs, a text for each name."""
    return {
        "hvpopt": __version__,
        **{name: _version(name) for name in (*LIBRARIES, *OPTIONAL)},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": ", ".join(_devices()),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores, "
        f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')}",
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _devices() -> list[str]:
    """Return the devices of torch, graphics processors with their name and memory."""
    found = ["cpu"]
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        found.append(f"cuda:{index} ({gpu.name}, {gpu.total_memory / 2**30:.0f} GiB)")
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def main() -> None:
    """Print the report, a line for each name."""
    argparse.ArgumentParser(prog="python -m hvpopt", description=__doc__).parse_args()
    for name, text in report().items():
        print(f"{name:12} {text}")


if __name__ == "__main__":
    main()
