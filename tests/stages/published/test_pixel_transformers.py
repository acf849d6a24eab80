"""JiT and pMF: networks, whole sampling runs and files against what their authors' code computed and wrote."""

import argparse
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMapEulerDiscreteScheduler
from references import ROOT, arrays, config_of, network_of, relative_error, stage_of, weights_of
from safetensors.torch import load_file, save_file
from test_safety import Hostile
from torch import Tensor, nn

from cascade.cli.main import main
from cascade.stages import published
from cascade.stages.base import BasePipeline
from cascade.stages.denoiser import ClassifierFreeGuidance
from cascade.stages.noise import log_snr_of_alpha_bar
from cascade.stages.published import families
from cascade.stages.published.loading import _told_by_shapes
from cascade.stages.published.pixel_transformer import rotation
from cascade.stages.sampling import Run, sample

CHECKPOINT = ROOT / "jit" / "checkpoint-last.pth"
TRANSFORMERS = ("jit", "pmf")


def log_snr_of(time: Tensor, noise_scale: float) -> Tensor:
    """Of `(1 - time) x0 + time noise_scale eps`, float64."""
    return log_snr_of_alpha_bar((1 - time.double()) ** 2 / ((1 - time.double()) ** 2 + (noise_scale * time.double()) ** 2))


def preserving(z: Tensor, time: Tensor, noise_scale: float) -> Tensor:
    return z / torch.hypot(1 - time, noise_scale * time).view(-1, 1, 1, 1)


def published_sizes(family: str) -> dict[str, Any]:
    return json.loads((ROOT / family / "published.json").read_text())


def file_name(family: str, name: str) -> str:
    return f"{name}.pt" if family == "pmf" else f"{name.replace('/', '-')}.pth"


