"""The joint between networks and sampling: what a denoiser is, conversions between its targets, guidance as a wrapper of it."""

from __future__ import annotations

import copy
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from cascade.stages.noise import like_image, signal_and_noise

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


@runtime_checkable
class Denoiser(Protocol):
    """A network and how it was trained. Guidance wraps a denoiser and is one.

    prediction_type: What it predicts: "epsilon" (the noise), "sample" (x0) or "v_prediction" (alpha * eps - sigma * x0).
    num_classes: Number of classes; None where it takes no class.
    null_label: The label that means "no class", from training with label dropout; None = no classifier-free guidance.
    learned_variance: Whether it also predicts the variance of the reverse step, and returns 2C channels: the prediction, then the
        variance.
    """

    prediction_type: str
    num_classes: int | None
    null_label: int | None
    learned_variance: bool

    def __call__(
        self,
        x_t: Tensor,
        log_snr: Tensor,
        class_labels: Tensor | None = None,
        low_res: Tensor | None = None,
        aug_level: Tensor | None = None,
    ) -> Tensor:
        """Predict.

        Args:
            x_t: Noisy images, variance preserving, [B, C, H, W].
            log_snr: Their natural log signal-to-noise variance ratio, [B].
            class_labels: Class indices, int64 [B]; None for a denoiser without classes.
            low_res: Conditioning images in [-1, 1], already augmented, at their own size [B, C, h, w]; None for a base stage.
            aug_level: Augmentation level of `low_res` in [0, 1], [B]; None where none was used in training.

        Returns:
            The prediction, shape and number type of `x_t`, whatever the number type of the weights.
        """
        ...


