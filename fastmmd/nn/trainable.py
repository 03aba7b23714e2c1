"""How autoencoders are trained: the losses of a batch, the steps of the package's own loop and of others."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim import Optimizer

from ..priors import Prior
from . import inputs
from .generative import GenerativeModel
from .labels import check_switch, receivers
from .regularizers import Moments, Regularizer
from .spread import without_dropout
from .steps import Losses, OptimizerName, descend, descent


class Trainable(GenerativeModel):
    """The training of an `Autoencoder`, which documents the attributes."""

    encoder: nn.Module
    decoder: nn.Module
    prior: Prior
    regularizer_weight: float
    shape: Regularizer | None
    shape_weight: float
    learning_rate: float
    optimizer: OptimizerName
    beta1: float
    generator_learning_rate: float | None

    @property
    def code_size(self) -> int:
        raise NotImplementedError

    def corrupt(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def reconstruction_loss(self, x: Tensor, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def _infer(self, x: Tensor, draw: bool) -> tuple[Tensor, Moments | None]:
        """Codes [B, code_size] of data [B, data_dim], drawn from the posterior or not, and their moments."""
        raise NotImplementedError

    def configure_optimizers(self) -> dict[str, Optimizer]:
        """One for "autoencoder", for "generator" in two-phase training; Adam for "adversary" where one is trained."""
        both = [*self.encoder.parameters(), *self.decoder.parameters()]
        optimizers = {"autoencoder": descent(self.optimizer, both, self.learning_rate, self.beta1)}
        if self.generator_learning_rate is not None:
            encoder = list(self.encoder.parameters())
            optimizers["generator"] = descent(self.optimizer, encoder, self.generator_learning_rate, self.beta1)
        return optimizers | self._adversary_optimizer()

    def optimizer_names(self) -> tuple[str, ...]:
        generator = ("generator",) if self.generator_learning_rate is not None else ()
        return ("autoencoder", *generator, *(("adversary",) if self.descends_adversary else ()))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Losses:
        """The losses of a batch [B, data_dim], for a loop of your own; no optimizer and no adversary is stepped.

        In training mode the encoder's input is corrupted (`denoising`), and the reconstruction is left out while the
        model warms up (`warmup_steps`), both as in `training_step`; in evaluation mode neither.

        Args:
            labels: see `training_step`.

        Raises:
            ValueError, TypeError: see `training_step`.
        """
        x = inputs.check_batch(self, x, *self._trained())
        parts, switch = receivers(labels, self.regularizer, self.decoder_classes)
        check_switch(x, switch, self.decoder_classes)
        self._expect_end_step(self.regularizer.ends_steps)
        codes, moments = self._infer(self.corrupt(x) if self.training else x, draw=True)
        classes = () if parts is None else (parts,)
        adversary = self.regularizer.adversary_loss(codes.detach(), self.prior, *classes)
        penalty = self._penalty(x, codes, moments, *classes)
        warming = self.training and self._warming
        reconstruction = penalty.new_zeros(()) if warming else self.reconstruction_loss(x, codes, switch)
        return Losses(reconstruction + self.regularizer_weight * penalty, reconstruction, penalty, adversary, codes)

    def adversary_loss(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """What a trained adversary descends on codes [B, code_size], which get no gradient: 0-d; 0 without one.

        `forward` returns it too; this is for further steps of the adversary.

        Raises:
            ValueError, TypeError: the codes do not fit; labels as for `training_step`.
        """
        inputs.check_codes(self, codes)
        parts, _ = receivers(labels, self.regularizer, self.decoder_classes)
        return self.regularizer.adversary_loss(codes.detach(), self.prior, *(() if parts is None else (parts,)))

    def end_step(self, codes: Tensor, labels: Tensor | None = None) -> None:
        """Ends a step of a loop of your own, after the optimizers: moves a random-function adversary, counts the step.

        `training_step` does this itself. A trained adversary moves by its own optimizer, on the loss `adversary`.

        Args:
            codes: [B, code_size], those of `forward`. labels: see `training_step`.

        Raises:
            ValueError, TypeError: the codes do not fit; labels as for `training_step`.
        """
        inputs.check_codes(self, codes)
        parts, _ = receivers(labels, self.regularizer, self.decoder_classes)
        if self.regularizer.ends_steps:
            self.regularizer.update(codes.detach(), self.prior, None, *(() if parts is None else (parts,)))
        self._count_step()

    def training_step(
        self, x: Tensor, optimizers: dict[str, Optimizer], labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """All phases of one batch [B, data_dim]: forward, backward, optimizer steps.

        Args:
            labels: [B] int64, the class of each point, -1 for unlabeled ones. They go to a regularizer with classes,
                which pulls the codes of class i towards the i-th part of the prior, and to a decoder with classes.

        Returns detached 0-d tensors: "loss", "reconstruction", "regularizer" (without its weight).

        Raises:
            ValueError, TypeError: labels for a model without classes, or that do not fit; none for a decoder
                with classes; a batch that `check_batch` refuses; other optimizers than `configure_optimizers` gives.
            RuntimeError: several processes of `torch.distributed` would train models of their own; see `synchronize`.
        """
        self._check_synchronized()
        x = inputs.check_batch(self, x, *self._trained())
        inputs.check_optimizers(self, optimizers)
        parts, switch = receivers(labels, self.regularizer, self.decoder_classes)
        check_switch(x, switch, self.decoder_classes)
        classes = () if parts is None else (parts,)
        codes, moments = self._infer(self.corrupt(x), draw=True)
        two_phases = "generator" in optimizers and not self._warming
        if two_phases:
            reconstruction = self.reconstruction_loss(x, codes, switch)
            descend(reconstruction, optimizers["autoencoder"], shards=self.shards)
            reconstruction = reconstruction.detach()
            codes, moments = self._infer(self.corrupt(x), draw=True)
        # Before the encoder's step, which so meets the adversary of this very batch.
        self.regularizer.update(codes.detach(), self.prior, optimizers.get("adversary"), *classes)
        penalty = self._penalty(x, codes, moments, *classes)
        if self._warming:
            reconstruction = penalty.new_zeros(())
        elif not two_phases:
            reconstruction = self.reconstruction_loss(x, codes, switch)
        loss = reconstruction + self.regularizer_weight * penalty
        # Before the descent, behind which a compiler begins another graph.
        terms = {"loss": loss.detach(), "reconstruction": reconstruction.detach(), "regularizer": penalty.detach()}
        descend(loss, optimizers["generator" if two_phases else "autoencoder"], shards=self.shards)
        self._count_step()
        return terms

    def _trained(self) -> list[nn.Module]:
        """What runs on the rows of a batch."""
        return [self.encoder, self.decoder, self.regularizer, *([] if self.shape is None else [self.shape])]

    def _penalty(self, x: Tensor, codes: Tensor, moments: Moments | None, *classes: Tensor) -> Tensor:
        """Of a batch [B, data_dim] and its codes [B, code_size]: the regularizer, and `shape` with its weight."""
        penalty: Tensor = self.regularizer(codes, self.prior, moments, *classes)
        if self.shape is None:
            return penalty
        with without_dropout(self.encoder):
            codes, moments = self._infer(x, draw=True)
        of_shape: Tensor = self.shape(codes, self.prior, moments, *(classes if self.shape.num_classes else ()))
        return penalty + self.shape_weight * of_shape
