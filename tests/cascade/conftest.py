"""A tiny cascade with random weights, and an empty folder to work in."""

import pytest
import torch
from diffusers import DDIMScheduler

from cascade import BasePipeline, CascadePipeline, SR3Pipeline
from cascade.stages.unet import UNet

CLASSES = ["cat", "hot dog", "Crêpe"]
NETWORK = {
    "num_classes": 3, "channels": [8, 8], "blocks": [1, 1], "attention_sizes": [], "head_channels": 8, "layout": "efficient",
    "norm": "pixel",
}  # fmt: skip


def network(**options):
    """A network whose output depends on all of its inputs, as that of a new one does not."""
    unet = UNet(**NETWORK, **options)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return unet


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    base = BasePipeline(network(sample_size=8), DDIMScheduler(), num_inference_steps=2)
    refine = SR3Pipeline(network(sample_size=16, low_res_size=8, aug_level=True), DDIMScheduler(), num_inference_steps=2)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    CascadePipeline({"base": base, "sr16": refine}, classes=CLASSES, name="tiny").save_pretrained(folder)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder
