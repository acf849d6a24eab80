"""Before any test imports diffusers: `import cascade` makes PyPI's torchvision importable beside a CPU torch."""

from importlib import import_module

import_module("cascade")
