import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image

from cascade.stages import sr3
from cascade.stages.conditioning import resize
from cascade.stages.sr3 import SR3Pipeline
from cascade.stages.unet import UNet

SMALL = {"sample_size": 16, "low_res_size": 4, "channels": (8, 16), "blocks": (1, 1), "attention_sizes": (), "head_channels": 8}
PHOTO = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1


def network(**config):
    """A small network whose output is not zero, as it would be before training."""
    torch.manual_seed(0)
    unet = UNet(**(SMALL | {"num_classes": 4, "aug_level": True} | config)).eval()
    for parameter in unet.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return unet


def pipeline(unet=None, **defaults):
    unet = network() if unet is None else unet
    pipe = SR3Pipeline(unet, DDPMScheduler(prediction_type="v_prediction"), **({"num_inference_steps": 3} | defaults))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeds(*values):
    return [torch.Generator().manual_seed(value) for value in values]


def inputs(unet):
    """Positional inputs (x_t, log_snr, class_labels, low_res, aug_level) of every evaluation to come."""
    seen = []
    unet.register_forward_pre_hook(lambda module, args: seen.append(args))
    return seen


def test_an_image_is_the_same_alone_in_a_batch_and_in_another_order():
    pipe = pipeline(aug_level=0.3)
    together = pipe(PHOTO, [0, 1], generator=seeds(5, 6), output_type="pt").images
    assert torch.equal(pipe(PHOTO[1], 1, generator=seeds(6), output_type="pt").images[0], together[1])
    assert torch.equal(pipe(PHOTO.flip(0), [1, 0], generator=seeds(6, 5), output_type="pt").images, together.flip(0))
    two = pipe(PHOTO, [0, 1], generator=seeds(5, 6), output_type="pt", batch_size=2).images
    torch.testing.assert_close(two, together, rtol=0, atol=1e-5)


def test_the_network_sees_the_small_image_unchanged_at_level_zero():
    pipe = pipeline()
    seen = inputs(pipe.unet)
    pipe(PHOTO[:1], 2)
    _, _, labels, low_res, aug_level = seen[-1]
    assert torch.equal(low_res, PHOTO[:1])
    assert labels.tolist() == [2] and aug_level.tolist() == [0.0]


def test_augmentation_is_what_its_level_says():
    pipe = pipeline()
    seen = inputs(pipe.unet)
    many = torch.zeros(64, 3, 4, 4)
    pipe(many, 0, aug_level=1 / 3, batch_size=64)
    _, _, _, low_res, aug_level = seen[0]
    assert low_res.std().item() == pytest.approx(math.sin(math.pi / 6), rel=0.05)  # 3072 pixels
    torch.testing.assert_close(aug_level, torch.full((64,), 1 / 3))
    assert all(torch.equal(step[3], low_res) for step in seen)


def test_the_level_does_not_change_the_noise_that_the_image_starts_from():
    pipe = pipeline()
    seen = inputs(pipe.unet)
    for level in (0.0, 0.5):
        pipe(PHOTO[:1], 0, aug_level=level, generator=seeds(1))
    assert torch.equal(seen[0][0], seen[3][0])


def test_every_kind_of_image_is_the_same_image():
    pipe = pipeline()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1
    pil = Image.fromarray(pixels)
    kinds = [pil, [pil], pixels, pixels / 255.0, pixels[None], tensor, tensor[None], [tensor]]
    results = [pipe(kind, 0, generator=seeds(1), output_type="pt").images for kind in kinds]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [2, 3, 8, 16])
def test_other_sizes_are_handed_over_by_the_rule(size):
    pipe = pipeline()
    seen = inputs(pipe.unet)
    image = torch.rand(1, 3, size, size) * 2 - 1
    pipe(image, 0)
    assert torch.equal(seen[0][3], resize(image, 4))


def test_images_of_different_sizes_go_together():
    images = [torch.zeros(3, 4, 4), torch.zeros(3, 8, 8), Image.new("L", (16, 16))]
    assert pipeline()(images, [0, 1, 2], output_type="np").images.shape == (3, 16, 16, 3)


def test_settings_and_images_survive_saving(tmp_path):
    saved = pipeline(aug_level=0.25, guidance_scale=2.0, tile_size=12, consistency=True)
    saved.save_pretrained(tmp_path)
    loaded = SR3Pipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    seen = inputs(loaded.unet)
    want = saved(PHOTO, [0, 1], generator=seeds(1, 2), output_type="pt").images
    got = loaded(PHOTO, [0, 1], generator=seeds(1, 2), output_type="pt").images
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)  # a file's weights lie elsewhere in memory, which changes rounding
    assert len(seen) == 2 * 3 * 4 and tuple(seen[0][0].shape) == (2, 3, 12, 12)  # images, steps and tiles; guidance doubles
    assert loaded.config["consistency"] is True
    assert seen[0][4].tolist() == [0.25, 0.25]


def test_consistent_images_average_to_the_small_ones_whatever_noise_the_network_saw():
    pipe = pipeline(aug_level=0.4)
    small = (PHOTO * 127.5).round() / 127.5
    free = pipe(small, [0, 1], generator=seeds(5, 6), output_type="pt").images
    made = pipe(small, [0, 1], generator=seeds(5, 6), output_type="pt", consistency=True).images
    torch.testing.assert_close(resize(made, 4), small, rtol=0, atol=5e-6)
    assert made.abs().max() <= 1 and (resize(free, 4) - small).abs().max() > 0.01
    pixels = torch.from_numpy(pipe(small, [0, 1], consistency=True, output_type="np").images * 255).round().movedim(-1, 1)
    assert (resize(pixels, 4) / 127.5 - 1 - small).abs().max() <= 0.5 / 127.5


