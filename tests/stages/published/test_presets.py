"""The presets say what the families' records say, and their sums are right."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cascade.costs import operation_counter
from cascade.models import SHIPPED
from cascade.stages.published.families import known
from cascade.stages.sampling import Run
from cascade.stages.saved import read_json
from cascade.stages.tiling import tile_starts
from cascade.stages.unet import UNet

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
def test_preset_states_sizes_of_pictures_and_files(path: Path) -> None:
    for entry in files(read(path)):
        found = known(entry["file"])
        assert found is not None
        family, checkpoint = found
        if "size" in entry and family.denoiser is not None:
            with torch.device("meta"):
                assert family.denoiser(published=family.kept(checkpoint.config)).config.sample_size == entry["size"]
        if "megabytes" in entry:  # EDM2's snapshots are float16, the others float32
            expected = checkpoint.parameters * (2 if family.name == "edm2" else 4) / 1e6
            assert entry["megabytes"] == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_preset_sums_up(path: Path) -> None:
    preset, total, count = read(path), 0.0, 0
    for stage in preset["stages"].values():
        found, guide = known(stage["file"]), stage.get("guide")
        assert found is not None and found[0].sampler is not None and found[0].denoiser is not None
        scheduler, settings = found[0].sampler(found[1].config)
        run = Run.of(scheduler, stage["num_inference_steps"])
        evaluations = len(run.image)
        if guide is None and found[0].name == "jit":  # the only one with classifier-free guidance
            low, high = settings["guidance_interval"]
            evaluations += sum(low <= sigma <= high for sigma in torch.exp(-run.log_snr / 2).tolist())
        assert stage["nfe"] == (evaluations if guide is None else 2 * evaluations)
        count += stage["nfe"]
        total += evaluations * (stage["gmac_per_evaluation"] + (guide["gmac_per_evaluation"] if guide else 0))
    for name, model in preset.get("behind", {}).items():
        tiles, gmac = tiles_of(model, name)
        count, total = count + tiles, total + tiles * gmac
    assert preset["nfe"] == count
    assert preset["tmac_per_image"] == pytest.approx(total / 1000, rel=0.01, abs=0.001)


def tiles_of(model: str, name: str) -> tuple[int, float]:
    """Tiles of a shipped stage, which makes its picture in a step, and 10^9 multiply-adds of each."""
    config, index = (read_json(SHIPPED[model] / name / file) for file in ("unet/config.json", "model_index.json"))
    side, tile = config["sample_size"], index["tile_size"]
    with torch.device("meta"):
        network, images = UNet.from_config(config), [torch.empty(1, 3, tile, tile), torch.empty(1, 3, tile // 4, tile // 4)]
        one, label = torch.empty(1), torch.empty(1, dtype=torch.long)
        with operation_counter() as counter, torch.no_grad():
            network(images[0], one, label, images[1], one)
    assert index["num_inference_steps"] == 1
    return len(tile_starts(side, tile, 4)) ** 2, counter.get_total_flops() / 2e9


STATED = {entry["file"]: entry for path in PRESETS for entry in files(read(path))}
BY_COST = [
    pytest.param(file, marks=pytest.mark.slow if entry["gmac_per_evaluation"] > 700 else ())  # seconds, of modules alone
    for file, entry in STATED.items()
]


@pytest.mark.parametrize("file", BY_COST)
def test_multiply_adds_are_those_that_torch_counts(file: str) -> None:
    """Of a classifier, with its gradient."""
    found, entry = known(file), STATED[file]
    assert found is not None
    family, checkpoint = found
    guides, refines = family.classifier is not None, "upsampler" in file
    size = entry.get("size", 256 if file.startswith("256") else 64)
    with torch.device("meta"):
        network, one, label = family.build(checkpoint.config), torch.empty(1), torch.empty(1, dtype=torch.long)
        x = torch.empty(1, 3, size, size, requires_grad=guides) * 1
        clock = (one,) * (4 if family.name == "pmf" else 1)
        small = (torch.empty(1, 3, 64, 64),) * refines
        with operation_counter() as counter, torch.set_grad_enabled(guides):
            output = network(x, *clock, *small, *(() if guides else (label,)))
            if guides:
                torch.autograd.grad(output.sum(), x)
    assert counter.get_total_flops() / 2e9 == pytest.approx(entry["gmac_per_evaluation"], abs=0.06)
