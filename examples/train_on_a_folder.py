"""Train two stages on a folder of pictures, one folder inside for each class, and compose them.

    python examples/train_on_a_folder.py PICTURES OUT [IMAGES]

IMAGES is the length of each training run in images seen; a base that draws well needs some hundreds of thousands. The same line
goes on with a run that was stopped.
"""

import sys
from pathlib import Path

from cascade import compose, load_recipe, train_stage


def main(pictures: str, out: Path, images: int) -> None:
    data = {"data.source": pictures, "checkpoint_every": images, "samples": {"every": images, "count": 4, "steps": 8}}
    base = load_recipe("emoji/base64", data | {"phases": [{"size": 32, "images": images, "batch_size": 16}]})
    sr256 = load_recipe("emoji/sr256", data | {"phases": [{"size": 64, "images": images, "batch_size": 16}]})
    stages = [train_stage(recipe, run=out / name).folder for name, recipe in (("base", base), ("sr256", sr256))]
    compose(*stages, name="mine").save_pretrained(out / "model")
    print(f"generate --model {out / 'model'} --class ...")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 200_000)
