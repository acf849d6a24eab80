"""The published checkpoints by file name: configuration, licence, and where they are published. The one home of these facts.

Flags are those of the projects' own instructions for each file. Parameter counts are of the whole network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NON_COMMERCIAL = "CC BY-NC-SA 4.0, non-commercial use only"
LICENCES = {
    "guided-diffusion": "MIT", "guided-diffusion-sr": "MIT", "guided-diffusion-classifier": "MIT", "improved-diffusion": "MIT",
    "improved-diffusion-sr": "MIT", "consistency": "MIT", "edm": NON_COMMERCIAL, "edm2": NON_COMMERCIAL, "sr3": "Apache-2.0",
    "sr3-ddpm": "Apache-2.0",
}  # fmt: skip
"""Licence of each family's published code and weights, as its repository states it."""

SOURCES = {
    "guided-diffusion": "https://github.com/openai/guided-diffusion",
    "guided-diffusion-sr": "https://github.com/openai/guided-diffusion",
    "guided-diffusion-classifier": "https://github.com/openai/guided-diffusion",
    "improved-diffusion": "https://github.com/openai/improved-diffusion",
    "improved-diffusion-sr": "https://github.com/openai/improved-diffusion",
    "consistency": "https://github.com/openai/consistency_models",
    "edm": "https://github.com/NVlabs/edm",
    "edm2": "https://github.com/NVlabs/edm2",
    "sr3": "https://github.com/Janspiry/Image-Super-Resolution-via-Iterative-Refinement",
    "sr3-ddpm": "https://github.com/Janspiry/Image-Super-Resolution-via-Iterative-Refinement",
}
"""Project that published each family."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A published file.

    file: Its name.
    family: As `cascade.stages.published.load` takes it.
    config: The configuration of its network.
    url: Where it is published.
    parameters: Learned numbers of the network.
    keys: Tensors of the network; files of EDM and SR3 hold constants beside them.
    """

    file: str
    family: str
    config: Mapping[str, Any]
    url: str
    parameters: int
    keys: int

    @property
    def licence(self) -> str:
        return LICENCES[self.family]


_ADM: dict[str, Any] = {
    "num_channels": 256, "num_res_blocks": 2, "num_heads": 4, "num_head_channels": 64, "attention_resolutions": "32,16,8",
    "class_cond": True, "use_scale_shift_norm": True, "resblock_updown": True, "learn_sigma": True, "diffusion_steps": 1000,
    "noise_schedule": "linear", "predict_xstart": False, "rescale_timesteps": False,
}  # fmt: skip
_ADM_BASE = {**_ADM, "use_new_attention_order": False}
_ADM_64 = {
    "image_size": 64,
    "num_channels": 192,
    "num_res_blocks": 3,
    "noise_schedule": "cosine",
    "use_new_attention_order": True,
}
_CLASSIFIER: dict[str, Any] = {
    "classifier_width": 128, "classifier_depth": 2, "classifier_attention_resolutions": "32,16,8",
    "classifier_use_scale_shift_norm": True, "classifier_resblock_updown": True, "classifier_pool": "attention",
}  # fmt: skip
_IMPROVED: dict[str, Any] = {
    "num_channels": 128, "num_res_blocks": 3, "num_heads": 4, "attention_resolutions": "16,8", "class_cond": False,
    "use_scale_shift_norm": True, "learn_sigma": True, "diffusion_steps": 4000, "noise_schedule": "cosine",
    "predict_xstart": False, "rescale_timesteps": True,
}  # fmt: skip
_IMPROVED_CONDITIONAL = {"num_channels": 192, "class_cond": True, "rescale_timesteps": False}
_IMPROVED_LSUN = {
    "image_size": 256, "num_res_blocks": 2, "num_heads": 1, "use_scale_shift_norm": False, "attention_resolutions": "16",
    "diffusion_steps": 1000, "noise_schedule": "linear", "rescale_timesteps": False,
}  # fmt: skip
_CONSISTENCY: dict[str, Any] = {
    "sigma_min": 0.002, "sigma_max": 80.0, "image_size": 64, "num_channels": 192, "num_res_blocks": 3, "num_heads": 4,
    "num_head_channels": 64, "attention_resolutions": "32,16,8", "class_cond": True, "use_scale_shift_norm": True,
    "resblock_updown": True, "learn_sigma": False,
}  # fmt: skip
_CONSISTENCY_LSUN = {**_CONSISTENCY, "image_size": 256, "num_channels": 256, "num_res_blocks": 2, "class_cond": False}
_SR3 = {"in_channel": 6, "out_channel": 3, "inner_channel": 64, "attn_res": [16], "dropout": 0.2}
_SR3_SCHEDULE = {"schedule": "linear", "n_timestep": 2000, "linear_start": 1e-6, "linear_end": 0.01}


