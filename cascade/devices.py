"""Where networks run."""

from __future__ import annotations

import os

import torch


def find_device(name: str | None = None) -> torch.device:
    """The device of this name; None = an accelerator if there is one, else the CPU; under torchrun that of this process.

    Raises:
        ValueError: if the name is not one of a device, or this machine has no such device.
    """
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    count = torch.accelerator.device_count() if here is not None else 0
    if name is None:
        local = os.environ.get("LOCAL_RANK", "")
        return torch.device(here.type, int(local)) if here and count > 1 and local.isdecimal() else here or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device is {name!r}, expected cpu, cuda, cuda:1, mps or the like") from None
    if device.type != "cpu" and (here is None or device.type != here.type or (device.index or 0) >= count):
        known = ", ".join(["cpu", *(f"{here.type}:{index}" for index in range(count) if here is not None)])
        raise ValueError(f"device is {name!r}, but this machine has {known} only")
    return device
