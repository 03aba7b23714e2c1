"""An autoencoder is an encoder, a decoder, a posterior, a prior and a regulariser: swapping one touches no other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from ..ops.arguments import check_int, check_number
from ..priors import Prior
from .regularizers import KL, Moments, Regularizer

POSTERIORS = ("deterministic", "gaussian", "implicit")
RECONSTRUCTIONS = ("cross_entropy", "squared_error")


class Autoencoder(nn.Module):
    """A generative autoencoder over flattened data in [0, 1].

    Args:
        encoder: [B, data_dim] -> [B, code_size], or [B, 2 * code_size] (mean, log variance) for the Gaussian posterior;
            for the implicit one [B, data_dim + noise_size] -> [B, code_size].
        decoder: [B, code_size] -> [B, data_dim] logits of the pixels.
        prior: the distribution that the codes shall have; its dimension is the code size.
        regularizer: pulls the codes towards the prior.
        posterior: q(z | x): "deterministic", "gaussian" (reparameterised) or "implicit": z = encoder(x, eta) with
            eta ~ N(0, I) beside x, the universal approximator of the AAE paper (Makhzani et al. 2015, section 2.1).
        noise_size: dimension of eta, of the implicit posterior only; default: the code size.
        denoising: standard deviation of Gaussian noise on the encoder's input while training; the reconstruction's
            target stays clean (Vincent et al. 2008). 0.5 in the sampling paper (Creswell, Arulkumaran, Bharath 2016).
        reconstruction: "cross_entropy" or "squared_error", summed over the pixels, averaged over the batch.
        regularizer_weight: lambda in reconstruction + lambda * regulariser.
        warmup_steps: first steps in which only the regulariser trains (codes reach the prior's support first).
        learning_rate: Adam's, for encoder and decoder.
        adversary_learning_rate, adversary_beta1: Adam's, for a trained adversary.
        generator_learning_rate: not None: two phases per batch, as in the AAE paper. Reconstruction first, then the
            encoder alone descends the regulariser with an optimiser of its own.

    Raises:
        ValueError: naming the argument; also `KL` without the moments of a Gaussian posterior.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        prior: Prior,
        regularizer: Regularizer,
        *,
        posterior: str = "deterministic",
        noise_size: int | None = None,
        denoising: float = 0.0,
        reconstruction: str = "cross_entropy",
        regularizer_weight: float = 1.0,
        warmup_steps: int = 0,
        learning_rate: float = 1e-3,
        adversary_learning_rate: float = 1e-3,
        adversary_beta1: float = 0.9,
        generator_learning_rate: float | None = None,
    ) -> None:
        super().__init__()
        for name, value, allowed in (
            ("posterior", posterior, POSTERIORS),
            ("reconstruction", reconstruction, RECONSTRUCTIONS),
        ):
            if value not in allowed:
                raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(allowed)}")
        check_number("denoising", denoising, zero=True)
        check_number("regularizer_weight", regularizer_weight, zero=True)
        check_int("warmup_steps", warmup_steps, 0)
        check_number("learning_rate", learning_rate)
        check_number("adversary_learning_rate", adversary_learning_rate)
        check_number("adversary_beta1", adversary_beta1, zero=True, below=1)
        if generator_learning_rate is not None:
            check_number("generator_learning_rate", generator_learning_rate)
        if noise_size is not None and posterior != "implicit":
            raise ValueError(
                f'noise_size: got {noise_size!r} with posterior={posterior!r}, expected posterior="implicit"'
            )
        if isinstance(regularizer, KL) and posterior != "gaussian":
            raise ValueError(f'posterior: got {posterior!r}; KL needs the moments of posterior="gaussian"')
        self.encoder, self.decoder, self.prior, self.regularizer = encoder, decoder, prior, regularizer
        self.posterior, self.reconstruction, self.denoising = posterior, reconstruction, denoising
        self.noise_size = 0
        if posterior == "implicit":
            self.noise_size = prior.dim if noise_size is None else check_int("noise_size", noise_size)
        self.regularizer_weight, self.warmup_steps = regularizer_weight, warmup_steps
        self.learning_rate, self.generator_learning_rate = learning_rate, generator_learning_rate
        self.adversary_learning_rate, self.adversary_beta1 = adversary_learning_rate, adversary_beta1
        self.steps = 0

    @property
    def code_size(self) -> int:
        """Dimension of the codes."""
        return self.prior.dim

    def encode(self, x: Tensor) -> Tensor:
        """[B, data_dim] -> codes [B, code_size]: the Gaussian posterior's mean, the implicit one's code at eta = 0."""
        return self._infer(x, draw=False)[0]

    def draw_codes(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draws from q(z | x), one per row: [B, data_dim] -> [B, code_size]; the code itself if it is certain."""
        return self._infer(x, draw=True, generator=generator)[0]

    def corrupt(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """x with the noise of the denoising criterion, N(0, denoising^2 I): what the encoder sees while training."""
        return x + self.denoising * _normal(x, x.shape, generator) if self.denoising else x

    def decode(self, codes: Tensor) -> Tensor:
        """[B, code_size] -> data in [0, 1], [B, data_dim]."""
        return torch.sigmoid(self.decoder(codes))

    def reconstruct(self, x: Tensor) -> Tensor:
        """[B, data_dim] -> decoded codes [B, data_dim]."""
        return self.decode(self.encode(x))

    @torch.no_grad()
    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Ancestral samples: decoded draws from the prior, [count, data_dim] in [0, 1]."""
        like = next(self.parameters(), torch.empty(0))
        return self.decode(self.prior.sample(count, generator=generator, device=like.device, dtype=like.dtype))

    def reconstruction_loss(self, x: Tensor, codes: Tensor) -> Tensor:
        """Sum over pixels, mean over the batch: 0-d (nats for "cross_entropy")."""
        logits = self.decoder(codes)
        if self.reconstruction == "cross_entropy":
            return F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / x.shape[0]
        return F.mse_loss(torch.sigmoid(logits), x, reduction="sum") / x.shape[0]

    def configure_optimizers(self) -> dict[str, Optimizer]:
        """Adam for "autoencoder", for "generator" in two-phase training, for "adversary" where one is trained."""
        both = [*self.encoder.parameters(), *self.decoder.parameters()]
        optimizers = {"autoencoder": _adam(both, self.learning_rate)}
        if self.generator_learning_rate is not None:
            optimizers["generator"] = _adam(list(self.encoder.parameters()), self.generator_learning_rate)
        adversary = list(self.regularizer.parameters())
        if adversary and type(self.regularizer).update is not Regularizer.update:
            optimizers["adversary"] = _adam(adversary, self.adversary_learning_rate, self.adversary_beta1)
        return optimizers

    def training_step(
        self, x: Tensor, optimizers: dict[str, Optimizer], labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """All phases of one batch [B, data_dim]: forward, backward, optimiser steps.

        Args:
            labels: [B] int64, the class of each point, -1 for unlabelled ones; for a regulariser with classes, which
                pulls the codes of class i towards the i-th part of the prior.

        Returns detached 0-d tensors: "loss", "reconstruction", "regularizer" (without its weight).

        Raises:
            ValueError, TypeError: labels for a regulariser that takes none, or that do not fit.
        """
        if labels is not None and self.regularizer.num_classes == 0:
            name = type(self.regularizer).__name__
            raise ValueError(f"labels: got some, but {name} has no classes; Adversarial takes them, with num_classes")
        classes = () if labels is None else (labels,)
        self.steps += 1
        codes, moments = self._infer(self.corrupt(x), draw=True)
        warming = self.steps <= self.warmup_steps
        if "generator" in optimizers and not warming:
            reconstruction = self.reconstruction_loss(x, codes)
            _descend(reconstruction, optimizers["autoencoder"])
            codes, moments = self._infer(self.corrupt(x), draw=True)
            self.regularizer.update(codes.detach(), self.prior, optimizers.get("adversary"), *classes)
            penalty = self.regularizer(codes, self.prior, moments, *classes)
            _descend(self.regularizer_weight * penalty, optimizers["generator"])
        else:
            self.regularizer.update(codes.detach(), self.prior, optimizers.get("adversary"), *classes)
            penalty = self.regularizer(codes, self.prior, moments, *classes)
            reconstruction = penalty.new_zeros(()) if warming else self.reconstruction_loss(x, codes)
            _descend(reconstruction + self.regularizer_weight * penalty, optimizers["autoencoder"])
        reconstruction, penalty = reconstruction.detach(), penalty.detach()
        loss = reconstruction + self.regularizer_weight * penalty
        return {"loss": loss, "reconstruction": reconstruction, "regularizer": penalty}

    def get_extra_state(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]

    def _infer(self, x: Tensor, draw: bool, generator: torch.Generator | None = None) -> tuple[Tensor, Moments | None]:
        if self.posterior == "implicit":
            eta = _normal(x, (len(x), self.noise_size), generator) if draw else x.new_zeros(len(x), self.noise_size)
            x = torch.cat([x, eta], dim=1)
        out = self.encoder(x)
        if self.posterior != "gaussian":
            return out, None
        moments = Moments(*out.chunk(2, dim=1))
        if not draw:
            return moments.mean, moments
        noise = _normal(moments.mean, moments.mean.shape, generator)
        return moments.mean + noise * torch.exp(0.5 * moments.log_variance), moments


def _normal(like: Tensor, shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
    """Draws from N(0, I) in the dtype and on the device of `like`."""
    return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)


def _adam(parameters: list[nn.Parameter], learning_rate: float, beta1: float = 0.9) -> Optimizer:
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    return torch.optim.Adam(parameters, lr=learning_rate, betas=(beta1, 0.999), fused=fused or None)


def _descend(loss: Tensor, optimizer: Optimizer) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
