"""The presets say what the families' records say, and their sums are right."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from cascade.stages.published.families import known
from cascade.stages.sampling import nfe

PRESETS = sorted((Path(__file__).parents[3] / "configs" / "presets").glob("*.yaml"))


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def files(preset: dict[str, Any]) -> list[dict[str, Any]]:
    stages = list(preset["stages"].values())
    return stages + [stage["guide"] for stage in stages if "guide" in stage]


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_preset_agrees_with_the_records(path: Path) -> None:
    preset = read(path)
    assert preset["name"] == path.stem
    for entry in files(preset):
        found = known(entry["file"])
        assert found is not None
        family, checkpoint = found
        assert family.denoiser is not None or family.classifier is not None
        expected = (family.name, checkpoint.url, family.licence)
        assert (entry["family"], entry["published"], entry["licence"]) == expected


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_preset_sums_up(path: Path) -> None:
    preset, total = read(path), 0.0
    for stage in preset["stages"].values():
        found, guide = known(stage["file"]), stage.get("guide")
        assert found is not None and found[0].sampler is not None
        evaluations = nfe(found[0].sampler(found[1].config)[0], stage["num_inference_steps"])
        assert stage["nfe"] == (evaluations if guide is None else 2 * evaluations)
        total += evaluations * (stage["gmac_per_evaluation"] + (guide["gmac_per_evaluation"] if guide else 0))
    assert preset["nfe"] == sum(stage["nfe"] for stage in preset["stages"].values())
    assert preset["tmac_per_image"] == pytest.approx(total / 1000, abs=0.06)


def test_multiply_adds_are_those_that_torch_counts() -> None:
    stated = {entry["file"]: entry for path in PRESETS for entry in files(read(path))}
    for file, entry in stated.items():
        found = known(file)
        assert found is not None
        family, checkpoint = found
        size = 256 if "upsampler" in file else 64
        with torch.device("meta"):
            network = family.build(checkpoint.config)
            given = {"x": torch.empty(1, 3, size, size)}
            clock = "sigma" if family.name in ("consistency", "edm", "edm2") else "timesteps"
            given |= {clock: torch.empty(1)}
            given |= {"class_labels": torch.empty(1, 1000)} if family.name == "edm2" else {"y": torch.empty(1, dtype=torch.long)}
            given |= {"low_res": torch.empty(1, 3, 64, 64)} if size == 256 else {}
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                network(**given)
        assert counter.get_total_flops() / 2e9 == pytest.approx(entry["gmac_per_evaluation"], abs=0.06)
