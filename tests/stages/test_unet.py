"""The U-Net: published sizes, identities of its parts, independence of batch and memory format, saving."""

import pytest
import torch
import torch.nn.functional as F

from cascade.stages.denoiser import Denoiser
from cascade.stages.noise import add_noise
from cascade.stages.unet import Attention, PixelNorm, ResidualBlock, UNet, _attend, _doubled, _Precondition, sinusoidal_embedding

TINY = {"sample_size": 16, "channels": [32, 64], "blocks": [1, 2], "attention_sizes": [8], "head_channels": 32, "num_classes": 5}


def randomise(network: torch.nn.Module) -> torch.nn.Module:
    """Give every parameter a value, those that start at zero too: otherwise the output is zero whatever the input."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1 + (0.5 if parameter.ndim == 1 else 0)
    return network.eval()


def inputs(batch: int = 3, size: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, size, size, generator=generator), torch.linspace(-5, 5, batch), torch.arange(batch)


@pytest.mark.parametrize(
    ("width", "multipliers", "blocks", "size", "low_res", "millions"),
    [  # SR3, table A.1; attention at 16 px is our choice, which the paper leaves open
        (128, [1, 2, 4, 8, 8], 3, 128, 16, 550),
        (128, [1, 2, 4, 4, 8, 8], 3, 256, 64, 625),
        (64, [1, 2, 4, 8, 8, 16, 16], 3, 512, 64, 625),
        (16, [1, 2, 4, 8, 16, 32, 32, 32], 2, 1024, 256, 150),
    ],
)
def test_published_sizes_of_sr3(width, multipliers, blocks, size, low_res, millions):
    with torch.device("meta"):
        network = UNet(
            sample_size=size,
            low_res_size=low_res,
            prediction_type="epsilon",
            channels=[width * m for m in multipliers],
            blocks=[blocks] * len(multipliers),
            attention_sizes=[16],
        )
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.05)


@pytest.mark.parametrize("layout", ["sr3", "efficient"])
def test_attention_stands_where_asked_and_in_the_middle(layout):
    network = UNet(sample_size=32, channels=[32, 64, 64], blocks=[1, 1, 1], attention_sizes=[16], layout=layout, head_channels=32)
    attending = [block for block in [*network.encoder, *network.decoder] if block.attention is not None]
    assert attending and all(block.conv1.out_channels == 64 for block in attending)
    assert [block.attention is not None for block in network.middle] == [True, False]


def test_embedding_of_zero_and_its_norm():
    embedding = sinusoidal_embedding(torch.tensor([0.0, 3.0, -200.0]), 32)
    torch.testing.assert_close(embedding[0], torch.cat([torch.ones(16), torch.zeros(16)]))
    torch.testing.assert_close(embedding.square().sum(dim=1), torch.full((3,), 16.0))  # cos^2 + sin^2


def test_pixel_norm_equals_its_definition():
    norm = PixelNorm(8)
    norm.weight.data, norm.bias.data = torch.rand(8), torch.rand(8)
    x = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    mean, variance = x.mean(dim=1, keepdim=True), x.var(dim=1, keepdim=True, unbiased=False)
    want = (x - mean) / (variance + norm.eps).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(norm(x), want)


def test_attention_equals_explicit_softmax():
    attention = randomise(Attention(32, heads=2, norm="pixel"))
    x = torch.randn(2, 32, 4, 4, generator=torch.Generator().manual_seed(0))
    q, k, v = (
        attention.qkv(attention.norm(x)).flatten(2).view(2, 3, 2, 16, 16).unbind(dim=1)
    )  # batch, q/k/v, head, channel, place
    weights = torch.softmax(q.transpose(-1, -2) @ k / 4, dim=-1)
    mixed = (v @ weights.transpose(-1, -2)).reshape(2, 32, 4, 4)
    torch.testing.assert_close(attention(x), (x + attention.out(mixed)) / 2**0.5)


def test_attention_in_bfloat16_on_a_cpu_rounds_once():
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(8, 2, 64, 32, generator=rng).bfloat16() for _ in range(3))
    exact = torch.softmax(q.double() @ k.double().transpose(-1, -2) / 32**0.5, dim=-1) @ v.double()
    with torch.autocast("cpu", torch.bfloat16):
        got = _attend(q, k, v)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), exact, rtol=2**-8, atol=1e-6)
    kernel = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert not torch.allclose(kernel.double(), exact, rtol=2**-8, atol=1e-6), "the kernel of bfloat16 rounds oftener"


@pytest.mark.parametrize("late", [False, True])
def test_a_new_block_is_its_resampled_input_over_root_two(late):
    """Its second convolution starts at zero, so only the skip is left."""
    block = ResidualBlock(8, 8, 4, norm="pixel", dropout=0.0, factor=2, upsample_late=late)
    x = torch.randn(1, 8, 2, 2, generator=torch.Generator().manual_seed(0))
    want = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3) / 2**0.5
    torch.testing.assert_close(block(x, torch.randn(1, 4)), want)


@pytest.mark.parametrize("layout", ["sr3", "efficient"])
@pytest.mark.parametrize("norm", ["group", "pixel"])
@pytest.mark.parametrize("patch_size", [1, 2])
def test_every_input_matters_and_images_are_independent(layout, norm, patch_size):
    network = randomise(
        UNet(**{**TINY, "attention_sizes": []}, layout=layout, norm=norm, patch_size=patch_size, low_res_size=8, aug_level=True)
    )
    x, log_snr, labels = inputs()
    low_res, aug_level = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2)), torch.tensor([0.0, 0.3, 0.9])
    with torch.no_grad():
        together = network(x, log_snr, labels, low_res, aug_level)
        changed = {
            "noise level": network(x, log_snr + 1, labels, low_res, aug_level),
            "class": network(x, log_snr, labels + 1, low_res, aug_level),
            "low-resolution image": network(x, log_snr, labels, low_res + 0.1, aug_level),
            "augmentation level": network(x, log_snr, labels, low_res, aug_level / 2 + 0.05),
            "image": network(x + 0.1, log_snr, labels, low_res, aug_level),
        }
        alone = torch.cat([network(*(v[i : i + 1] for v in (x, log_snr, labels, low_res, aug_level))) for i in range(3)])
    assert together.shape == x.shape
    for name, output in changed.items():
        assert (output - together).abs().max() > 1e-4, f"{name} has no influence"
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4)


def test_a_new_network_with_low_res_skip_is_bicubic_interpolation():
    network = UNet(**TINY, low_res_size=8, low_res_skip=True, prediction_type="sample").eval()
    x, log_snr, labels = inputs()
    low_res = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    want = torch.nn.functional.interpolate(low_res, size=16, mode="bicubic", align_corners=False)
    torch.testing.assert_close(network(x, log_snr, labels, low_res), want)


def test_a_new_network_with_detail_std_is_the_wiener_filter_of_details():
    """White details of std s around a known mean: no linear estimate errs by less than the variance s^2 / (1 + s^2 SNR)."""
    std, log_snr = 0.15, torch.tensor([-5.0, 2.0, 5.0, 12.0])
    settings = TINY | {"sample_size": 64, "low_res_size": 8, "low_res_skip": True, "prediction_type": "sample"}
    network = UNet(**settings, detail_std=std).eval()
    generator = torch.Generator().manual_seed(0)
    low_res = torch.rand(4, 3, 8, 8, generator=generator) * 2 - 1
    mean = F.interpolate(low_res, size=(64, 64), mode="bicubic", align_corners=False)
    x0 = mean + std * torch.randn(4, 3, 64, 64, generator=generator)
    x_t = add_noise(x0, torch.randn(4, 3, 64, 64, generator=generator), log_snr)
    with torch.no_grad():
        error = (network(x_t, log_snr, torch.arange(4), low_res) - x0).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(error, std**2 / (1 + std**2 * log_snr.exp()), rtol=0.05, atol=0)


def test_with_detail_std_a_network_sees_and_corrects_in_units_of_one():
    """Its input has unit variance at every noise level, and the output that would be right has, too: EDM's c_in and c_out."""
    std, log_snr = 0.15, torch.tensor([-20.0, 0.0, 4.0, 20.0])
    generator = torch.Generator().manual_seed(0)
    mean = torch.rand(4, 3, 64, 64, generator=generator)
    x0 = mean + std * torch.randn(mean.shape, generator=generator)
    x_t = add_noise(x0, torch.randn(mean.shape, generator=generator), log_snr)
    precondition = _Precondition(std, x_t, mean, log_snr)
    torch.testing.assert_close(precondition.details.var(dim=(1, 2, 3)), torch.ones(4), rtol=0.05, atol=0)
    wanted = (x0 - precondition.x0(torch.zeros_like(x0))) / precondition.error_std  # the output that would be exactly right
    torch.testing.assert_close(wanted[:3].var(dim=(1, 2, 3)), torch.ones(3), rtol=0.05, atol=0)  # float32 ends before log-SNR 20
    torch.testing.assert_close(precondition.x0(wanted), x0)