def names_in_files(family: str, network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes under which the authors store a network."""
    kinds = {nn.Linear: "._flax_linear", nn.Embedding: "._flax_embedding"} if family == "pmf" else {}
    wrapped = {path: kinds.get(type(module), "") for path, module in network.named_modules()}
    names = {}
    for key, value in network.state_dict().items():
        path, _, last = key.rpartition(".")
        names[".".join(["net", *([path + wrapped[path]] if path else []), last])] = tuple(value.shape)
    return names


@pytest.mark.parametrize(("family", "name"), [(family, name) for family in TRANSFORMERS for name in published_sizes(family)])
def test_published_sizes_have_exactly_the_tensors_of_the_authors(family: str, name: str) -> None:
    expected, record = published_sizes(family)[name], families.family_of(family)
    checkpoint = record.known(file_name(family, name))
    assert checkpoint is not None and checkpoint.parameters == expected["parameter_count"]
    with torch.device("meta"):
        network = record.build(checkpoint.config)
    names = names_in_files(family, network)
    if family == "pmf":
        options = checkpoint.config["init_kwargs"]
        names["net.rope_freqs"] = (256, options["hidden_size"] // options["num_heads"] // 2)
    lines = "".join(f"{key} {'x'.join(map(str, shape))}\n" for key, shape in sorted(names.items()))
    assert hashlib.sha256(lines.encode()).hexdigest() == expected["tensor_list_sha256"]
    guidance = "omega" if family == "pmf" else "cfg"
    for key in ("noise_scale", "interval", guidance):
        assert checkpoint.config[key] == expected[key]
    assert record.sampler is not None
    assert record.sampler(checkpoint.config)[1]["guidance_scale"] == expected[guidance]


def test_rotations_are_those_of_the_authors() -> None:
    table = torch.complex(*rotation(8, 0, 20, torch.device("cpu")))
    torch.testing.assert_close(table, arrays("pmf")["rope_freqs"], rtol=0, atol=1e-6)
    io = arrays("jit")
    for got, name in zip(rotation(8, 5, 16, torch.device("cpu")), ("rope_cos", "rope_sin"), strict=True):
        torch.testing.assert_close(got.repeat_interleave(2, dim=1), io[name], rtol=0, atol=1e-6)


def test_positions_stored_by_jit_are_sines_and_cosines_of_column_then_row() -> None:
    angles = torch.arange(8.0)[:, None] * 10000.0 ** (-torch.arange(8.0) / 8)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns, rows = waves[None].expand(8, 8, 16), waves[:, None].expand(8, 8, 16)
    got = network_of("jit").pos_embed[0]
    torch.testing.assert_close(got, torch.cat([columns, rows], dim=2).reshape(64, 32), rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", range(3))
def test_pmf_velocity_is_that_of_the_authors(case: int) -> None:
    """u = (z - image) / max(t, 0.05), also where t is below 0.05: the denoiser's image is the one towards which u leads."""
    io, denoiser = {name: values[case] for name, values in arrays("pmf").items()}, stage_of("pmf").unet
    t, scale = io["t"], denoiser.noise_scale
    for row in range(2):
        one = slice(row, row + 1)
        omega, bounds = float(io["w"][row]), [float(io[name][row]) for name in ("t_min", "t_max")]
        interval = tuple(scale * bound / (1 - bound) if bound < 1 else float("inf") for bound in bounds)
        end = log_snr_of(t[one] - io["h"][one], scale)
        x_t = preserving(io["x"][one], t[one], scale)
        toward = denoiser(x_t, log_snr_of(t[one], scale), io["y"][one], None, None, end, omega, interval)
        u = (io["x"][one] - toward) / t[one].view(-1, 1, 1, 1)
        assert relative_error(u, io["u"][one]) < 1e-5


@pytest.mark.parametrize("run", ["one", "one_other", "two", "four"])
def test_pmf_ends_where_the_authors_do(run: str) -> None:
    pipeline, io, scale = stage_of("pmf"), arrays("pmf", "sampling"), 2.0
    interval = [scale * float(io[f"{run}_{bound}"]) / (1 - float(io[f"{run}_{bound}"])) for bound in ("t_min", "t_max")]
    steps = int(io[f"{run}_num_steps"])
    noise = [torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in (0, 42)]
    assert torch.equal(torch.stack(noise), io["noise"]) and pipeline.scheduler.config.shift == scale
    settings = {"guidance_scale": float(io[f"{run}_omega"]), "guidance_interval": interval, "num_inference_steps": steps}
    images = pipeline(io["labels"], latents=io["noise"], output_type="pt", **settings).images
    assert relative_error(images, io[f"{run}_sample"].clamp(-1, 1)) < 5e-5
    guided = pipeline.guided(settings["guidance_scale"], interval)
    states: dict[int, Tensor] = {}
    kept = {"class_labels": io["labels"], "callback": lambda i, t, x: states.update({i: x})}
    end = sample(guided, pipeline.scheduler, io["noise"], steps, **kept)
    assert relative_error(end, io[f"{run}_sample"]) < 5e-5
    if run == "one":
        levels = ((end.clamp(-1, 1) + 1) / 2 * 255).round().permute(0, 2, 3, 1).numpy()
        assert (levels == io["one_uint8"].numpy()).mean() > 0.999
    if run == "four":  # the scheduler keeps noise of unit amplitude: z / (1 - t + scale t)
        assert relative_error(states[1] * (0.5 + 0.5 * scale), io["four_x_after_step_2"]) < 5e-5


def test_pmf_pictures_come_from_one_evaluation_and_guidance_is_an_input() -> None:
    pipeline = stage_of("pmf")
    calls: list[int] = []
    watch = pipeline.unet.register_forward_hook(lambda module, args, output: calls.append(len(output)))
    try:
        plain, guided, narrow = (
            pipeline([3], output_type="pt", generator=torch.Generator().manual_seed(1), **settings).images
            for settings in ({}, {"guidance_scale": 4.0}, {"guidance_scale": 4.0, "guidance_interval": (0.1, 1.0)})
        )
    finally:
        watch.remove()
    assert calls == [1, 1, 1]
    assert not torch.equal(plain, guided) and not torch.equal(guided, narrow)
    with pytest.raises(ValueError, match="expected more than 0"):
        pipeline([3], guidance_scale=0.0)
    with pytest.raises(ValueError, match="sees its guidance as an input"):
        BasePipeline(pipeline.unet, pipeline.scheduler, guide_unet=stage_of("edm").unet).guided(2.0, None)


def test_jit_is_guided_as_the_authors_do() -> None:
    """v = (image - z) / max(1 - t, 0.05), guided where t is in the range; images of a case have times of their own."""
    io, denoiser = arrays("jit"), stage_of("jit").unet
    low, high = io["cfg_interval"].tolist()
    for case in range(3):
        for row in range(2):
            z, time, y = io["x"][case, row : row + 1], 1 - io["t"][case, row : row + 1], io["y"][case, row : row + 1]
            scale = float(io["cfg_scale"]) if low < 1 - float(time) < high else 1.0
            guided = ClassifierFreeGuidance(denoiser, scale)
            v = (guided(preserving(z, time, 1.0), log_snr_of(time, 1.0), y) - z) / time.view(-1, 1, 1, 1)
            assert relative_error(v, io["v_guided"][case, row : row + 1]) < 1e-5


@pytest.mark.parametrize("run", ["heun50", "heun6"])
def test_jit_ends_where_the_authors_do(run: str) -> None:
    io = arrays("jit", "sampling")
    pipeline = published.stage("jit", weights_of("jit"), {**config_of("jit"), "cfg": 2.9, "interval": [0.1, 1.0]})
    guided, steps, flags = pipeline.guided(float(io[f"{run}_cfg"]), None), int(io[f"{run}_steps"]), list[bool]()
    watch = pipeline.unet.register_forward_hook(lambda module, args, output: flags.append(len(output) == 4))  # of two images
    times = Run.of(pipeline.scheduler, steps).scheduler.times
    torch.testing.assert_close(1 - times.float(), io[f"{run}_evaluation_t"], rtol=0, atol=1e-7)
    end = sample(guided, pipeline.scheduler, io["noise"], steps, class_labels=io["labels"])
    watch.remove()
    assert flags == io[f"{run}_evaluation_guided"].tolist()
    assert relative_error(end, io[f"{run}_sample"]) < 5e-5
    if run == "heun50":
        pipeline.set_progress_bar_config(disable=True)
        images = np.stack(pipeline(io["labels"], latents=io["noise"], guidance_scale=2.9).images)
        assert (np.abs(images.astype(int) - io["heun50_uint8"].numpy()) <= 1).all()


def test_jit_under_a_stock_scheduler_ends_where_the_authors_euler_does() -> None:
    io, pipeline = arrays("jit", "sampling"), stage_of("jit")
    guided = pipeline.guided(float(io["euler5_cfg"]), (0.3 / 0.7 * (1 + 1e-6), float("inf")))  # their t < 0.7
    end = sample(guided, FlowMapEulerDiscreteScheduler(), io["noise"], 5, class_labels=io["labels"])
    assert relative_error(end, io["euler5_sample"]) < 5e-5


def test_average_of_a_training_checkpoint_is_taken_by_name() -> None:
    io = arrays("jit")
    for average, expected in (
        (None, io["output"][0]),
        ("model_ema1", io["output"][0]),
        ("model_ema2", io["case0_output_model_ema2"]),
        ("model", io["case0_output_model"]),
    ):
        config = config_of("jit") if average is None else {**config_of("jit"), "average": average}
        network = published.load("jit", CHECKPOINT, config)
        assert relative_error(network(io["x"][0], io["t"][0], io["y"][0]), expected) < 1e-5


def test_convert_says_which_average_it_took(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**config_of("jit"), "average": "model_ema2"}))
    assert main(["convert", "jit", str(CHECKPOINT), "--config", str(config), "--out", str(tmp_path / "stage")]) == 0
    assert "took the weights 'model_ema2' of checkpoint-last.pth" in capsys.readouterr().err
    assert "| weights taken of it | `model_ema2` |" in (tmp_path / "stage" / "README.md").read_text()
    kept = json.loads((tmp_path / "stage" / "unet" / "config.json").read_text())["published"]
    assert kept["average"] == "model_ema2" and kept["noise_scale"] == 1.0


