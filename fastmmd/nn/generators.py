"""Generators: networks that make draws of noise, as the prior of an autoencoder or as a model of the data itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..ops.arguments import check_int, check_number, compute_dtype
from ..priors import Prior
from ..priors.base import check_draws
from . import inputs
from .generative import GenerativeModel
from .inputs import Output, in_eval_mode
from .networks import check_module
from .regularizers import KL, ClosedFormMMD, Regularizer
from .spread import own_rows
from .steps import Losses, adam, descend


class GeneratorPrior(nn.Module, Prior):
    """A distribution that a network makes of noise: z = network(u), u uniform in [-1, 1]^noise_size.

    Draws are differentiable in the network's weights.

    Args:
        network: [N, noise_size] -> [N, dim]. noise_size: dimension of the noise. dim: of the draws.
    """

    def __init__(self, network: nn.Module, noise_size: int, dim: int) -> None:
        super().__init__()
        Prior.__init__(self, dim)
        self.network, self.noise_size = check_module("network", network), check_int("noise_size", noise_size)

    def sample(
        self,
        count: int,
        *,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Independent draws: [count, dim]; see `Prior.sample`. It has no classes."""
        check_draws(count, generator, device, dtype)
        u = self.noise(count, generator=generator, device=device, dtype=dtype)
        if labels is not None:
            self._known(u, labels)
        return self.transform(u)

    def noise(
        self,
        count: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """What `transform` makes draws of: [count, noise_size], uniform in [0, 1)."""
        return torch.rand(count, self.noise_size, generator=generator, device=device, dtype=dtype)

    def transform(self, u: Tensor) -> Tensor:
        """Noise [N, noise_size] -> draws [N, dim]."""
        weight = next(self.network.parameters(), u)
        if weight.device != u.device:
            raise ValueError(f"device: got {u.device}, expected that of the generator network, {weight.device}")
        z: Tensor = self.network((2 * u - 1).to(weight.dtype))
        if z.shape != (len(u), self.dim):
            raise ValueError(f"network: gives draws of shape {list(z.shape)}, expected {[len(u), self.dim]}")
        return z.to(u.dtype)


class GenerativeNetwork(GenerativeModel):
    """A generator alone: data [B, data_dim] made of noise, in [0, 1], or real-valued with output="identity".

    Any `Regularizer` that takes draws trains it, with the roles swapped: what it pulls are the generated data, as many
    as a batch has, and the prior is the batch. With `MMD` this is the generative moment matching network (Li, Swersky
    and Zemel 2015; Dziugaite, Roy and Ghahramani 2015), with `Adversarial` the generative adversarial network
    (Goodfellow et al. 2014) with its non-saturating loss.

    There are no codes, so there is no `encode`, `decode` or `reconstruct`.

    Args:
        generator: its draws are what `output` turns into data.
        regularizer: over data, not codes.
        root: descend the square root of the regularizer, for squared discrepancies, whose gradient vanishes near
            convergence while that of the root does not (Li et al. 2015, section 3).
        output: "sigmoid" for data in [0, 1], "identity" for real-valued data.
        learning_rate, beta1: Adam's, for the generator.
        adversary_learning_rate, adversary_beta1: Adam's, for a trained adversary.

    Raises:
        ValueError, TypeError: naming the argument; a regularizer that takes no draws, or classes.
    """

    decoder_classes = 0

    def __init__(
        self,
        generator: GeneratorPrior,
        regularizer: Regularizer,
        *,
        root: bool = False,
        output: Output = "sigmoid",
        learning_rate: float = 1e-3,
        beta1: float = 0.9,
        adversary_learning_rate: float = 1e-3,
        adversary_beta1: float = 0.9,
    ) -> None:
        super().__init__(warmup_steps=0)
        check_module("generator", generator, GeneratorPrior)
        check_module("regularizer", regularizer, Regularizer)
        if isinstance(regularizer, KL | ClosedFormMMD) or regularizer.num_classes:
            what = "classes" if regularizer.num_classes else "no draws, which the batch is here"
            raise ValueError(f"regularizer: {type(regularizer).__name__} has {what}; expected one such as MMD()")
        inputs.check_output(output, "squared_error")
        for name, rate in (("learning_rate", learning_rate), ("adversary_learning_rate", adversary_learning_rate)):
            check_number(name, rate)
        for name, beta in (("beta1", beta1), ("adversary_beta1", adversary_beta1)):
            check_number(name, beta, zero=True, below=1)
        if not isinstance(root, bool):
            raise TypeError(f"root: got {root!r}, expected True or False")
        self.generator, self.regularizer, self.root, self.output = generator, regularizer, root, output
        self.learning_rate, self.beta1 = learning_rate, beta1
        self.adversary_learning_rate, self.adversary_beta1 = adversary_learning_rate, adversary_beta1
        self.data_dim, self.range_watch = generator.dim, inputs.RangeWatch()
        self.progress: float | None = None

    @torch.no_grad()
    @in_eval_mode
    def sample(self, count: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Generated data, [count, data_dim].

        Raises:
            ValueError, TypeError: labels, for there are no classes; naming the argument.
        """
        like = next(self.parameters(), torch.empty(0))
        inputs.check_draws(count, generator, like.device)
        _refuse(labels)
        draws = self.generator.sample(count, generator=generator, device=like.device, dtype=like.dtype)
        return inputs.data_of(draws, self.output)

    def configure_optimizers(self) -> dict[str, Optimizer]:
        """Adam for "generator", for "adversary" where one is trained."""
        generator = adam(list(self.generator.parameters()), self.learning_rate, self.beta1)
        return {"generator": generator} | self._adversary_optimizer()

    def optimizer_names(self) -> tuple[str, ...]:
        return ("generator", "adversary") if self.descends_adversary else ("generator",)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Losses:
        """The losses of a batch [B, data_dim], for a loop of your own; no optimizer and no adversary is stepped.

        Of `Losses`, `reconstruction` is 0 and `codes` are the generated data.

        Raises:
            ValueError, TypeError: a batch that `check_batch` refuses; labels, for there are no classes.
        """
        x = self._batch(x, labels)
        self._expect_end_step(self.regularizer.ends_steps)
        data, batch = self._generate(x), _Batch(x)
        adversary = self.regularizer.adversary_loss(data.detach(), batch)
        penalty = self._penalty(data, batch)
        return Losses(penalty, penalty.new_zeros(()), penalty, adversary, data)

    def end_step(self, codes: Tensor, x: Tensor | None = None) -> None:
        """Ends a step of a loop of your own, after the optimizers: moves a random-function adversary, counts the step.

        Args:
            codes: [B, data_dim], the generated data that `forward` returned. x: the batch that it was given, where
                there is such an adversary.

        Raises:
            ValueError, TypeError: data that do not fit; no batch for an adversary that needs it.
        """
        codes = inputs.check_data(self, codes, "codes")
        if self.regularizer.ends_steps:
            if x is None:
                raise ValueError(f"x: got None, expected the batch, by which {type(self.regularizer).__name__} moves")
            self.regularizer.update(codes.detach(), _Batch(inputs.check_data(self, x)))
        self._count_step()

    def training_step(
        self, x: Tensor, optimizers: dict[str, Optimizer], labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """One step of the adversary, if there is one, and of the generator, on a batch [B, data_dim].

        Returns detached 0-d tensors: "loss", "reconstruction", which is 0, and "regularizer", with `root` its root.

        Raises:
            ValueError, TypeError: as for `forward`; other optimizers than `configure_optimizers` gives.
            RuntimeError: several processes of `torch.distributed` would train models of their own; see `synchronize`.
        """
        self._check_synchronized()
        x = self._batch(x, labels)
        inputs.check_optimizers(self, optimizers)
        data, batch = self._generate(x), _Batch(x)
        self.regularizer.update(data.detach(), batch, optimizers.get("adversary"))
        loss = self._penalty(data, batch)
        terms = {"loss": loss.detach(), "reconstruction": loss.new_zeros(()), "regularizer": loss.detach()}
        descend(loss, optimizers["generator"], shards=self.shards)
        self._count_step()
        return terms

    def _batch(self, x: Tensor, labels: Tensor | None) -> Tensor:
        _refuse(labels)
        return inputs.check_batch(self, x, self.generator, self.regularizer)

    def _generate(self, x: Tensor) -> Tensor:
        """As many data as a batch [B, data_dim] has."""
        dtype = compute_dtype(x)
        noise = own_rows(len(x), lambda rows: self.generator.noise(rows, device=x.device, dtype=dtype))
        return inputs.data_of(self.generator.transform(noise), self.output)

    def _penalty(self, data: Tensor, batch: Prior) -> Tensor:
        penalty: Tensor = self.regularizer(data, batch)
        return square_root(penalty) if self.root else penalty


class _Batch(Prior):
    """The data [B, D] of a batch in the role of the prior: B draws are the batch itself."""

    def __init__(self, x: Tensor) -> None:
        super().__init__(x.shape[1])
        self._x = x

    def sample(
        self,
        count: int,
        *,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """[count, D], count a multiple of B.

        Under `one_generator` it is asked for the rows of all processes, of which `own_rows` keeps this process's: the
        batch stands in for all of them.
        """
        return self._x.to(dtype).expand(count // len(self._x), -1, -1).flatten(0, 1)  # as many as B: no copy


def _refuse(labels: Tensor | None) -> None:
    if labels is not None:
        raise ValueError("labels: got some, but a generator alone has no classes; leave them out")


def square_root(squared: Tensor) -> Tensor:
    """The root of a squared discrepancy, 0-d, with a finite slope at 0."""
    return squared.clamp(min=1e-12).sqrt()
