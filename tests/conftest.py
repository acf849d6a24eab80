"""Before any test imports torch: processes that share the tests (`pytest -n 2`) take one core each.

And before any imports diffusers: `import cascade` makes PyPI's torchvision importable beside a CPU torch.
"""

import os
from importlib import import_module

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import_module("cascade")
