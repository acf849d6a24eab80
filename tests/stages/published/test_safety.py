"""Files that should not be trusted, and files that do not fit: one sentence each, and nothing of them is run."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mock_pickle
import numpy as np
import pytest
import torch
from references import arrays, config_of, relative_error, weights_of
from safetensors.torch import load_file, save_file

from cascade.stages import published


class Hostile:
    """Unpickles as a call of `os.system` that leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("family", ["edm", "edm2"])
@pytest.mark.parametrize("given_config", [True, False])
def test_pickle_of_the_published_layout_is_read(family: str, given_config: bool, tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "network-snapshot.pkl"
    tensors = mock_pickle.as_published(load_file(weights_of(family)), family)
    mock_pickle.write(path, tensors, family, config_of(family), source=f"open({str(trace)!r}, 'w')")

    config = config_of(family)
    described = (
        config if given_config or family == "edm" else None
    )  # edm: the small network has another head width than the source
    network = published.load(family, path, described)

    io = arrays(family)
    got = network(x=io["x"][0], sigma=io["sigma"][0], class_labels=io["class_labels"][0])
    assert relative_error(got, io["denoised"][0]) < 1e-5
    assert not trace.exists()


def test_pickle_says_its_own_configuration(tmp_path: Path) -> None:
    path = tmp_path / "mine.pkl"
    tensors = mock_pickle.as_published(load_file(weights_of("edm2")), "edm2")
    mock_pickle.write(path, tensors, "edm2", {"init_kwargs": {**config_of("edm2")["init_kwargs"], "dropout": float("inf")}})
    folder = published.convert("edm2", path, None, tmp_path / "stage")
    kept = json.loads((folder / "unet" / "config.json").read_text())["published"]["init_kwargs"]
    assert kept == {name: value for name, value in config_of("edm2")["init_kwargs"].items() if name != "dropout"}

    mock_pickle.write(path, tensors, "edm2", {"init_kwargs": {**config_of("edm2")["init_kwargs"], "dropout": np.float64(0.1)}})
    with pytest.raises(ValueError, match="mine.pkl records arguments of its network that are not plain values"):
        published.load("edm2", path)

    tensors = mock_pickle.as_published(load_file(weights_of("edm")), "edm")
    mock_pickle.write(path, tensors, "edm", {"init_kwargs": {**config_of("edm")["init_kwargs"], "model_type": "SongUNet"}})
    with pytest.raises(ValueError, match="model_type is 'SongUNet'"):
        published.load("edm", path)


def test_edm2_resampling_filter_is_accepted_as_published_and_no_other(tmp_path: Path) -> None:
    options = config_of("edm2")["init_kwargs"]
    path, tensors = tmp_path / "mine.pkl", mock_pickle.as_published(load_file(weights_of("edm2")), "edm2")
    mock_pickle.write(path, tensors, "edm2", {"init_kwargs": {**options, "resample_filter": [1, 1]}})
    network, io = published.load("edm2", path), arrays("edm2")
    assert relative_error(network(io["x"][0], io["sigma"][0], io["class_labels"][0]), io["denoised"][0]) < 1e-5
    mock_pickle.write(path, tensors, "edm2", {"init_kwargs": {**options, "resample_filter": [1, 3, 3, 1]}})
    with pytest.raises(ValueError, match=r"resample_filter is \[1, 3, 3, 1\]; only the published one, \[1, 1\], is supported"):
        published.load("edm2", path)


def hidden_in_state(trace: Path, path: Path) -> None:
    tensors = mock_pickle.as_published(load_file(weights_of("edm")), "edm")
    config = {"init_kwargs": {**config_of("edm")["init_kwargs"], "note": Hostile(trace)}}
    mock_pickle.write(path, tensors, "edm", config)


def hidden_in_tensor(trace: Path, path: Path) -> None:
    """A nested torch file, which torch's own `_load_from_bytes` would unpickle without care."""

    class Storage:
        def __reduce__(self) -> Any:
            return torch.storage._load_from_bytes, (pickle.dumps(Hostile(trace)),)

    path.write_bytes(pickle.dumps({"ema": Storage()}))


def plain(trace: Path, path: Path) -> None:
    path.write_bytes(pickle.dumps(Hostile(trace)))


@pytest.mark.parametrize("family", ["edm", "edm2"])
@pytest.mark.parametrize("write", [plain, hidden_in_state, hidden_in_tensor])
def test_hostile_pickle_is_refused_by_name_and_not_run(family: str, write: Callable[[Path, Path], None], tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "network.pkl"
    write(trace, path)
    with pytest.raises(ValueError, match=r"network.pkl was refused: it asks for (posix|nt)\.system"):
        published.load(family, path, config_of(family))
    assert not trace.exists()


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_hostile_torch_file_is_refused_and_not_run(suffix: str, tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / f"64x64_diffusion{suffix}"
    torch.save({"weight": Hostile(trace)}, path)
    with pytest.raises(ValueError, match="was refused"):
        published.load("guided-diffusion", path, config_of("guided-diffusion"))
    assert not trace.exists()


@pytest.mark.parametrize("family", ["consistency", "edm", "sr3"])
def test_truncated_files_are_refused(family: str, tmp_path: Path) -> None:
    tensors = load_file(weights_of(family))
    whole, cut = tmp_path / "whole", {}
    cut["safetensors"] = weights_of(family).read_bytes()
    torch.save(tensors, whole)
    cut["pt"] = whole.read_bytes()
    if family == "edm":
        mock_pickle.write(whole, mock_pickle.as_published(tensors, family), family, config_of(family))
        cut["pkl"] = whole.read_bytes()
    for suffix, content in cut.items():
        for share in (0.0, 0.01, 0.6, 0.999):
            path = tmp_path / f"cut.{suffix}"
            path.write_bytes(content[: int(share * len(content))])
            with pytest.raises(ValueError, match="cut."):
                published.load(family, path, config_of(family))


def changed(family: str, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    tensors = load_file(weights_of(family))
    change(tensors)
    save_file(tensors, tmp_path / "changed.safetensors")
    return tmp_path / "changed.safetensors"


def test_missing_left_over_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["time_embed.0.bias"]
        tensors["time_embed.9.bias"] = torch.zeros(1)
        tensors["out.2.bias"] = torch.zeros(7)

    path = changed("guided-diffusion", tmp_path, change)
    with pytest.raises(ValueError) as error:
        published.load("guided-diffusion", path, config_of("guided-diffusion"))
    for part in (
        "1 of 145 tensors are missing (time_embed.0.bias)",
        "1 are left over (time_embed.9.bias)",
        "out.2.bias is [7] instead of [6]",
    ):
        assert part in str(error.value)


def test_file_of_another_family_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit this network: 63 of 63 tensors are missing .* another family"):
        published.load("edm2", weights_of("edm"), config_of("edm2"))
    with pytest.raises(ValueError, match="configuration is of family edm, but the family asked for is edm2"):
        published.load("edm2", weights_of("edm"), config_of("edm"))


def with_flags(family: str, **flags: Any) -> dict[str, Any]:
    return {**config_of(family), "flags": {**config_of(family)["flags"], **flags}}


def test_wrong_flags_are_refused() -> None:
    weights = weights_of("guided-diffusion")
    without = with_flags("guided-diffusion")
    del without["flags"]["use_new_attention_order"]
    for config, problem in (
        (with_flags("guided-diffusion", num_channels=32), "have another shape"),
        (with_flags("guided-diffusion", num_head_channels=24), "can't be split into heads"),
        (with_flags("guided-diffusion", learn_sigma=False), "have another shape"),
        (with_flags("guided-diffusion", depth=3), "unknown options depth"),
        (with_flags("guided-diffusion", channel_mult="2,2"), "give one of them"),
        (without, "lacks use_new_attention_order"),
        ({"family": "guided-diffusion"}, "no 'flags'"),
    ):
        with pytest.raises(ValueError, match=problem):
            published.load("guided-diffusion", weights, config)


def test_sr3_file_of_another_schedule_is_refused() -> None:
    config = {**config_of("sr3"), "beta_schedule": {**config_of("sr3")["beta_schedule"], "linear_end": 0.02}}
    with pytest.raises(ValueError, match="saved with 400 steps of beta from 1e-06 to 0.01"):
        published.load("sr3", weights_of("sr3"), config)


def test_unknown_file_without_config_is_refused() -> None:
    for family, needed in (("guided-diffusion", "'flags'"), ("edm", "'init_kwargs'"), ("sr3", "'unet'")):
        with pytest.raises(ValueError, match=f"not a published file of {family} known by name.*{needed}"):
            published.load(family, weights_of(family))


def test_known_file_of_another_family_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "64_256_upsampler.pt"
    with pytest.raises(ValueError, match="is a guided-diffusion-sr checkpoint, but the family asked for is guided-diffusion"):
        published.load("guided-diffusion", path)


def test_unknown_family_missing_file_and_strange_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="family is 'adm', expected one of guided-diffusion"):
        published.load("adm", tmp_path / "x.pt")
    with pytest.raises(ValueError, match="is not a file"):
        published.load("edm", tmp_path / "x.pkl", config_of("edm"))
    (tmp_path / "x.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="expected .pt, .pth or .safetensors"):
        published.load("consistency", tmp_path / "x.bin", config_of("consistency"))
    torch.save({"state_dict": {}}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="not a plain dict of tensors .sets of weights in it: none"):
        published.load("consistency", tmp_path / "x.pt", config_of("consistency"))
