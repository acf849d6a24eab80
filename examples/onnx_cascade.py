"""A whole cascade with numpy and onnxruntime, without torch: `python examples/onnx_cascade.py EXPORTED cat OUT.png [SEED]`.

EXPORTED is what `cascade export MODEL --format onnx --out EXPORTED` wrote. Its stages predict "sample"; they are sampled by the
ancestral steps of DDPM (arXiv:2006.11239, Eq. 6 and 7), and guided without a classifier. The noise is numpy's own, so a seed is
another picture than `generate` makes.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image


def prediction(sessions, stage, x, log_snr, label, low_res):
    """x0 of one noisy image; where it is guided, label and null label go through the network as one batch."""
    guided = stage["guidance_scale"] not in (None, 1.0)
    labels = [label, stage["null_label"]] if guided else [label]
    given = {"x_t": x, "log_snr": np.float32([log_snr]), "low_res": low_res, "aug_level": np.float32([stage["aug_level"] or 0])}
    given = {name: np.repeat(value, len(labels), 0) for name, value in given.items() if value is not None}
    coarse = stage["coarse_below"] is not None and log_snr < stage["coarse_below"]
    session = sessions[stage["coarse_file" if coarse else "file"]]
    given = {one.name: (given | {"class_labels": np.int64(labels)})[one.name] for one in session.get_inputs()}
    made = session.run(None, given)[0]
    return made[1:] + stage["guidance_scale"] * (made[:1] - made[1:]) if guided else made


def main(folder: Path, name: str, out: Path, seed: int = 0) -> None:
    record = json.loads((folder / "cascade.onnx.json").read_text("utf-8"))
    sessions = {path.name: onnxruntime.InferenceSession(str(path)) for path in folder.glob("*.onnx")}
    label, noise, picture = record["classes"].index(name), np.random.default_rng(seed), None
    for stage in record["stages"]:
        assert stage["prediction_type"] == "sample"
        shape, low_res = (1, 3, stage["size"], stage["size"]), None
        if picture is not None:  # the stage before made it; a little noise hides its flaws
            angle = math.pi / 2 * (stage["aug_level"] or 0)
            low_res = np.float32(math.cos(angle) * picture + math.sin(angle) * noise.standard_normal(picture.shape))
        x, levels = noise.standard_normal(shape, dtype=np.float32), [*stage["log_snr"], math.inf]
        for now, then in zip(levels, levels[1:], strict=False):
            x0 = prediction(sessions, stage, x, now, label, low_res).clip(-1, 1)
            a, b = 1 / (1 + math.exp(-now)), 1 / (1 + math.exp(-then))  # alpha_bar before and after the step
            beta = 1 - a / b
            mean = math.sqrt(b) * beta / (1 - a) * x0 + math.sqrt(a / b) * (1 - b) / (1 - a) * x
            x = np.float32(mean + math.sqrt((1 - b) / (1 - a) * beta) * noise.standard_normal(shape))
        picture = x
    Image.fromarray(np.uint8((picture[0].transpose(1, 2, 0) / 2 + 0.5).clip(0, 1) * 255 + 0.5)).save(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), *map(int, sys.argv[4:]))
