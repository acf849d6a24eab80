"""How far a model's pictures in mixed precision are from those in float32, stage by stage on the same inputs, and how fast.

    python benchmarks/mixed_precision.py              # the shipped model
    python benchmarks/mixed_precision.py MODEL --write

The mean difference of a stage, of 255, is what `bfloat16_difference` in its model_index.json says; --write puts it there. A stage
that says at most 1 runs in mixed precision by default, on CPUs that multiply bfloat16 in hardware.
"""

import argparse
import json
import time

import torch
from cascade import CascadePipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="emoji")
    parser.add_argument("--images", type=int, default=8, help="per stage, of classes spread evenly over the model's (default 8)")
    parser.add_argument("--write", action="store_true", help="write the differences into the model")
    args = parser.parse_args()
    cascade = CascadePipeline.from_pretrained(args.model)
    cascade.set_progress_bar_config(disable=True)
    classes = cascade.num_classes
    labels = None if classes is None else [i * classes // args.images for i in range(args.images)]
    before = None
    print("stage, px: mean of 255 (of the picture that differs most), largest; seconds per picture in float32 and mixed")
    for name, size in cascade.sizes.items():
        made, seconds = {}, {}
        for mixed in (False, True):
            cascade.stages[name].mixed_precision = mixed
            for count in (1, args.images):  # the first lays the weights out
                given = {"seeds": range(count), "output_type": "pt", "size": size}
                mine = None if labels is None else labels[:count]
                begun = time.perf_counter()
                if before is None:
                    out = cascade(mine, num_images_per_class=count if mine is None else 1, **given)
                else:
                    out = cascade.upscale(before[:count], mine, stage=name, **given)
                seconds[mixed] = (time.perf_counter() - begun) / count
            made[mixed] = out.images
        before = made[False]
        apart = (bytes_of(made[True]) - bytes_of(before)).abs().flatten(1)
        mean = apart.mean().item()
        spread = f"{mean:.3f} ({apart.mean(1).max():.3f}), {apart.max():.0f}"
        print(f"{name}, {size} px: {spread}; {seconds[False]:.2f} s and {seconds[True]:.2f} s", flush=True)
        if args.write:
            path = cascade.folder / name / "model_index.json"
            text = json.dumps(json.loads(path.read_text("utf-8")) | {"bfloat16_difference": round(mean, 3)}, indent=2)
            path.write_text(text + "\n", "utf-8")


def bytes_of(images: torch.Tensor) -> torch.Tensor:
    """Images in [-1, 1] as a PNG holds them, 0 to 255."""
    return (images / 2 + 0.5).clamp(0, 1).mul(255).round()


if __name__ == "__main__":
    main()