def _openai(
    folder: str, file: str, family: str, flags: Mapping[str, Any], parameters: int, keys: int, **further: Any
) -> Checkpoint:
    config = {"family": family, "flags": dict(flags), **further}
    url = f"https://openaipublic.blob.core.windows.net/{folder}/{file}"
    return Checkpoint(file=file, family=family, config=config, url=url, parameters=parameters, keys=keys)


def _adm(file: str, parameters: int, keys: int, **flags: Any) -> Checkpoint:
    family = "guided-diffusion-sr" if "large_size" in flags else "guided-diffusion"
    return _openai(
        "diffusion/jul-2021", file, family, {**(_ADM if "large_size" in flags else _ADM_BASE), **flags}, parameters, keys
    )


def _classifier(size: int, parameters: int, keys: int, **flags: Any) -> Checkpoint:
    return _openai(
        "diffusion/jul-2021",
        f"{size}x{size}_classifier.pt",
        "guided-diffusion-classifier",
        {**_CLASSIFIER, "image_size": size, **flags},
        parameters,
        keys,
    )


def _improved(file: str, parameters: int, keys: int, **flags: Any) -> Checkpoint:
    family = "improved-diffusion-sr" if "large_size" in flags else "improved-diffusion"
    return _openai("diffusion/march-2021", file, family, {**_IMPROVED, **flags}, parameters, keys)


def _consistency(data: str, parameters: int, keys: int, flags: Mapping[str, Any]) -> list[Checkpoint]:
    modes = {
        f"edm_{data}_ema.pt": "edm", f"cd_{data}_l2.pt": "consistency_distillation",
        f"cd_{data}_lpips.pt": "consistency_distillation", f"ct_{data}.pt": "consistency_training",
    }  # fmt: skip
    return [
        _openai("consistency", file, "consistency", flags, parameters, keys, training_mode=mode) for file, mode in modes.items()
    ]


def _sr3(file: str, low_res_size: int, size: int, parameters: int, keys: int, **unet: Any) -> Checkpoint:
    diffusion = {"image_size": size, "channels": 3, "conditional": True}
    config: dict[str, Any] = {"family": "sr3", "unet": {**_SR3, **unet}, "diffusion": diffusion, "low_res_size": low_res_size}
    config["beta_schedule"] = _SR3_SCHEDULE
    return Checkpoint(file=file, family="sr3", config=config, url=SOURCES["sr3"], parameters=parameters, keys=keys)


_EDM_64 = {
    "img_resolution": 64, "img_channels": 3, "label_dim": 1000, "model_type": "DhariwalUNet", "model_channels": 192,
    "channel_mult": [1, 2, 3, 4], "sigma_data": 0.5,
}  # fmt: skip
"""EDM's ImageNet-64 network; its other arguments are the defaults of its class."""
EDM2_WIDTHS = {"xs": 128, "s": 192, "m": 256, "l": 320, "xl": 384}
_EDM2_SIZES = {"xs": 124_710_949, "s": 280_209_381, "m": 497_803_173, "l": 777_492_325, "xl": 1_119_276_837}
_EDM2_KEYS = 203
_EDM2_FILE = re.compile(r"edm2-img64-(xs|s|m|l|xl)-\d{7}-\d\.\d{3}\.pkl")
"""Size, training length in thousands of images, and EMA length of EDM2's pixel-space files."""


def _edm2(file: str, size: str) -> Checkpoint:
    options = {"img_resolution": 64, "img_channels": 3, "label_dim": 1000, "model_channels": EDM2_WIDTHS[size]}
    config = {"family": "edm2", "init_kwargs": options}
    url = f"https://nvlabs-fi-cdn.nvidia.com/edm2/posthoc-reconstructions/{file}"
    return Checkpoint(file=file, family="edm2", config=config, url=url, parameters=_EDM2_SIZES[size], keys=_EDM2_KEYS)


