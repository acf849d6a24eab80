"""A stage's network in torch and as `cascade export` writes it, in other engines: `python benchmarks/engines.py emoji EXPORTED`.

Milliseconds of one evaluation of a batch, as a guided step has it (two images) and as one image; medians of alternated rounds.
ONNX Runtime runs in float32. OpenVINO, where it is installed, runs the same file in float32 and with bfloat16 as its precision.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from cascade import CascadePipeline
from cascade.stages.cpu_convolutions import packed_convolutions


@torch.no_grad()
def engines_of(stage: Any, path: Path, coarse: bool, batch: int) -> dict[str, Callable[[], Any]]:
    """What evaluates the network once, by the engine's name."""
    unet = stage.unet.to(memory_format=torch.channels_last)
    size, small = stage.size, getattr(stage.unet.config, "low_res_size", None)
    given = {"x_t": torch.randn(batch, 3, size, size), "log_snr": torch.full((batch,), -4.0 if coarse else 4.0)}
    given |= {"class_labels": torch.zeros(batch, dtype=torch.long)}
    given |= {} if small is None else {"low_res": torch.rand(batch, 3, small, small)}
    given |= {"aug_level": torch.zeros(batch)} if stage.unet.config.aug_level else {}
    arrays = {name: value.numpy() for name, value in given.items()}

    def of_torch(mixed: bool) -> Callable[[], Any]:
        def run() -> Any:
            with torch.no_grad():
                return unet(**given)

        def packed() -> Any:
            with packed_convolutions(unet, mixed=mixed):
                run()  # lays the weights out
                begun = time.perf_counter()
                run()
                return time.perf_counter() - begun

        return packed

    def timed(run: Callable[[], Any]) -> Callable[[], float]:
        def call() -> float:
            begun = time.perf_counter()
            run()
            return time.perf_counter() - begun

        return call

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options)
    found = {"torch, float32": of_torch(False), "torch, mixed": of_torch(True)}
    found["ONNX Runtime, float32"] = timed(lambda: session.run(None, arrays))
    if importlib.util.find_spec("openvino"):
        import openvino

        for precision in ("f32", "bf16"):
            core = openvino.Core()
            settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
            compiled = core.compile_model(core.read_model(path), "CPU", settings)
            found[f"OpenVINO, {precision}"] = timed(lambda compiled=compiled: compiled(arrays))
    for call in found.values():
        call()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("exported", type=Path, help="folder that `cascade export` wrote")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    cascade = CascadePipeline.from_pretrained(options.model, dtype="float32")
    record = json.loads((options.exported / "cascade.onnx.json").read_text("utf-8"))
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, onnxruntime {onnxruntime.__version__}\n")
    for said in record["stages"]:
        stage = cascade.stages[said["name"]]
        batch = 2 if stage.config["guidance_scale"] != 1 else 1
        for key in ("file", "coarse_file"):
            if key not in said:
                continue
            found = engines_of(stage, options.exported / said[key], key == "coarse_file", batch)
            rounds: dict[str, list[float]] = {name: [] for name in found}
            for _ in range(options.rounds):
                for name, call in found.items():
                    rounds[name].append(call())
            shown = ", ".join(f"{name} {np.round(statistics.median(values) * 1e3, 1)} ms" for name, values in rounds.items())
            print(f"{said[key]}, {batch} x {stage.size} px: {shown}", flush=True)


if __name__ == "__main__":
    main()
