"""torchvision whose operators can't be loaded: importable after `import cascade`, by whoever imports it first."""

import importlib.metadata
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


def test_it_is_imported_once_and_stays(tmp_path):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(BROKEN)
    head = f"import sys, torch; torch.version.cuda = None; sys.path.insert(0, {str(tmp_path)!r})\n"
    body = "import torchvision; assert torchvision is sys.modules['torchvision']; torch.ops.torchvision.nms\n"
    without = run(head + body)
    assert without.returncode and "torchvision::nms does not exist" in without.stderr, "else there is nothing to mend"
    (package / "_C.so").write_text("built for another torch")
    asked = "import importlib.util; assert importlib.util.find_spec('torchvision') is not None\n"
    for before in ("import cascade\n", "import cascade\n" + asked):
        mended = run(head + before + body)
        assert mended.returncode == 0, mended.stderr
        (package / "_C.so").unlink(missing_ok=True)


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