def test_noisy_images_are_denoised_at_half_size_at_their_true_noise_level(monkeypatch):
    """Where x0 is constant over 2x2 pixels, the small noisy image is exactly that of the small x0."""
    network = randomise(UNet(**TINY, prediction_type="sample", coarse_below=-1.0))
    seen = []
    monkeypatch.setattr(network, "_predict", lambda x_t, log_snr, *_: seen.append((x_t, log_snr)) or x_t)
    generator = torch.Generator().manual_seed(3)
    small, eps = torch.randn(3, 3, 8, 8, generator=generator), torch.randn(3, 3, 16, 16, generator=generator)
    log_snr = torch.tensor([-1.5, -3.0, -6.0])
    x0 = small.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    network(add_noise(x0, eps, log_snr), log_snr, torch.arange(3))
    ((x_t, level),) = seen
    noise = torch.nn.functional.avg_pool2d(eps, 2) * 2  # unit variance again
    torch.testing.assert_close(level, log_snr + 2 * torch.log(torch.tensor(2.0)))
    torch.testing.assert_close(x_t, add_noise(small, noise, level))


def test_mixed_noise_levels_are_each_denoised_as_alone():
    network = randomise(UNet(**TINY, prediction_type="sample", coarse_below=0.0))
    x, _, labels = inputs()
    log_snr = torch.tensor([-3.0, 2.0, -0.5])
    with torch.no_grad():
        alone = torch.cat([network(x[i : i + 1], log_snr[i : i + 1], labels[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(network(x, log_snr, labels), alone, rtol=1e-4, atol=1e-4)
        plain = UNet(**TINY, prediction_type="sample")
        plain.load_state_dict(network.state_dict())
        torch.testing.assert_close(plain.eval()(x, log_snr, labels)[1], alone[1], rtol=1e-4, atol=1e-4)


def test_missing_aug_level_means_zero():
    network = randomise(UNet(**TINY, low_res_size=8, aug_level=True))
    x, log_snr, labels = inputs()
    low_res = torch.zeros(3, 3, 8, 8)
    torch.testing.assert_close(network(x, log_snr, labels, low_res), network(x, log_snr, labels, low_res, torch.zeros(3)))


def test_gradient_checkpointing_changes_no_gradient():
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        network = randomise(UNet(**TINY)).train()
        if checkpointing:
            network.enable_gradient_checkpointing()
        network(*inputs()).square().mean().backward()
        return [p.grad for p in network.parameters()]

    for plain, checkpointed in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_bfloat16_is_near_float32():
    network = randomise(UNet(**TINY, layout="efficient", norm="pixel"))
    want = network(*inputs())
    got = network.to(torch.bfloat16)(*inputs()).float()
    assert (got - want).norm() / want.norm() < 0.05


def test_it_runs_on_other_sizes_that_its_levels_divide():
    network = randomise(UNet(**TINY, patch_size=2, layout="efficient"))
    x, log_snr, labels = inputs(size=24)
    assert network(x, log_snr, labels).shape == x.shape


def test_saved_and_loaded_it_computes_the_same(tmp_path):
    network = randomise(UNet(**TINY))
    network.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    loaded = UNet.from_pretrained(tmp_path)
    assert isinstance(loaded, Denoiser) and loaded.null_label == 5 and loaded.prediction_type == "v_prediction"
    torch.testing.assert_close(loaded(*inputs()), network(*inputs()), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prediction_type": "noise"}, "prediction_type 'noise'"),
        ({"channels": [32]}, "must name the same levels"),
        ({"sample_size": 15}, "not divisible by 2"),
        ({"channels": [32, 48]}, "channels \\[48\\]"),
        ({"low_res_size": 64}, "low_res_size 64 exceeds 16"),
        ({"layout": "unet"}, "expected 'sr3' or 'efficient'"),
        ({"low_res_skip": True}, "low_res_skip needs a low_res_size"),
        ({"detail_std": 0.1}, "detail_std needs low_res_skip"),
        ({"coarse_below": 0.0}, "coarse_below needs prediction_type 'sample'"),
        ({"norm": "batch"}, "expected 'group' or 'pixel'"),
    ],
)
def test_settings_that_describe_no_network_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        UNet(**{**TINY, **change})


def test_missing_inputs_are_named():
    x, log_snr, labels = inputs()
    with pytest.raises(ValueError, match="class_labels is missing"):
        UNet(**TINY)(x, log_snr)
    with pytest.raises(ValueError, match="low_res is missing"):
        UNet(**TINY, low_res_size=8)(x, log_snr, labels)


def test_with_gradients_images_are_doubled_by_the_matrices_of_bicubic_interpolation():
    x = torch.randn(2, 3, 8, 8, dtype=torch.float32)
    plain = F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)
    towards = torch.randn_like(plain)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    made = _doubled(leaves[0])
    torch.testing.assert_close(made, plain, rtol=0, atol=2e-6)
    assert torch.equal(_doubled(x), plain)
    (made * towards).sum().backward()
    (F.interpolate(leaves[1], scale_factor=2, mode="bicubic", align_corners=False) * towards).sum().backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=1e-5, atol=1e-5)


def test_without_classes_predicts_what_it_does_for_no_class():
    small = {"channels": (8, 16), "blocks": (1, 1), "attention_sizes": (8,), "head_channels": 8}
    network = UNet(sample_size=16, num_classes=4, low_res_size=8, aug_level=True, **small).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    inputs = {"low_res": torch.randn(2, 3, 8, 8), "aug_level": torch.tensor([0.0, 0.3])}
    x, log_snr = torch.randn(2, 3, 16, 16), torch.tensor([-2.0, 1.0])
    plain = network.without_classes()
    assert plain.num_classes is None and network.num_classes == 4
    torch.testing.assert_close(plain(x, log_snr, **inputs), network(x, log_snr, torch.tensor([4, 4]), **inputs))
    with pytest.raises(ValueError, match="not trained on images of no class"):
        plain.without_classes()
    with pytest.raises(ValueError, match="not trained on images of no class"):
        UNet(sample_size=16, num_classes=4, null_class=False, **small).without_classes()
