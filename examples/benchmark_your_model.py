"""Measure a model of yours against real pictures: sample, score, and look for fewer steps.

    python examples/benchmark_your_model.py MODEL REAL_PICTURES OUT [SAMPLES]

REAL_PICTURES, as large as what the base makes, is a folder, an .npz, drawings:train or drawings:heldout. The distance is
EfficientNet-Lite's, which needs no download; it is not FID.
"""

import sys
from pathlib import Path

from cascade import CascadePipeline, evaluate, sample_run, search_schedule


def main(model: str, real: str, out: Path, samples: int) -> None:
    cascade = CascadePipeline.from_pretrained(model)
    size = cascade.sizes["base"]
    run = sample_run(cascade, out / "samples", num_images=samples, size=size)
    scores = evaluate(run.folder, real, size=size)
    print({name: str(value) for name, value in scores.values().items()})
    search = search_schedule(cascade, out / "search", stage="base", steps=(2, 4), num_images=samples, reference=real)
    print(search.chosen)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) > 4 else 100)
