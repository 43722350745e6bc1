"""What every benchmark records about where it ran."""

import deepwave
import pytest
import torch


@pytest.fixture(autouse=True)
def environment(benchmark):
    benchmark.extra_info["environment"] = {
        "torch": torch.__version__,
        "deepwave": deepwave.__version__,
        "threads": torch.get_num_threads(),
    }
