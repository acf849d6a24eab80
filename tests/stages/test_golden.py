"""Stages that version 0.1 saved hold the same weights and compute the same numbers: no constant of the file format drifts."""

import numpy as np
import pytest
import torch
from golden import STORED, TINY, inputs
from safetensors.torch import load_file

from cascade.stages.saved import load_stage


@pytest.mark.parametrize("name, pace", [("base", 1), ("sr32", 2)])
def test_a_stage_of_version_0_1_is_what_it_was(name, pace):
    """Outputs of every `pace`-th row and column; float32 sums differ in their last bits from machine to machine."""
    network = load_stage(TINY / name).unet
    on_disk = load_file(TINY / name / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(value, on_disk.pop(key)) for key, value in network.state_dict().items()) and not on_disk
    with torch.no_grad():
        made = network(*inputs(network.config.sample_size, network.config.low_res_size))
    want = torch.from_numpy(np.load(STORED)[name])
    torch.testing.assert_close(made[..., ::pace, ::pace], want, rtol=1e-5, atol=1e-5 * want.abs().max().item())