def test_consistency_is_to_the_image_that_the_network_sees():
    large = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
    made = pipeline(consistency=True)(large, 0, output_type="pt").images
    torch.testing.assert_close(resize(made, 4), resize(large, 4), rtol=0, atol=5e-6)


def test_the_network_sees_tiles_and_the_noise_is_the_whole_images():
    pipe = pipeline()
    seen = inputs(pipe.unet)
    pipe(PHOTO, [0, 1], generator=seeds(5, 6))
    whole = torch.cat([seen[0][0], seen[3][0]])  # the first step of the one and of the other image
    del seen[:]
    pipe(PHOTO, [0, 1], generator=seeds(5, 6), tile_size=16, batch_size=3)
    assert [call[0].shape[-1] for call in seen] == [16] * 3  # no tiles
    del seen[:]
    pipe(PHOTO, [0, 1], generator=seeds(5, 6), tile_size=12, batch_size=3)
    assert [tuple(call[0].shape) for call in seen] == 2 * 3 * [(3, 3, 12, 12), (1, 3, 12, 12)]  # 2 x 2 tiles, image by image
    assert {tuple(call[3].shape[1:]) for call in seen} == {(3, 3, 3)}
    corners = [(0, 0), (0, 4), (4, 0), (4, 4)]
    for image, calls in enumerate((seen[:2], seen[6:8])):
        tiles = torch.cat([call[0] for call in calls])
        small = torch.cat([call[3] for call in calls])
        for place, (top, left) in enumerate(corners):
            assert torch.equal(tiles[place], whole[image, :, top : top + 12, left : left + 12])
            assert torch.equal(small[place], PHOTO[image, :, top // 4 : top // 4 + 3, left // 4 : left // 4 + 3])


def test_tiles_guidance_and_consistency_go_together():
    pipe = pipeline(tile_size=12, consistency=True, guidance_scale=2.0, aug_level=0.2)
    alone = pipe(PHOTO[1], 1, generator=seeds(6), output_type="pt").images
    together = pipe(PHOTO, [0, 1], generator=seeds(5, 6), output_type="pt").images
    assert torch.equal(together[1:], alone)
    torch.testing.assert_close(resize(together, 4), PHOTO, rtol=0, atol=5e-6)


def test_a_network_trained_without_augmentation_is_told_no_level():
    pipe = pipeline(network(aug_level=False, num_classes=None))
    seen = inputs(pipe.unet)
    pipe(PHOTO)
    assert seen[0][2] is None and seen[0][4] is None


@pytest.mark.parametrize(
    "image, call, message",
    [
        (torch.zeros(3, 4, 5), {}, "image is 5x4, but a stage needs a square one"),
        (torch.zeros(3, 32, 32), {}, "image is 32x32, larger than the 16x16"),
        (torch.zeros(4, 4), {}, r"shape \(4, 4\), expected \[3, H, W\]"),
        (torch.zeros(1, 4, 4), {}, "shape"),
        (np.zeros((4, 4)), {}, "shape"),
        (torch.full((3, 4, 4), 255.0), {}, r"values in \[255, 255\], expected \[-1, 1\]"),
        (torch.full((3, 4, 4), math.nan), {}, "values in"),
        ("photo.png", {}, "image is a str, expected a PIL image"),
        ([], {}, "empty list"),
        (PHOTO, {"class_labels": [0, 1, 2]}, "got 3 class_labels for 2 images"),
        (PHOTO, {"class_labels": [0, 9]}, "class index 9 is out of range"),
        (PHOTO, {"aug_level": 1.5}, r"aug_level must lie in \[0, 1\], got 1.5"),
        (PHOTO, {"aug_level": math.nan}, "aug_level must lie"),
        (PHOTO, {"num_inference_steps": 0}, "at least 1"),
        (PHOTO, {"tile_size": 13}, "tile_size is 13, but this network runs on sizes divisible by 2"),
        (PHOTO, {"tile_size": 0}, "tile_size is 0"),
        (PHOTO, {"tile_size": 14}, "tiles of 14 px can't cover an image of 16 px"),
    ],
)
def test_wrong_arguments_are_refused_before_the_network_runs(image, call, message):
    pipe = pipeline()
    seen = inputs(pipe.unet)
    with pytest.raises(ValueError, match=message):
        pipe(image, **({"class_labels": 0} | call))
    assert seen == []


def test_stages_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="takes no low-resolution image"):
        pipeline(network(low_res_size=None))


@pytest.mark.parametrize("setting", [{"tile_size": 12}, {"consistency": True}])
def test_settings_for_whole_enlargements_are_refused_elsewhere(setting):
    pipe = pipeline(network(low_res_size=6))
    seen = inputs(pipe.unet)
    with pytest.raises(ValueError, match="whole enlargements, and this stage makes 16 px of 6 px"):
        pipe(torch.zeros(3, 6, 6), 0, **setting)
    assert seen == []


def test_a_network_without_augmentation_ignores_its_level_and_says_so(monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(sr3.logger, "warning", said.append)
    pipe = pipeline(network(aug_level=False))
    level, none = (
        pipe(PHOTO, 0, aug_level=s, output_type="pt", generator=torch.Generator().manual_seed(0)).images for s in (0.1, 0.0)
    )
    assert said == ["aug_level 0.1 is ignored: this stage was trained without augmentation"]
    torch.testing.assert_close(level, none, rtol=0, atol=0)


def test_damaged_weights_are_named_with_their_stage():
    unet = network()
    unet.conv_in.weight.data[0, 0, 0, 0] = math.inf
    with pytest.raises(RuntimeError, match="SR3Pipeline at 16 px made values that are not numbers"):
        pipeline(unet)(PHOTO, 0)