_ALL = [
    _adm("64x64_diffusion.pt", 295_904_454, 541, **_ADM_64),
    _adm("128x128_diffusion.pt", 421_529_606, 493, image_size=128, num_head_channels=-1),
    _adm("256x256_diffusion.pt", 553_838_086, 567, image_size=256),
    _adm("256x256_diffusion_uncond.pt", 552_814_086, 566, image_size=256, class_cond=False),
    _adm("512x512_diffusion.pt", 558_997_638, 645, image_size=512),
    *(
        _adm(f"lsun_{data}.pt", 552_814_086, 566, image_size=256, class_cond=False)
        for data in ("bedroom", "cat", "horse", "horse_nodropout")
    ),
    _adm("64_256_upsampler.pt", 311_795_910, 567, large_size=256, small_size=64, num_channels=192, num_head_channels=-1),
    _adm(
        "128_512_upsampler.pt", 308_835_270, 537, large_size=512, small_size=128, num_channels=192, attention_resolutions="32,16"
    ),
    _classifier(64, 65_438_568, 307, classifier_depth=4),
    _classifier(128, 42_568_040, 221),
    _classifier(256, 54_096_360, 249),
    _classifier(512, 54_448_360, 281),
    _improved("imagenet64_cond_270M_250K.pt", 273_049_350, 451, image_size=64, **_IMPROVED_CONDITIONAL),
    _improved(
        "upsample_cond_500K.pt",
        279_792_390,
        457,
        large_size=256,
        small_size=64,
        num_res_blocks=2,
        noise_schedule="linear",
        **_IMPROVED_CONDITIONAL,
    ),
    _improved("imagenet64_uncond_100M_1500K.pt", 121_063_942, 450, image_size=64),
    _improved("imagenet64_uncond_vlb_100M_1500K.pt", 121_063_942, 450, image_size=64),
    _improved("cifar10_uncond_50M_500K.pt", 52_546_438, 446, image_size=32),
    _improved("cifar10_uncond_vlb_50M_500K.pt", 52_546_438, 446, image_size=32),
    _improved("lsun_uncond_100M_1200K_bs128.pt", 113_676_678, 426, **_IMPROVED_LSUN),
    _improved("lsun_uncond_100M_2400K_bs64.pt", 113_676_678, 426, **_IMPROVED_LSUN),
    *_consistency("imagenet64", 295_899_267, 541, _CONSISTENCY),
    *_consistency("bedroom256", 552_807_171, 566, _CONSISTENCY_LSUN),
    *_consistency("cat256", 552_807_171, 566, _CONSISTENCY_LSUN),
    Checkpoint(
        file="edm-imagenet-64x64-cond-adm.pkl",
        family="edm",
        config={"family": "edm", "init_kwargs": _EDM_64},
        url="https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-imagenet-64x64-cond-adm.pkl",
        parameters=295_899_267,
        keys=541,
    ),
    _edm2("edm2-img64-s-1073741-0.075.pkl", "s"),
    _edm2("edm2-img64-m-2147483-0.060.pkl", "m"),
    _edm2("edm2-img64-l-1073741-0.040.pkl", "l"),
    _edm2("edm2-img64-xl-0671088-0.040.pkl", "xl"),
    _edm2("edm2-img64-s-1073741-0.045.pkl", "s"),
    _edm2("edm2-img64-xs-0134217-0.110.pkl", "xs"),
    _sr3("I640000_E37_gen.pth", 16, 128, 97_807_491, 362, channel_multiplier=[1, 2, 4, 8, 8], res_blocks=2, norm_groups=32),
    _sr3(
        "I830000_E32_gen.pth",
        64,
        512,
        155_334_339,
        229,
        channel_multiplier=[1, 2, 4, 8, 16],
        res_blocks=1,
        norm_groups=16,
        attn_res=[],
    ),
]
CHECKPOINTS = {checkpoint.file: checkpoint for checkpoint in _ALL}
"""Published files by name. EDM2's other EMA lengths are known to `known` too."""


def known(file: str) -> Checkpoint | None:
    """The published checkpoint of a file name; None for another name."""
    edm2 = _EDM2_FILE.fullmatch(file)
    return CHECKPOINTS.get(file) or (_edm2(file, edm2[1]) if edm2 else None)