def nested(tmp_path: Path, content: Mapping[str, Any]) -> Path:
    torch.save(dict(content), tmp_path / "checkpoint-last.pth")
    return tmp_path / "checkpoint-last.pth"


def test_wrong_averages_are_answered_in_a_sentence(tmp_path: Path) -> None:
    state = load_file(weights_of("jit"))
    path = nested(tmp_path, {"model": state, "epoch": 3})
    with pytest.raises(ValueError, match="last.pth has no weights 'model_ema1', expected of jit; those in it: 'model'"):
        published.load("jit", path, config_of("jit"))
    with pytest.raises(ValueError, match="has no weights 'model_ema3'.*'model', 'model_ema1', 'model_ema2'"):
        published.load("jit", CHECKPOINT, {**config_of("jit"), "average": "model_ema3"})
    with pytest.raises(ValueError, match="one set of weights without a name, but the configuration asks for 'model_ema2'"):
        published.load("jit", weights_of("jit"), {**config_of("jit"), "average": "model_ema2"})
    with pytest.raises(ValueError, match="not a plain dict of tensors .sets of weights in it: 'model'"):
        published.load("pmf", path, config_of("pmf"))


def test_hostile_and_truncated_checkpoints_are_refused(tmp_path: Path) -> None:
    trace, state = tmp_path / "trace", load_file(weights_of("jit"))
    for args in (Hostile(trace), argparse.Namespace(lr=Hostile(trace))):
        path = nested(tmp_path, {"model_ema1": state, "args": args})
        with pytest.raises(ValueError, match="checkpoint-last.pth was refused"):
            published.load("jit", path, config_of("jit"))
    assert not trace.exists()
    path = nested(tmp_path, {"model_ema1": state, "args": argparse.Namespace(lr=1e-4)})
    with pytest.raises(ValueError, match="was refused"):
        published.load("pmf", path, config_of("pmf"))  # only a family of training checkpoints has a use for their options
    whole = CHECKPOINT.read_bytes()
    for share in (0.0, 0.3, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match="checkpoint-last.pth was refused"):
            published.load("jit", path, config_of("jit"))


