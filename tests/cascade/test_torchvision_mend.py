"""torchvision whose operators can't be loaded: importable after `import cascade`, by whoever imports it first."""

import importlib.metadata
import os
import subprocess
import sys

import pytest

BROKEN = """
import torch
for name in ("nms", "qnms"):
    torch.library.register_fake(f"torchvision::{name}")(lambda *_: None)
"""


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


EACH = """
import os, sys, torch
torch.version.cuda = None
sys.path.insert(0, sys.argv[1])
for code in sys.argv[2:]:
    if os.fork() == 0:
        exec(code)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
    if os.path.exists(built := sys.argv[1] + "/torchvision/_C.so"):
        os.remove(built)
"""
"""Runs programs that each begin where torch has been imported, and nothing else; the file is there for the first."""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes can't be forked here")
def test_it_is_imported_once_and_stays(tmp_path):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(BROKEN)
    (package / "_C.so").write_text("built for another torch")
    body = "import torchvision; assert torchvision is sys.modules['torchvision']; torch.ops.torchvision.nms\n"
    asked = "import importlib.util; assert importlib.util.find_spec('torchvision') is not None\n"
    codes = ["import cascade\n" + body, "import cascade\n" + asked + body, body]
    done = subprocess.run([sys.executable, "-c", EACH, tmp_path, *codes], capture_output=True, text=True)
    assert done.stdout == "0\n0\n1\n", done.stderr
    assert "torchvision::nms does not exist" in done.stderr, "else there is nothing to mend"


def test_it_costs_no_import_of_torch_and_stands_in_no_ones_way():
    done = run(
        "import cascade, sys, importlib.util\nassert 'torch' not in sys.modules\n"
        "sys.path.clear(); assert importlib.util.find_spec('torchvision') is None and 'torch' not in sys.modules"
    )
    assert done.returncode == 0, done.stderr


def test_the_installed_one_works_beside_this_torch():
    try:
        importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("torchvision is not installed")
    code = "import cascade, diffusers.training_utils, torchvision.models\ntorchvision.models.resnet18(weights=None)"
    done = run(code)
    assert done.returncode == 0, done.stderr
