"""Compose a cascade in memory: a base of your own before a stage of the shipped model, then save and load it.

    python examples/compose_stages.py OUT

Here the base is a DDPMPipeline of diffusers with random weights, so it paints noise; put yours in its place.
"""

import sys
from pathlib import Path

from cascade import CascadePipeline, StageSampling
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel


def main(out: Path) -> None:
    shipped = CascadePipeline.from_pretrained("emoji", size=256)
    unet = UNet2DModel(sample_size=64, block_out_channels=(32, 32, 32, 32), layers_per_block=1, attention_head_dim=8)
    mine = CascadePipeline({"base": DDPMPipeline(unet, DDPMScheduler()), "sr256": shipped.stages["sr256"]}, shipped.classes)
    sampling = {"base": StageSampling(num_inference_steps=2), "sr256": StageSampling(aug_level=0.1)}
    made = mine(class_labels=["cat", "dog"], seeds=[0, 1], sampling=sampling)
    for name, image in zip(("cat", "dog"), made.images, strict=True):
        image.save(out / f"{name}.png")
    mine.save_pretrained(out / "model")
    print(CascadePipeline.from_pretrained(out / "model"))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    main(folder)
