"""The training behind the classification accuracy score: its rate and crops against their definitions, learning, going on."""

import numpy as np
import pytest
import torch

from cascade.eval import classification_score
from cascade.eval.classification_score import Learner, Training, _read_ahead, random_crops, rate_at, seen_size

QUICK = {"network": "small", "epochs": 6, "batch_size": 8}


class Stripes:
    """Two classes that no crop or mirror confuses, under noise: stripes across, and stripes down."""

    size = 32

    def __init__(self, count, seed):
        rng = np.random.default_rng(seed)
        self.labels = rng.integers(0, 2, count)
        wave = 60 * np.sin(np.arange(32) * 2 * np.pi / 8 + rng.uniform(0, 2 * np.pi, (count, 1)))
        across, down = np.broadcast_to(wave[:, :, None], (count, 32, 32)), np.broadcast_to(wave[:, None], (count, 32, 32))
        pixels = np.where(self.labels[:, None, None] == 0, across, down)[..., None]
        noise = rng.normal(0, 20, (count, 32, 32, 3))
        self.pixels = (128 + pixels + noise).clip(0, 255).astype(np.uint8)

    def __len__(self):
        return len(self.labels)

    def read(self, places):
        return self.pixels[places], self.labels[places]


def state(learner):
    return {name: value.clone() for name, value in learner.model.state_dict().items()}


def test_the_rate_rises_for_5_of_90_passes_and_falls_to_a_tenth_after_30_60_and_80():
    """Goyal et al. 2017, section 5.1."""
    of_pass = {1: 0.2, 2.5: 0.5, 5: 1, 30: 1, 31: 0.1, 60: 0.1, 61: 0.01, 80: 0.01, 81: 0.001, 90: 0.001}
    for number, want in of_pass.items():
        assert rate_at(number / 90) == pytest.approx(want)


def test_the_highest_rate_is_proportional_to_the_batch():
    learner = Learner(Training(network="small", batch_size=512), 2)
    learner._step(torch.zeros(2, 3, 28, 28), torch.zeros(2, dtype=torch.long), 0.2)
    assert learner._optimizer.param_groups[0]["lr"] == pytest.approx(0.2)
    assert (seen_size(256), seen_size(128), seen_size(64)) == (224, 112, 56)


def test_crops_are_parts_of_the_picture_of_the_stated_areas_and_ratios():
    """Of a picture whose colours are the places, each crop tells where it begins and ends."""
    side, size, count = 64, 32, 500
    places = (torch.arange(side) + 0.5) / side
    grid = torch.stack([places.expand(side, side), places[:, None].expand(side, side), torch.zeros(side, side)])
    made = random_crops(grid.expand(count, 3, side, side), size, torch.Generator().manual_seed(0))
    assert made.shape == (count, 3, size, size)
    x, y = made[:, 0, 0], made[:, 1, :, 0]
    torch.testing.assert_close(made[:, 0], x[:, None].expand(-1, size, -1))  # rows are alike: nothing is turned
    width = (x[:, -2] - x[:, 1]) * size / (size - 3)  # inner ones, as the first and last may continue the edge
    height = (y[:, -2] - y[:, 1]) * size / (size - 3)
    assert 0.4 < (width < 0).float().mean() < 0.6 and (height > 0).all(), "half are mirrored, none stands on its head"
    area, ratio = width.abs() * height, width.abs() / height
    assert 0.07 < area.min() < 0.12 and area.max() <= 1.001 and 0.45 < area.mean() < 0.55
    assert ratio.min() > 0.74 and ratio.max() < 1.35 and ratio.min() < 0.8 and ratio.max() > 1.25
    assert made[:, :2].min() > 0 and made[:, :2].max() < 1


def test_what_was_kept_goes_on_to_the_same_weights(tmp_path):
    samples = Stripes(20, seed=0)
    training = Training(**QUICK | {"epochs": 3})
    whole = Learner(training, 2, workers=2)
    told = []
    for _ in range(3):
        whole.learn_epoch(samples, lambda done, total: told.append((done, total)))
    assert told == [(8, 16), (16, 16)] * 3, "the four that fill no batch wait for another pass"
    stopped = Learner(training, 2)
    stopped.learn_epoch(samples)
    stopped.keep(tmp_path / "state.safetensors")
    again = Learner(training, 2)
    again.go_on(tmp_path / "state.safetensors")
    assert again.epochs_done == 1
    again.learn_epoch(samples)
    again.learn_epoch(samples)
    theirs = state(again)
    for name, value in state(whole).items():
        torch.testing.assert_close(theirs[name], value, rtol=0, atol=0)


@pytest.mark.slow
def test_labels_that_say_nothing_teach_nothing():
    """What is measured is what the labels teach: with random ones the test is a coin's, where the true ones are all learned
    (`test_cli_cas.py`)."""
    samples, real = Stripes(80, seed=0), Stripes(60, seed=1)
    samples.labels = np.random.default_rng(5).integers(0, 2, 80)
    learner = Learner(Training(**QUICK), 2)
    for _ in range(6):
        learner.learn_epoch(samples)
    right = np.concatenate([probabilities.argmax(axis=1) == labels for probabilities, labels in learner.probabilities(real)])
    assert 0.2 < right.mean() < 0.8


def test_pictures_are_read_in_order_by_any_number_of_threads():
    pictures = Stripes(23, seed=0)
    parts = [np.arange(0, 10), np.arange(10, 20), np.arange(20, 23)]
    for workers in (1, 4):
        found = list(_read_ahead(pictures, parts, workers))
        assert [len(labels) for _, labels in found] == [10, 10, 3]
        assert (np.concatenate([images for images, _ in found]) == pictures.pixels).all()
        assert (np.concatenate([labels for _, labels in found]) == pictures.labels).all()


def test_other_files_and_settings_are_refused_and_a_loss_of_nothing_ends_it(tmp_path):
    for wrong in ({"network": "vgg"}, {"epochs": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Training(**wrong)
    learner = Learner(Training(**QUICK), 2)
    (tmp_path / "damaged.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="does not hold this classifier in training, or is damaged"):
        learner.go_on(tmp_path / "damaged.safetensors")
    learner.learn_epoch(Stripes(16, seed=0))
    learner.keep(tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match="does not hold this classifier"):
        Learner(Training(**QUICK), 3).go_on(tmp_path / "two.safetensors")
    with torch.no_grad():
        next(learner.model.parameters()).fill_(float("nan"))
    with pytest.raises(RuntimeError, match="loss is nan in pass 2"):
        learner.learn_epoch(Stripes(16, seed=0))
    with pytest.raises(ValueError, match="at least 2 usable samples"):
        learner.learn_epoch(Stripes(1, seed=0))


def test_the_network_of_papers_is_torchvisions_resnet_50(torchvision):
    learner = Learner(Training(batch_size=2), 1000)
    assert sum(value.numel() for value in learner.model.parameters()) == 25_557_032
    assert classification_score.NETWORKS[0] == Training().network == "resnet50" and Training().epochs == 90
    assert type(learner.model) is torchvision.models.ResNet
    learner.learn_epoch(Stripes(2, seed=0))
    assert learner.epochs_done == 1 and next(learner.probabilities(Stripes(1, seed=0)))[0].shape == (1, 1000)
