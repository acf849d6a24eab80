"""Cascades small enough for tests, with random weights that make pictures."""

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from cascade import BasePipeline, CascadePipeline, SR3Pipeline
from cascade.stages.unet import UNet

SMALL = {"channels": (8, 16), "blocks": (1, 1), "attention_sizes": (), "head_channels": 8}
CLASSES = ["cat", "dog", "fruit"]


def network(sample_size=8, num_classes=3, seed=0, **config):
    """A small network whose output is not zero, as it would be before training."""
    torch.manual_seed(seed)
    unet = UNet(sample_size=sample_size, num_classes=num_classes, **(SMALL | config)).eval()
    for parameter in unet.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return unet


def base(**config):
    return BasePipeline(network(**config), DDPMScheduler(prediction_type="v_prediction"), num_inference_steps=3)


def sr3(size=16, low_res_size=8, **config):
    config = {"aug_level": True, "seed": size, "sample_size": size, "low_res_size": low_res_size} | config
    return SR3Pipeline(network(**config), DDPMScheduler(prediction_type="v_prediction"), num_inference_steps=2, aug_level=0.1)


def cascade(classes=CLASSES, **given):
    """Stages base (8 px), sr16 and sr32, quiet."""
    stages = given or {"base": base(), "sr16": sr3(), "sr32": sr3(32, 16)}
    made = CascadePipeline(stages, classes, name="tiny", card="# Tiny\n\nMakes noise.\n")
    made.set_progress_bar_config(disable=True)
    return made


def foreign(size=8):
    """A pipeline of diffusers that knows no classes."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=size,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
    )
    return DDPMPipeline(unet, DDPMScheduler())
