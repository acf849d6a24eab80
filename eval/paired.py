"""Metrics of an image against its own original: PSNR, SSIM, and SR3's consistency with the low-resolution input.

All take uint8 RGB images, [N, height, width, 3], and return one float64 value per image, [N], so that a mean, an interval or a
worst case can be taken afterwards. The papers print means over images. All raise ValueError if the two sets don't fit.
"""

import numpy as np
from numpy.typing import NDArray

from cascade.eval.images import Images, area_downsample

PEAK = 255.0  # largest value of a pixel
WINDOW = 11  # pixels of SSIM's Gaussian window
WINDOW_SIGMA = 1.5  # its standard deviation in pixels
K1, K2 = 0.01, 0.03  # SSIM's two constants, as shares of the peak


def psnr(outputs: Images, originals: Images) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio in dB over all pixels and channels of an image; infinite for equal images."""
    _check_pair(outputs, originals)
    with np.errstate(divide="ignore"):
        return 10 * np.log10(PEAK**2 / _squared_error(outputs, originals))


def ssim(outputs: Images, originals: Images) -> NDArray[np.float64]:
    """Structural similarity in [-1, 1] (Wang, Bovik, Sheikh & Simoncelli 2004, Eqs. 13 to 17).

    Per channel, averaged over all places where the window fits, then over channels. Gaussian window of 11 pixels and sigma 1.5,
    its weights summing to 1, no padding. Raises ValueError if the images are smaller than the window.
    """
    _check_pair(outputs, originals)
    if min(outputs.shape[1:3]) < WINDOW:
        raise ValueError(f"SSIM looks through a window of {WINDOW} pixels, images are {outputs.shape[2]}x{outputs.shape[1]}")
    pairs = zip(outputs, originals, strict=True)
    return np.array([_ssim_of_one(x.astype(np.float64), y.astype(np.float64)) for x, y in pairs])


def consistency(outputs: Images, low_res: Images) -> NDArray[np.float64]:
    """Mean squared error between the area-averaged outputs and the inputs they were made from, in units of 1e-5.

    SR3's word and measure (arXiv:2104.07636, Table 1). Pixels count from 0 to 1; averages are not rounded. Low-resolution inputs
    that were rounded to 8 bits leave about 0.13 for a perfect output. SR3 does not state its pixel range; its inputs came from an
    antialiased bicubic filter, so figures are comparable with SR3's only for inputs made by area averaging in the same way, and
    only in order of magnitude. The inputs' side divides that of the outputs.
    """
    if len(outputs) != len(low_res):
        raise ValueError(f"there are {len(outputs)} outputs but {len(low_res)} low-resolution inputs; expected one for each")
    return _squared_error(area_downsample(outputs, low_res.shape[1]), low_res) / PEAK**2 * 1e5


def _squared_error(x: NDArray, y: NDArray) -> NDArray[np.float64]:
    return np.array([np.mean((a.astype(np.float64) - b) ** 2) for a, b in zip(x, y, strict=True)])


def _ssim_of_one(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (K1 * PEAK) ** 2, (K2 * PEAK) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return float((luminance * structure).mean())


def _blur(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted mean in the Gaussian window around each place where it fits, [H, W, C] -> [H - 10, W - 10, C]."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * WINDOW_SIGMA**2))
    weights /= weights.sum()
    height, width = image.shape[0] - WINDOW + 1, image.shape[1] - WINDOW + 1
    rows = sum(weight * image[i : i + height] for i, weight in enumerate(weights))
    return sum((weight * rows[:, i : i + width] for i, weight in enumerate(weights)), np.zeros(()))


def _check_pair(outputs: Images, originals: Images) -> None:
    for name, images in (("outputs", outputs), ("originals", originals)):
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(f"{name} are {images.dtype} of shape {images.shape}, expected uint8 RGB, [N, height, width, 3]")
    if outputs.shape != originals.shape:
        raise ValueError(f"outputs have shape {outputs.shape} but originals {originals.shape}; expected pairs of equal images")