def test_files_of_the_training_network_and_its_table_are_read(tmp_path: Path) -> None:
    own = load_file(weights_of("pmf"))
    heads = {key.replace("net.u_", "net.v_"): value + 1 for key, value in own.items() if key.startswith("net.u_")}
    table = arrays("pmf")["rope_freqs"]
    torch.save({**own, **heads, "net.rope_freqs": table}, tmp_path / "train.pt")
    network = published.load("pmf", tmp_path / "train.pt", config_of("pmf"))
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in network_of("pmf").state_dict().items())
    torch.save({**own, "net.rope_freqs": table.conj()}, tmp_path / "turned.pt")
    with pytest.raises(ValueError, match="rope_freqs is not the table of rotations of 8 x 8 patches in heads of 20"):
        published.load("pmf", tmp_path / "turned.pt", config_of("pmf"))


def test_a_jit_file_tells_its_configuration_by_its_tensors(tmp_path: Path) -> None:
    record = families.family_of("jit")
    for checkpoint in record.checkpoints:
        with torch.device("meta"):
            tensors = {f"net.{key}": value for key, value in record.build(checkpoint.config).state_dict().items()}
        assert _told_by_shapes(record, tensors) is checkpoint.config
    assert _told_by_shapes(record, load_file(weights_of("jit"))) is None
    with pytest.raises(ValueError, match="not a published file of jit known by name.*'init_kwargs'.*'noise_scale'"):
        published.load("jit", CHECKPOINT)


def test_wrong_family_and_wrong_configurations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not fit this network"):
        published.load("pmf", weights_of("jit"), config_of("pmf"))
    (tmp_path / "pMF-B-16.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="pMF-B-16.pt is a pmf checkpoint, but the family asked for is jit"):
        published.load("jit", tmp_path / "pMF-B-16.pt")
    for family in TRANSFORMERS:
        config = config_of(family)
        options = config["init_kwargs"]
        for wrong, said in (
            ({**config, "init_kwargs": {**options, "depth": 5}}, "does not fit this network"),
            ({**config, "init_kwargs": {**options, "num_heads": 3}}, "is not 4 . num_heads"),
            ({**config, "init_kwargs": {**options, "colour": 1}}, "unknown options colour"),
            ({key: value for key, value in config.items() if key != "noise_scale"}, "lacks noise_scale"),
        ):
            with pytest.raises(ValueError, match=said):
                published.load(family, weights_of(family), wrong)


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_classes_are_needed_and_bfloat16_stays_close(family: str) -> None:
    with pytest.raises(ValueError, match="knows 10 classes: class_labels are missing"):
        stage_of(family).unet(torch.randn(1, 3, 32, 32), torch.zeros(1))
    tensors = {name: value.to(torch.bfloat16) for name, value in load_file(weights_of(family)).items()}
    x, log_snr, labels = torch.randn(2, 3, 32, 32), torch.tensor([-3.0, 1.0]), torch.tensor([1, 2])
    exact = stage_of(family).unet(x, log_snr, labels)
    rough = type(stage_of(family).unet)(published=families.family_of(family).kept(config_of(family)))
    rough.network.load_state_dict(own(family, tensors))
    with torch.no_grad():
        got = rough.to(torch.bfloat16)(x, log_snr, labels)
    assert got.dtype == torch.float32 and relative_error(got, exact) < 0.05


def own(family: str, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return families.family_of(family).own_tensors(tensors, config_of(family))


def test_safetensors_of_an_average_is_the_same_network(tmp_path: Path) -> None:
    with torch.serialization.safe_globals([argparse.Namespace]):  # the authors' own code keeps its arguments there, see NOTICE
        state = torch.load(CHECKPOINT, weights_only=True)["model_ema1"]
    save_file({key: value.detach().contiguous() for key, value in state.items()}, tmp_path / "mine.safetensors")
    network = published.load("jit", tmp_path / "mine.safetensors", config_of("jit"))
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in network_of("jit").state_dict().items())
