"""Networks as ONNX: they compute what torch does at any batch, and the example runs a whole cascade of them without torch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from tiny import cascade, network

from cascade import BasePipeline, CascadePipeline, SR3Pipeline
from cascade.cli.main import main
from cascade.stages.noise import MAX_LOG_SNR
from cascade.stages.sampling import Run

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

EXAMPLE = Path(__file__).parents[2] / "examples" / "onnx_cascade.py"
WITHOUT_TORCH = "import runpy, sys; sys.modules['torch'] = None; runpy.run_path(sys.argv[0], run_name='__main__')"


@pytest.fixture(scope="module")
def predicts_images():
    """A base whose noisy images are denoised at half their size, and a refining stage."""
    settings = {"prediction_type": "sample", "layout": "efficient", "norm": "pixel"}
    base = network(sample_size=16, coarse_below=0.0, patch_size=2, **settings)
    refine = network(sample_size=32, low_res_size=16, aug_level=True, seed=1, low_res_skip=True, patch_size=4, **settings)
    steps = DDPMScheduler(prediction_type="sample")
    stages = {"base": BasePipeline(base, steps, num_inference_steps=4, guidance_scale=2.0)}
    stages["sr32"] = SR3Pipeline(refine, steps, num_inference_steps=2, aug_level=0.1)
    return CascadePipeline(stages, ["cat", "dog", "fruit"], name="tiny")


def test_a_model_becomes_onnx_that_computes_the_same_and_runs_without_torch(predicts_images, tmp_path, capsys):
    predicts_images.save_pretrained(tmp_path / "model")
    out = tmp_path / "onnx"
    assert main(["export", str(tmp_path / "model"), "--format", "onnx", "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    record = json.loads((out / "cascade.onnx.json").read_text("utf-8"))
    assert {path.name for path in out.iterdir()} == {"base.onnx", "base-coarse.onnx", "sr32.onnx", "cascade.onnx.json"}

    base = predicts_images.stages["base"]
    said = record["stages"][0]
    assert said["log_snr"] == pytest.approx(Run.of(base.scheduler, 4).log_snr.tolist(), abs=1e-5) and said["guidance_scale"] == 2
    x, labels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([2, 0, 3])
    for level in (-MAX_LOG_SNR, said["log_snr"][0], said["log_snr"][-1]):
        file = said["coarse_file" if level < said["coarse_below"] else "file"]
        given = {"x_t": x, "log_snr": torch.full((3,), level), "class_labels": labels}
        with torch.no_grad():
            want = base.unet(*given.values())
        session = onnxruntime.InferenceSession(str(out / file))
        assert [one.shape[0] for one in session.get_inputs()] == ["batch"] * 3
        (got,) = session.run(None, {name: value.numpy() for name, value in given.items()})
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-3, atol=1e-4)

    words = [sys.executable, "-c", f"import sys; sys.argv[:1] = [{str(EXAMPLE)!r}]; {WITHOUT_TORCH}"]
    made = subprocess.run([*words, str(out), "cat", str(tmp_path / "cat.png")], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert Image.open(tmp_path / "cat.png").size == (32, 32) and not made.stderr

    (out / "sr32.onnx").unlink()
    assert main(["export", str(tmp_path / "model"), "--size", "16", "--out", str(out)]) == 0  # an export is replaced
    assert not (out / "sr32.onnx").exists()
    assert main(["export", str(tmp_path / "model"), "--out", str(tmp_path)]) == 2  # anything else is not
    assert "is not an export" in capsys.readouterr().err


def test_what_cannot_be_exported_is_said_before_anything_is_written(tmp_path, capsys):
    from cascade.onnx_export import export_onnx

    with pytest.raises(ValueError, match="float32 on the CPU"):
        export_onnx(cascade().to(torch.bfloat16), tmp_path / "out")
    assert not list(tmp_path.iterdir())
