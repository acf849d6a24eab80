"""A cascade as ONNX files that run without torch: a network a file, and `cascade.onnx.json`, which says how they are sampled.

A file is one evaluation of a stage's denoiser, without guidance. Its inputs are those of `Denoiser.__call__` that the network
takes; the batch is dynamic, the sizes are the stage's own. A network that denoises noisy images at half their size
(`UNet.coarse_below`) becomes two files, one for each.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from cascade import __version__ as cascade_version
from cascade.files import complete_folder
from cascade.stages import unet
from cascade.stages.denoiser import Denoiser
from cascade.stages.noise import MAX_LOG_SNR
from cascade.stages.sampling import Run
from cascade.stages.stage import StagePipeline

if TYPE_CHECKING:
    from cascade.pipeline import CascadePipeline

OPSET = 18
"""Version of the ONNX operators that the files use."""
RECORD = "cascade.onnx.json"
TOLERANCE = 1e-3
"""Largest difference from torch, as a share of the output's largest value, at which a file is right."""


def export_onnx(cascade: CascadePipeline, folder: str | Path) -> Path:
    """Write every stage's networks into a folder, each checked against torch by onnxruntime on batches of other sizes.

    The folder appears only when all are right; one that is there is replaced if it is an export, and refused otherwise.

    Args:
        cascade: Of our own stages, in float32 on the CPU.
        folder: New, empty, or an earlier export.

    Returns:
        The folder.

    Raises:
        ValueError: if the folder is something else, or a stage can't be exported.
        ModuleNotFoundError: if `onnx` or `onnxruntime` is not installed.
        RuntimeError: if a file computes something else than torch.
    """
    import onnx  # noqa: F401  # said to be missing before any work

    target = Path(folder).absolute()
    if target.exists() and not (target / RECORD).is_file() and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"{target} is there already and is not an export; choose another folder, or remove it")
    for name, stage in cascade.stages.items():
        if not isinstance(stage, StagePipeline) or stage.guide_unet is not None:
            raise ValueError(
                f"stage {name!r} is a {type(stage).__name__} that isn't one network of ours, which alone can be exported"
            )
        if stage.unet.dtype != torch.float32 or stage.unet.device.type != "cpu":
            raise ValueError(f"stage {name!r} is in {stage.unet.dtype} on {stage.unet.device}; load it in float32 on the CPU")
    with complete_folder(target) as written:
        stages = [_export_stage(name, stage, written) for name, stage in cascade.stages.items()]
        record = {
            "model": cascade.name,
            "opset": OPSET,
            "classes": None if cascade.classes is None else list(cascade.classes.names),
            "stages": stages,
            "made_by": f"cascade-diffusion {cascade_version}, torch {torch.__version__}",
        }
        (written / RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return target


class _AtOneSize(nn.Module):
    """An evaluation of a network with its inputs in a row, as exporters want them; at half the images' size or at their own."""

    def __init__(self, network: Any, names: list[str], at_half_size: bool) -> None:
        super().__init__()
        self.network, self.names, self.at_half_size = network, names, at_half_size

    def forward(self, *inputs: Tensor) -> Tensor:
        given = dict(zip(self.names, inputs, strict=True))
        values = (given.get(name) for name in ("x_t", "log_snr", "class_labels", "low_res", "aug_level"))
        made: Tensor = (
            self.network.predict(self.at_half_size, *values) if isinstance(self.network, unet.UNet) else self.network(*values)
        )
        return made


def _export_stage(name: str, stage: StagePipeline, folder: Path) -> dict[str, Any]:
    """Write the files of a stage, and give what the record says of it."""
    network: Denoiser = stage.unet
    config = stage.unet.config
    size, low_res_size = stage.size, getattr(config, "low_res_size", None)
    below: Any = getattr(config, "coarse_below", None)
    files = {"file": (f"{name}.onnx", False)} | ({} if below is None else {"coarse_file": (f"{name}-coarse.onnx", True)})
    for file, at_half_size in files.values():
        low: float = -MAX_LOG_SNR if at_half_size or below is None else below
        high: float = below if at_half_size else MAX_LOG_SNR

        def inputs(count: int, low: float = low, high: float = high) -> dict[str, Tensor]:
            draw = torch.Generator().manual_seed(count)
            made = {"x_t": torch.randn(count, 3, size, size, generator=draw), "log_snr": torch.linspace(low, high, count)}
            if network.num_classes is not None:
                made["class_labels"] = torch.randint(network.num_classes, (count,), generator=draw)
            if low_res_size is not None:
                made["low_res"] = torch.rand(count, 3, low_res_size, low_res_size, generator=draw) * 2 - 1
            if getattr(config, "aug_level", False):
                made["aug_level"] = torch.full((count,), 0.1)
            return made

        _export(_AtOneSize(network, list(inputs(1)), at_half_size).eval(), inputs, folder / file)
    said: dict[str, Any] = {"name": name, **{key: file for key, (file, _) in files.items()}}
    said |= {"size": size, "low_res_size": low_res_size, "coarse_below": below, "prediction_type": network.prediction_type}
    said |= {"num_classes": network.num_classes, "null_label": network.null_label}
    said |= {key: stage.config.get(key) for key in ("guidance_scale", "guidance_interval", "aug_level")}
    if stage.scheduler is not None:
        steps = Run.of(stage.scheduler, stage.config["num_inference_steps"]).log_snr.clamp(-MAX_LOG_SNR, MAX_LOG_SNR)
        said |= {"scheduler": type(stage.scheduler).__name__, "log_snr": [round(value, 6) for value in steps.tolist()]}
    return said


def _signal_and_noise(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """As `noise.signal_and_noise`, without Sigmoid, which onnxruntime takes for 0 below -18."""
    return (1 + (-log_snr).exp()).rsqrt(), (1 + log_snr.exp()).rsqrt()


@torch.no_grad()
def _export(module: nn.Module, inputs: Any, path: Path) -> None:
    import numpy as np
    import onnxruntime

    names = list(inputs(2))
    with patch.object(unet, "signal_and_noise", _signal_and_noise), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        torch.onnx.export(
            module,
            tuple(inputs(2).values()),
            str(path),
            input_names=names,
            output_names=["prediction"],
            dynamic_axes={name: {0: "batch"} for name in (*names, "prediction")},
            opset_version=OPSET,
            dynamo=False,
        )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for count in (1, 3):
        given = inputs(count)
        want = module(*given.values()).numpy()
        (got,) = session.run(None, {name: value.numpy() for name, value in given.items()})
        apart = float(np.abs(got - want).max() / np.abs(want).max())
        if not apart <= TOLERANCE:
            raise RuntimeError(
                f"{path.name} computes something else than torch: {apart:.2g} of the largest value, at most {TOLERANCE}"
            )
