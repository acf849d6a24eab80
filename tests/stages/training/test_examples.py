"""Damaged pictures are replaced by a rule that depends on nothing but the example's number, and are counted and named."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, default_collate

from cascade.stages.training import Augmentation, Data, Optimization, Phase, Recipe, TrainingExamples, train
from cascade.stages.training.examples import Picture, ResidentPictures, as_read, epoch_order
from cascade.stages.training.odd_pictures import FEWEST, ODDITIES, TRIES, DamagedPicture, DamageLog, Oddity, mask_of, oddities_in

NETWORK = {"sample_size": 8, "channels": [8], "blocks": [1], "attention_sizes": [], "head_channels": 8, "layout": "efficient"}


class Pictures:
    """Pictures whose grey is their place in the set; some of them damaged, some odd."""

    size, class_names, may_flip = 8, ("even", "odd"), (True, True)

    def __init__(self, count: int, damaged: dict[int, Oddity], odd: dict[int, tuple[Oddity, ...]] | None = None) -> None:
        self.count, self.damaged, self.odd = count, damaged, odd or {}

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Picture:
        if index in self.damaged:
            raise DamagedPicture(self.damaged[index])
        return Picture(self.pixels_of(index), self.odd.get(index, ()))

    def pixels_of(self, index: int) -> np.ndarray:
        return np.full((8, 8, 3), index, np.uint8)

    def label(self, index: int) -> int:
        return index % 2

    def name(self, index: int) -> str:
        return f"p{index}.png"

    def order(self, seed: int, epoch: int) -> np.ndarray:
        return epoch_order(seed, epoch, self.count)


def recipe(images: int = 100, max_damaged: float = 0.1, batch_size: int = 4) -> Recipe:
    return Recipe(
        name="t",
        data=Data(source="none", max_damaged=max_damaged),
        network=NETWORK,
        phases=(Phase(size=8, images=images, batch_size=batch_size),),
        optimization=Optimization(precision="float32", warmup=0),
        checkpoint_every=20,
    )


def examples(pictures: Pictures) -> TrainingExamples:
    r = recipe()
    return TrainingExamples(pictures, r, r.phases[0], 2)


def log_of(pictures: Pictures, max_damaged: float = 1.0) -> DamageLog:
    return DamageLog(pictures, max_damaged)


DAMAGED = {3: Oddity.EMPTY, 7: Oddity.TRUNCATED, 8: Oddity.EMPTY}


def test_a_damaged_picture_is_replaced_by_the_next_in_the_order():
    found = examples(Pictures(10, DAMAGED))
    for number in range(40):
        order = epoch_order(0, number // 10, 10)
        place = number % 10
        following = [int(order[(place + i) % 10]) for i in range(10)]
        want = next(index for index in following if index not in DAMAGED)
        example = found[number]
        assert example["index"] == want and example["x0"][0, 0, 0] == pytest.approx(want / 127.5 - 1)
        assert example["label"] in (want % 2, 2)
        passed = following[: following.index(want)]
        assert example["damaged"][: len(passed)].tolist() == [[index, DAMAGED[index].code] for index in passed]
        assert (example["damaged"][len(passed) :] == -1).all() and example["damaged"].shape == (TRIES, 2)


def test_the_other_examples_are_those_of_a_whole_set():
    """Damage moves no other example: not its picture, noise, label nor noise level."""
    whole, damaged = examples(Pictures(10, {})), examples(Pictures(10, DAMAGED))
    untouched = [n for n in range(50) if int(whole[n]["index"]) not in DAMAGED]
    assert len(untouched) == 35
    for n in untouched:
        assert all(torch.equal(whole[n][key], damaged[n][key]) for key in whole[n])


@pytest.mark.parametrize("workers", [0, 2])
def test_replacement_is_the_same_in_workers_and_backwards(workers):
    pictures = Pictures(10, DAMAGED, {1: (Oddity.GREYSCALE, Oddity.ROTATED)})
    backwards = {n: examples(pictures)[n] for n in reversed(range(12, 36))}
    made = examples(pictures)
    loader = DataLoader(made, batch_size=6, sampler=range(12, 36), num_workers=workers, collate_fn=as_read)
    for place, batch in enumerate(loader):
        for key, values in made.complete(batch).items():
            assert torch.equal(values, torch.stack([backwards[12 + 6 * place + i][key] for i in range(6)]))


def test_kinds_survive_the_way_through_a_whole_number():
    for kinds in ((), (ODDITIES[0],), (Oddity.GREYSCALE, Oddity.ROTATED), ODDITIES):
        assert tuple(oddities_in(mask_of(kinds))) == tuple(kinds)
    assert mask_of((Oddity.CMYK, Oddity.CMYK)) == mask_of((Oddity.CMYK,))


def test_the_log_counts_files_and_names_them_once():
    odd = {1: (Oddity.GREYSCALE,), 2: (Oddity.GREYSCALE, Oddity.ANIMATED)}
    pictures = Pictures(10, DAMAGED, odd)
    found, log, said = examples(pictures), log_of(pictures), []
    for batch in range(8):  # four epochs
        said += log.add(default_collate([found[n] for n in range(5 * batch, 5 * batch + 5)]))
    assert log.met == 40 and log.damaged == 12  # each of the three is met once an epoch
    assert {o: log.count(o) for o in ODDITIES if log.count(o)} == {
        Oddity.EMPTY: 2, Oddity.TRUNCATED: 1, Oddity.GREYSCALE: 2, Oddity.ANIMATED: 1
    }  # fmt: skip
    assert log.skipped() == 3
    assert sorted(s for s in said if "skipped" in s) == sorted(
        f"p{index}.png is {kind.title}: {kind.rule}" for index, kind in DAMAGED.items()
    )
    assert len(said) == 5 and sum("is the first of kind greyscale: used" in s for s in said) == 1
    lines = log.table().splitlines()
    assert lines[0].split() == ["kind", "count", "first", "rule"] and len(lines) == 5
    assert lines[1].split()[:3] in (["empty", "2", "p3.png"], ["empty", "2", "p8.png"]) and lines[1].endswith(Oddity.EMPTY.rule)
    assert log_of(pictures).table() == ""


def batch_of(damaged: int, size: int = 100) -> dict[str, torch.Tensor]:
    tries = torch.full((size, TRIES, 2), -1)
    tries[:damaged, 0] = torch.tensor([3, Oddity.EMPTY.code])
    return {"index": torch.arange(size), "oddities": torch.zeros(size, dtype=torch.int64), "damaged": tries}


def test_too_large_a_share_ends_it_but_not_before_enough_were_met():
    log = log_of(Pictures(100, {}), 0.2)
    for _ in range(FEWEST // 100 - 1):
        log.add(batch_of(60))
    with pytest.raises(ValueError, match=r"300 of 500 pictures met can't be used \(1 empty\), more than data.max_damaged, 20%"):
        log.add(batch_of(60))
    log = log_of(Pictures(100, {}), 0.2)
    for _ in range(3 * FEWEST // 100):
        log.add(batch_of(20))  # exactly the share
    with pytest.raises(ValueError, match="more than data.max_damaged"):
        log.add(batch_of(21))


def test_no_usable_picture_among_many_ends_it_at_once():
    broken = Pictures(50, dict.fromkeys(range(50), Oddity.TOO_SMALL))
    example = examples(broken)[0]
    assert (example["damaged"] >= 0).all() and example["x0"].max() == -1
    with pytest.raises(ValueError, match=rf"{TRIES} pictures in a row can't be used \({TRIES} too small\)"):
        log_of(broken).add(default_collate([example]))
    almost = Pictures(50, {int(i): Oddity.EMPTY for i in epoch_order(0, 0, 50)[: TRIES - 1]})
    assert log_of(almost).add(default_collate([examples(almost)[0]]))


def test_a_training_goes_on_past_damage_and_tells_of_it(tmp_path):
    messages: list[str] = []
    train(recipe(60, 0.5), Pictures(10, DAMAGED, {1: (Oddity.CMYK,)}), tmp_path, on_message=messages.append)
    assert sum(message.startswith(("p3.png is empty", "p7.png is truncated", "p8.png is empty")) for message in messages) == 3
    assert messages[-1].startswith("odd pictures of 60 met\nkind") and "CMYK" in messages[-1]


@pytest.mark.parametrize("workers", [0, 2])
def test_resident_pictures_give_the_same_examples(workers):
    """Crops, mirrored or not, taken on the device from pictures read once are those that are cut as they are read."""
    rng = np.random.default_rng(0)
    pictures = Pictures(10, DAMAGED, {1: (Oddity.GREYSCALE, Oddity.ROTATED)})
    pixels = rng.integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    pictures.pixels_of = lambda index: pixels[index]
    resident = ResidentPictures(pictures, torch.device("cpu"), workers)
    small = {"network": {**NETWORK, "low_res_size": 4, "aug_level": True}, "phases": (Phase(size=4, images=100, batch_size=4),)}
    for made in (recipe(), replace(recipe(), **small, augmentation=Augmentation(noise=0.5, blur=1.0))):
        one, other = (TrainingExamples(source, made, made.phases[0], 2) for source in (pictures, resident))
        whole, kept = (each.complete(each.read(range(60))) for each in (one, other))
        assert kept.keys() - whole.keys() == {"top", "left", "flip"} and whole.keys() - kept.keys() == {"pixels"}
        assert all(torch.equal(whole[key], kept[key]) for key in whole.keys() & kept.keys())
        assert len({tuple(x) for x in whole["x0"].flatten(1).tolist()}) > 7  # many squares


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_on_damaged_pictures_resumes_to_the_bit(tmp_path, workers, resident):
    pictures, steps = Pictures(10, DAMAGED), []

    class Killed(Exception):
        pass

    def kill(images_seen: int) -> None:
        steps.append(images_seen)
        if len(steps) == 11:
            raise Killed

    whole = train(recipe(80, 0.5), pictures, tmp_path / "whole")
    with pytest.raises(Killed):
        train(recipe(80, 0.5), pictures, tmp_path / "stopped", on_step=kill, workers=workers, resident=resident)
    messages: list[str] = []
    resumed = train(
        recipe(80, 0.5), pictures, tmp_path / "stopped", on_message=messages.append, workers=workers, resident=resident
    )
    assert messages[0] == "continued from 40 images"
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_a_training_on_too_much_damage_stops(tmp_path):
    pictures = Pictures(10, DAMAGED)
    with pytest.raises(ValueError, match="of 500 pictures met can't be used"):
        train(recipe(2000, 0.2, batch_size=100), pictures, tmp_path)