class Wrapper:
    """What a denoiser around another one has of it: how that was trained. Guidance, tiles and consistency are such."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser
        self.prediction_type, self.num_classes = denoiser.prediction_type, denoiser.num_classes
        self.null_label, self.learned_variance = denoiser.null_label, denoiser.learned_variance
        self.detail_std = detail_std_of(denoiser)

    def at_level(self, log_snr: float) -> Self:
        """This, around what `at_level` makes of the denoiser inside."""
        made = copy.copy(self)
        made.denoiser = at_level(self.denoiser, log_snr)
        return made


def detail_std_of(denoiser: Denoiser) -> float | None:
    """Std of the details that a network was built to draw (`UNet`'s `detail_std`); None = whole images, of std about 1."""
    return getattr(denoiser, "detail_std", None)


def at_level(denoiser: Denoiser, log_snr: float) -> Denoiser:
    """The denoiser for images that all have this log-SNR, as in sampling; what depends on it is decided now, on the host.

    So nothing has to look at the log-SNR that the images' accelerator is given, which would wait for it. A denoiser that has no
    method of this name decides nothing by it.
    """
    made: Denoiser = denoiser if not hasattr(type(denoiser), "at_level") else denoiser.at_level(log_snr)  # type: ignore[attr-defined]
    return made


def to_x0(prediction: Tensor, prediction_type: str, x_t: Tensor, log_snr: Tensor) -> Tensor:
    """Denoised image that a prediction means (Salimans & Ho 2022, arXiv:2202.00512, appendix D). Shapes as in `Denoiser`."""
    alpha, sigma = (like_image(a, x_t) for a in signal_and_noise(log_snr))
    if prediction_type == "sample":
        return prediction
    if prediction_type == "epsilon":
        return (x_t - sigma * prediction) / alpha
    if prediction_type == "v_prediction":
        return alpha * x_t - sigma * prediction
    raise ValueError(f"prediction_type is {prediction_type!r}, expected one of {PREDICTION_TYPES}")


def from_x0(x0: Tensor, prediction_type: str, x_t: Tensor, log_snr: Tensor) -> Tensor:
    """The prediction of a type that means the denoised image `x0`: the inverse of `to_x0`."""
    alpha, sigma = (like_image(a, x_t) for a in signal_and_noise(log_snr))
    if prediction_type == "sample":
        return x0
    if prediction_type == "epsilon":
        return (x_t - alpha * x0) / sigma
    if prediction_type == "v_prediction":
        return (alpha * x_t - x0) / sigma
    raise ValueError(f"prediction_type is {prediction_type!r}, expected one of {PREDICTION_TYPES}")


def convert(prediction: Tensor, source: str, target: str, x_t: Tensor, log_snr: Tensor) -> Tensor:
    """A prediction of type `source` as one of type `target`, exactly.

    Between epsilon and v the way over x0 would divide by a vanishing amplitude at one end of the noise range; these two pairs are
    converted directly: eps = alpha * v + sigma * x_t.
    """
    if source == target:
        return prediction
    if {source, target} == {"epsilon", "v_prediction"}:
        alpha, sigma = (like_image(a, x_t) for a in signal_and_noise(log_snr))
        return (prediction - sigma * x_t) / alpha if source == "epsilon" else alpha * prediction + sigma * x_t
    return from_x0(to_x0(prediction, source, x_t, log_snr), target, x_t, log_snr)


def check_interval(interval: tuple[float, float] | None) -> None:
    """Raise ValueError unless a range of EDM's sigma holds anything; None = all of it."""
    if interval is not None and interval[0] > interval[1]:
        raise ValueError(f"guidance interval {interval} is empty: give (lowest sigma, highest sigma)")


class _Guidance(Wrapper):
    """What guidances by a second prediction share: their strength, and the range of noise in which they act."""

    def __init__(self, denoiser: Denoiser, scale: float, interval: tuple[float, float] | None) -> None:
        check_interval(interval)
        super().__init__(denoiser)
        self.scale, self.interval = scale, interval
        self.active: bool | None = False if scale == 1 else True if interval is None else None
        """Whether images are guided; None = those whose noise lies in the interval."""

    def at_level(self, log_snr: float) -> Self:
        made = super().at_level(log_snr)
        made.active = self.is_active(torch.tensor([log_snr], dtype=torch.float64))
        return made

    def guide(self, away: Tensor, towards: Tensor) -> Tensor:
        """`away + scale * (towards - away)` on the channels of `away`; a learned variance behind them stays that of `towards`."""
        channels = away.shape[1]
        guided = away + self.scale * (towards[:, :channels] - away)
        return torch.cat([guided, towards[:, channels:]], dim=1)

    def is_active(self, log_snr: Tensor) -> bool:
        """Whether images at `log_snr` [B] (one level for all, as in sampling) are guided."""
        if self.active is not None:
            return self.active
        assert self.interval is not None
        sigma = float(torch.exp(-log_snr.double()[0] / 2))
        return self.interval[0] <= sigma <= self.interval[1]


class ClassifierFreeGuidance(_Guidance):
    """`uncond + scale * (cond - uncond)` (Ho & Salimans 2022, arXiv:2207.12598, who write w = scale - 1).

    Args:
        denoiser: Has a `null_label`.
        scale: 1 = no guidance, one evaluation; any other value costs two.
        interval: Guide only where EDM's sigma lies in [low, high] (Kynkaanniemi et al. 2024, arXiv:2404.07724); None = all.

    Raises:
        ValueError: if the denoiser was trained without dropping labels, or the interval is empty.
    """

    def __init__(self, denoiser: Denoiser, scale: float, interval: tuple[float, float] | None = None) -> None:
        if denoiser.null_label is None and scale != 1:
            raise ValueError(
                f"guidance_scale={scale} needs a model trained with label dropout, and this one has no null label;"
                " use guidance_scale=1, or autoguidance by a weaker model"
            )
        super().__init__(denoiser, scale, interval)

    def __call__(
        self,
        x_t: Tensor,
        log_snr: Tensor,
        class_labels: Tensor | None = None,
        low_res: Tensor | None = None,
        aug_level: Tensor | None = None,
    ) -> Tensor:
        """As `Denoiser.__call__`; cond and uncond run as one batch of 2B."""
        if not self.is_active(log_snr) or class_labels is None or self.null_label is None:
            return self.denoiser(x_t, log_snr, class_labels, low_res, aug_level)
        twice = [None if value is None else torch.cat([value, value]) for value in (low_res, aug_level)]
        labels = torch.cat([class_labels, torch.full_like(class_labels, self.null_label)])
        both = self.denoiser(torch.cat([x_t, x_t]), torch.cat([log_snr, log_snr]), labels, *twice)
        cond, uncond = both.chunk(2)
        return self.guide(uncond[:, : x_t.shape[1]], cond)


class Autoguidance(_Guidance):
    """`weak + scale * (main - weak)`: guidance by a smaller or less trained model (Karras et al. 2024, arXiv:2406.02507).

    Args:
        denoiser: The main model.
        weak: The model to move away from; may have another prediction type, must know the same classes.
        scale: 1 = no guidance.
        interval: Guide only where EDM's sigma lies in [low, high]; None = everywhere.

    Raises:
        ValueError: if the two models know different numbers of classes, or the interval is empty.
    """

    def __init__(self, denoiser: Denoiser, weak: Denoiser, scale: float, interval: tuple[float, float] | None = None) -> None:
        if weak.num_classes not in (None, denoiser.num_classes):
            raise ValueError(
                f"the guiding model knows {weak.num_classes} classes and the main one {denoiser.num_classes};"
                " autoguidance needs two models of the same classes"
            )
        super().__init__(denoiser, scale, interval)
        self.weak = weak

    def at_level(self, log_snr: float) -> Self:
        made = super().at_level(log_snr)
        made.weak = at_level(self.weak, log_snr)
        return made

    def __call__(
        self,
        x_t: Tensor,
        log_snr: Tensor,
        class_labels: Tensor | None = None,
        low_res: Tensor | None = None,
        aug_level: Tensor | None = None,
    ) -> Tensor:
        """As `Denoiser.__call__`."""
        main = self.denoiser(x_t, log_snr, class_labels, low_res, aug_level)
        if not self.is_active(log_snr):
            return main
        weak_labels = None if self.weak.num_classes is None else class_labels
        weak = self.weak(x_t, log_snr, weak_labels, low_res, aug_level)
        weak = convert(weak[:, : x_t.shape[1]], self.weak.prediction_type, self.prediction_type, x_t, log_snr)
        return self.guide(weak, main)


class ClassifierGuidance(_Guidance):
    """A denoiser pushed towards its class by a classifier of noisy images (Dhariwal & Nichol 2021, arXiv:2105.05233).

    Called, it is Algorithm 2: the predicted noise loses `sigma_vp * scale * grad log p(class | x_t)`. Under ancestral sampling
    the loop takes `unguided` and `gradient` apart, for Algorithm 1: the mean of the step moves by its variance times the
    gradient, after x0 was clipped.

    Args:
        denoiser: Predicts epsilon, with or without classes; its `timesteps` are the clock of both networks.
        classifier: `classifier(x_t, timesteps)` gives logits [B, num_classes]; trained on the same schedule.
        scale: Strength of the guidance; 0 = none. Published: 1.0 at 64 px, 0.5 at 128, 1.0 at 256 (10.0 without classes), 4.0
            at 512.
        interval: Guide only where EDM's sigma lies in [low, high]; None = everywhere.

    Raises:
        ValueError: if the denoiser predicts anything but the noise, or the interval is empty.
    """

    def __init__(self, denoiser: Denoiser, classifier: Any, scale: float, interval: tuple[float, float] | None = None) -> None:
        if denoiser.prediction_type != "epsilon":
            raise ValueError(f"classifier guidance needs a model that predicts epsilon, not {denoiser.prediction_type!r}")
        if denoiser.num_classes not in (None, classifier.num_classes):
            raise ValueError(
                f"the classifier knows {classifier.num_classes} classes and the model {denoiser.num_classes}; guidance needs two"
                " networks of the same classes"
            )
        super().__init__(denoiser, 1 + scale, interval)
        self.own_classes, self.num_classes = denoiser.num_classes, classifier.num_classes
        self.classifier, self.strength = classifier, scale

    def unguided(
        self,
        x_t: Tensor,
        log_snr: Tensor,
        class_labels: Tensor | None = None,
        low_res: Tensor | None = None,
        aug_level: Tensor | None = None,
    ) -> Tensor:
        """What the denoiser predicts by itself; `class_labels` are left out for one that knows no classes."""
        return self.denoiser(x_t, log_snr, None if self.own_classes is None else class_labels, low_res, aug_level)

    def gradient(self, x_t: Tensor, log_snr: Tensor, class_labels: Tensor | None) -> Tensor | None:
        """`scale * grad log p(class | x_t)`, like `x_t`; None where nothing is guided; ValueError without `class_labels`."""
        if class_labels is None:
            raise ValueError(f"classifier guidance needs class_labels, indices from 0 to {self.classifier.num_classes - 1}")
        if not self.is_active(log_snr):
            return None
        clock: Any = self.denoiser
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            log_p = self.classifier(x, clock.timesteps(log_snr)).float().log_softmax(dim=1)
            gradient = torch.autograd.grad(log_p.gather(1, class_labels[:, None]).sum(), x)[0]
        return self.strength * gradient.to(x_t)

    def __call__(
        self,
        x_t: Tensor,
        log_snr: Tensor,
        class_labels: Tensor | None = None,
        low_res: Tensor | None = None,
        aug_level: Tensor | None = None,
    ) -> Tensor:
        """As `Denoiser.__call__`; ValueError if `class_labels` is missing."""
        prediction = self.unguided(x_t, log_snr, class_labels, low_res, aug_level)
        gradient = self.gradient(x_t, log_snr, class_labels)
        if gradient is None:
            return prediction
        channels, (_, sigma_vp) = x_t.shape[1], signal_and_noise(log_snr)
        push = like_image(sigma_vp, prediction) * gradient.to(prediction)
        return torch.cat([prediction[:, :channels] - push, prediction[:, channels:]], dim=1)


class FlowMapGuidance(Wrapper):
    """A flow map: a network of average velocities that makes a step of any width at once, and sees its guidance as an input.

    Its `forward` takes the log-SNR at which a step ends, and the scale and interval of its guidance, behind the inputs of a
    `Denoiser` (Geng et al. 2025, arXiv:2505.13447; Lu et al. 2026, arXiv:2601.22158). It is one evaluation, guided or not.

    Args:
        denoiser: Has `flow_map` set.
        scale: 1 = no guidance.
        interval: Lowest and highest EDM sigma at which guidance acts; None = everywhere.
        end: Log-SNR at which the step ends; None = the velocity at one level, which suits every scheduler.

    Raises:
        ValueError: if the scale is not above 0, or the interval is empty.
    """

    def __init__(
        self, denoiser: Denoiser, scale: float, interval: tuple[float, float] | None = None, end: float | None = None
    ) -> None:
        if scale <= 0:
            raise ValueError(f"guidance_scale is {scale}, expected more than 0 for a network that sees it as an input; 1 = none")
        check_interval(interval)
        super().__init__(denoiser)
        self.scale, self.interval, self.end = scale, interval, end

    def until(self, log_snr: float) -> FlowMapGuidance:
        """The same, for a step that ends at `log_snr`."""
        return FlowMapGuidance(self.denoiser, self.scale, self.interval, log_snr)

    def __call__(
        self,
        x_t: Tensor,
        log_snr: Tensor,
        class_labels: Tensor | None = None,
        low_res: Tensor | None = None,
        aug_level: Tensor | None = None,
    ) -> Tensor:
        """As `Denoiser.__call__`."""
        network: Any = self.denoiser
        end = None if self.end is None else torch.full_like(log_snr, self.end)
        return network(x_t, log_snr, class_labels, low_res, aug_level, end, self.scale, self.interval)
