"""Every published family gives the numbers that its original implementation gives."""

import numpy as np
import pytest
import torch
from references import (
    FAMILIES,
    INPUTS,
    OUTPUT,
    ROOT,
    arrays,
    config_of,
    network_of,
    relative_error,
    weights_of,
)

from cascade.stages import published
from cascade.stages.published import consistency, edm, families, guided_diffusion
from cascade.stages.published.family import NON_COMMERCIAL, Checkpoint, Family


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", range(3))
def test_output_is_that_of_the_original(family: str, case: int) -> None:
    io = arrays(family)

    got = network_of(family)(**{name: io[name][case] for name in INPUTS[family]})

    assert relative_error(got, io[OUTPUT.get(family, "output")][case]) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_reference_network_has_the_size_that_its_config_states(family: str) -> None:
    fixed = {name.removeprefix("net.") for name in config_of(family).get("fixed_parameters", ())}
    learned = [p.numel() for name, p in network_of(family).named_parameters() if name not in fixed]
    assert sum(learned) == config_of(family)["parameter_count"]


def test_consistency_scalings_are_those_of_the_original() -> None:
    io = arrays("consistency")
    for name, got in zip(("skip", "out", "in"), edm.preconditioning(io["sigma"]), strict=True):
        assert relative_error(got, io[f"c_{name}_edm"]) < 1e-6
    teacher = published.load("consistency", weights_of("consistency"), {**config_of("consistency"), "training_mode": "edm"})
    student = network_of("consistency")
    for case in range(3):
        x, sigma, y = io["x"][case], io["sigma"][case], io["y"][case]
        assert relative_error(teacher(x=x, sigma=sigma, y=y), io["denoised_edm"][case]) < 1e-5
        raw = super(consistency.ConsistencyNetwork, student).forward(
            io["c_in_boundary"][case].view(-1, 1, 1, 1) * x, io["rescaled_t"][case], y
        )
        assert relative_error(raw, io["output"][case]) < 1e-5


def test_consistency_model_leaves_an_image_at_sigma_min_alone() -> None:
    x = torch.rand(2, 3, 16, 16)
    got = network_of("consistency")(x=x, sigma=torch.full((2,), 0.002), y=torch.tensor([0, 1]))
    torch.testing.assert_close(got, x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["edm", "edm2"])
def test_edm_networks_without_labels_and_before_preconditioning(family: str) -> None:
    io, network = arrays(family), network_of(family)
    inner = network.model if family == "edm" else network.unet
    for case in range(3):
        x, sigma, labels = io["x"][case], io["sigma"][case], io["class_labels"][case]
        assert relative_error(network(x=x, sigma=sigma), io["denoised_zero_labels"][case]) < 1e-5
        torch.testing.assert_close(network(x=x, sigma=sigma, class_labels=io["y"][case]), network(x, sigma, labels))
        _, _, c_in = edm.preconditioning(sigma)
        raw = inner(c_in.view(-1, 1, 1, 1) * x, io["c_noise"][case], labels)
        assert relative_error(raw, io["network_output"][case]) < 1e-5


@pytest.mark.parametrize(("family", "suffix"), [("consistency", ".pt"), ("sr3", ".pth")])
def test_torch_files_hold_the_same_network_as_safetensors(family: str, suffix: str) -> None:
    path = next((ROOT / family).glob(f"*{suffix}"))
    network = published.load(family, path, config_of(family))
    for name, value in network_of(family).state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], value, rtol=0, atol=0)


# One file of every architecture and size.
DISTINCT = {(family.name, one.parameters): (family, one) for family in families.FAMILIES for one in family.checkpoints}


@pytest.mark.parametrize(("family", "checkpoint"), DISTINCT.values(), ids=[one.file for _, one in DISTINCT.values()])
def test_full_size_networks_have_the_size_that_the_record_states(family: Family, checkpoint: Checkpoint) -> None:
    with torch.device("meta"):
        network = family.build(checkpoint.config)
    assert sum(p.numel() for p in network.parameters()) == checkpoint.parameters
    assert len(network.state_dict()) == checkpoint.keys


@pytest.mark.parametrize(
    ("file", "millions", "keys"),
    [
        ("64x64_diffusion.pt", 295.9, 541), ("64_256_upsampler.pt", 311.8, 567), ("128_512_upsampler.pt", 308.8, None),
        ("256x256_diffusion.pt", 553.8, None), ("imagenet64_cond_270M_250K.pt", 273.0, 451),
        ("upsample_cond_500K.pt", 279.8, 457),
        ("edm-imagenet-64x64-cond-adm.pkl", 295.9, None), ("edm2-img64-xs-0134217-0.110.pkl", 124.7, 203),
        ("edm2-img64-s-1073741-0.075.pkl", 280.2, 203), ("edm2-img64-m-2147483-0.060.pkl", 497.8, 203),
        ("edm2-img64-l-1073741-0.040.pkl", 777.5, 203), ("edm2-img64-xl-0671088-0.040.pkl", 1119.3, 203),
    ],
)  # fmt: skip
def test_records_agree_with_the_papers(file: str, millions: float, keys: int | None) -> None:
    found = families.known(file)
    assert found is not None
    _, checkpoint = found
    assert round(checkpoint.parameters / 1e6, 1) == millions
    assert keys in (None, checkpoint.keys)


def test_every_ema_length_of_edm2_is_known() -> None:
    found = families.known("edm2-img64-m-0402653-0.100.pkl")
    assert found is not None
    family, checkpoint = found
    assert checkpoint.parameters == 497_803_173 and checkpoint.url.endswith("/" + checkpoint.file)
    assert checkpoint.file == "edm2-img64-m-0402653-0.100.pkl" and family.licence == NON_COMMERCIAL
    assert families.known("edm2-img512-m-0402653-0.100.pkl") is None


def test_classifier_pools_by_attention_over_the_mean_and_all_positions() -> None:
    """Against multi-head attention written out in NumPy; of one query, that of the mean."""
    torch.manual_seed(0)
    pool = guided_diffusion.AttentionPool(side=2, channels=8, head_channels=4, out_channels=5)
    x = torch.randn(3, 8, 2, 2)

    tokens = x.flatten(2).numpy()
    tokens = np.concatenate([tokens.mean(-1, keepdims=True), tokens], -1) + pool.positional_embedding.detach().numpy()
    qkv = np.einsum("oc,bcn->bon", pool.qkv_proj.weight[..., 0].detach().numpy(), tokens)
    q, k, v = np.split(qkv + pool.qkv_proj.bias.detach().numpy()[:, None], 3, axis=1)
    pooled = []
    for head in (slice(0, 4), slice(4, 8)):
        logits = np.einsum("bc,bcn->bn", q[:, head, 0], k[:, head]) / 2
        weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        pooled.append(np.einsum("bn,bcn->bc", weights, v[:, head]))
    expected = np.concatenate(pooled, 1) @ pool.c_proj.weight[..., 0].detach().numpy().T + pool.c_proj.bias.detach().numpy()

    np.testing.assert_allclose(pool(x).detach().numpy(), expected, rtol=1e-4, atol=1e-5)
