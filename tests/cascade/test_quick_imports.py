"""What `generate` imports before its first picture, and that what it puts off is there for whoever needs it."""

import json
import subprocess
import sys

LIBRARIES = {
    "PIL", "accelerate", "cascade", "diffusers", "filelock", "huggingface_hub", "numpy", "packaging", "safetensors", "torch",
    "torchgen", "tqdm", "typing_extensions", "yaml",
}  # fmt: skip
HTTP = {
    "_brotli", "anyio", "brotli", "certifi", "charset_normalizer", "chardet", "h11", "httpcore", "httpcore2", "httpx", "httpx2",
    "idna", "requests", "sniffio", "truststore", "urllib3", "zstandard",
}  # fmt: skip
"""Of huggingface_hub, which chooses among them by what is installed."""
DIFFUSERS = {
    "__init__", "callbacks", "configuration_utils", "dependency_versions_check", "dependency_versions_table", "image_processor",
    "models._modeling_parallel", "models.activations", "models.attention", "models.attention_processor", "models.embeddings",
    "models.model_loading_utils", "models.modeling_outputs", "models.modeling_utils", "models.normalization",
    "pipelines.pipeline_loading_utils", "pipelines.pipeline_utils", "schedulers.scheduling_ddim", "schedulers.scheduling_ddpm",
    "schedulers.scheduling_utils", "video_processor",
}  # fmt: skip
"""Its modules, beside those of `utils` and `quantizers`."""

MADE = """
import json, sys
from cascade.cli.generate import main
assert main(["--class", "cat", "--model", sys.argv[1]]) == 0
files = {name: getattr(module, "__file__", None) or "" for name, module in sys.modules.items() if name != "__main__"}
print(json.dumps(files))
"""
NEEDED = """
import sys
from cascade.cli.quick_imports import import_diffusers
import_diffusers()
import torch
from diffusers import DPMSolverMultistepScheduler
from diffusers.pipelines import pipeline_utils

steps = DPMSolverMultistepScheduler(use_beta_sigmas=True)
steps.set_timesteps(3)
assert steps.sigmas[0] > steps.sigmas[1] > steps.sigmas[2] > 0, steps.sigmas
assert "torch._dynamo.eval_frame" not in sys.modules

from diffusers import AutoencoderKL
autoencoder = AutoencoderKL(block_out_channels=(8,), norm_num_groups=8)
assert isinstance(autoencoder, pipeline_utils.AutoencoderKL) and not isinstance(steps, pipeline_utils.AutoencoderKL)
autoencoder.enable_group_offload(torch.device("cpu"), torch.device("cpu"), "leaf_level")
from diffusers.hooks.group_offloading import _is_group_offload_enabled
assert _is_group_offload_enabled(autoencoder)

doubled = torch.compile(lambda x: 2 * x, backend="eager")
assert doubled(torch.ones(1)) == 2
from torch._dynamo.eval_frame import OptimizedModule
assert isinstance(torch.compile(torch.nn.SiLU()), OptimizedModule) and torch._dynamo is sys.modules["torch._dynamo"]
"""


def test_generate_imports_these_libraries_before_its_first_picture_and_no_others(model, here):
    made = subprocess.run([sys.executable, "-c", MADE, str(model)], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    files = json.loads(made.stdout.splitlines()[-1])
    installed = {name.partition(".")[0] for name, path in files.items() if "site-packages" in path and not path.endswith(".so")}
    assert installed - LIBRARIES - HTTP <= {"_distutils_hack", "dill", "google"}  # of .pth files, or what torch takes where it is
    parts = {name.removeprefix("diffusers.") for name in files if name.startswith("diffusers.")}
    own = {name for name in parts if name.partition(".")[0] not in ("utils", "quantizers")}
    assert own - {"hooks.group_offloading", "models", "pipelines", "schedulers"} <= DIFFUSERS
    put_off = ("torch._dynamo.", "torch._inductor", "scipy.", "sympy")
    assert not {name for name, path in files.items() if path and name.startswith(put_off)}


def test_what_is_put_off_is_imported_when_it_is_needed():
    needed = subprocess.run([sys.executable, "-c", NEEDED], capture_output=True, text=True)
    assert needed.returncode == 0, needed.stderr
