"""A cascade saved by version 0.1, and the inputs for which the outputs of its networks are stored."""

from pathlib import Path

import numpy as np
import torch

TINY = Path(__file__).parent / "saved" / "tiny"
STORED = TINY.with_suffix(".npz")
LOG_SNRS = (-12.0, -6.0, -2.5, 0.0, 3.0, 7.0, 12.0)
AUG_LEVELS = (0.0, 0.05, 0.2, 0.35, 0.5, 0.8, 1.0)


def wave(*shape, pace):
    """The same numbers in [-1, 1] on every machine."""
    values = np.sin(pace * np.arange(np.prod(shape), dtype=np.float64) ** 1.1)
    return torch.from_numpy(values.reshape(shape)).float()


def inputs(size, low_res_size=None):
    """Noisy image, log-SNR, class (3 = none), small image and augmentation level of every call of a network."""
    count = len(LOG_SNRS)
    labels = torch.arange(count) % 4
    x_t = wave(count, 3, size, size, pace=1.7)
    if low_res_size is None:
        return x_t, torch.tensor(LOG_SNRS), labels
    return x_t, torch.tensor(LOG_SNRS), labels, wave(count, 3, low_res_size, low_res_size, pace=0.37), torch.tensor(AUG_LEVELS)
