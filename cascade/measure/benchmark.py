"""A model measured by a protocol, so that its figures can stand beside published ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cascade.eval.report import Report
from cascade.eval.report_files import write_report
from cascade.measure.protocols import Protocol, load_protocol
from cascade.measure.samples import SampleJob, samples_report
from cascade.measure.super_resolution import evaluate_sr
from cascade.progress import OnProgress

if TYPE_CHECKING:
    from cascade.pipeline import CascadePipeline
    from cascade.stage_sampling import Sampling


def benchmark(
    cascade: CascadePipeline,
    protocol: Protocol | str,
    out: str | Path,
    *,
    num_images: int | None = None,
    seed: int = 0,
    reference: str | None = None,
    weights: Path | None = None,
    resamples: int = 100,
    sampling: Sampling | None = None,
    batch_size: int | None = None,
    processes: int | None = None,
    threads: int = 1,
    on_progress: OnProgress | None = None,
) -> Report | None:
    """Sample a model by a protocol, or enlarge real images by its last stage, score the images, and write a report.

    The same call goes on where one was stopped.

    Args:
        cascade: The model.
        protocol: How it is measured; one that comes with the package by its name, or a YAML file.
        out: Folder of images and report: report.md, report.json and report.html.
        num_images: How many samples of each of the protocol's seeds; None = as many as it says.
        seed: Added to the protocol's seeds.
        reference: Real images or statistics, as `cascade.measure.named.reference_source` takes them; None = the protocol's own.
        weights: File of the feature network; None = its own, or downloaded once.
        resamples: Redrawn sets behind each 95 % interval; 0 = no intervals.
        sampling: How each stage is sampled, as `cascade.sampling(...)` gives it.
        batch_size, processes, threads: Of the sampling run, as `sample_run` takes them.
        on_progress: Told of sampling, features and intervals.

    Returns:
        The report; None while processes that torchrun started still make their shares of the samples.

    Raises:
        ValueError: if the model can't be measured so, or the folder holds something else.
        ConnectionError: if weights or statistics must be downloaded and can't be.
    """
    protocol = protocol if isinstance(protocol, Protocol) else load_protocol(protocol)
    source = reference or protocol.reference
    if source is None:
        raise ValueError(f"protocol {protocol.name} needs a reference: {protocol.reference_file}")
    count = num_images or protocol.num_images
    if protocol.kind == "super-resolution":
        return evaluate_sr(
            cascade,
            out,
            images=source,
            num_images=count,
            seed=seed,
            extractor=protocol.extractor,
            weights=weights,
            crop_rule=protocol.crop_rule,
            resamples=resamples,
            sampling=sampling,
            batch_size=batch_size,
            protocol=protocol,
            on_progress=on_progress,
        )
    run = {"sampling": sampling, "batch_size": batch_size, "processes": processes, "threads": threads}
    report = samples_report(SampleJob(cascade, protocol, Path(out), count, seed, source, weights, resamples, on_progress, run))
    if report is not None:
        write_report(report, Path(out))
    return report
