"""What all generative models share: a regularizer, optimizers by name, steps that several processes can do together."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..ops.shards import Group, Shards, shards_of
from .inputs import Output, RangeWatch
from .regularizers import Regularizer
from .spread import share_statistics, unsynchronized
from .steps import CountsSteps, adam


class GenerativeModel(CountsSteps):
    """A distribution over data [B, data_dim] that training steps bring near to that of the batches.

    `Autoencoder` and `GenerativeNetwork` document the attributes.
    """

    regularizer: Regularizer
    output: Output
    data_dim: int | None
    decoder_classes: int
    range_watch: RangeWatch
    progress: float | None
    adversary_learning_rate: float
    adversary_beta1: float
    shards: Shards | None = None
    _alone = False  # whether it is known that this process trains by itself

    def synchronize(self, group: Group) -> None:
        """Let the processes of a group train this model together, by `training_step`, each on its part of every batch.

        They begin with the weights of the first, and every step averages gradients over all; a discrepancy is between
        the codes and draws of all (`group` of `fastmmd.mmd2`), and batch normalization of this package's networks is by
        the statistics of all. Parts of one size make it the step of one process on the whole batch.

        Seed the processes differently (`torch.manual_seed(seed + rank)`), or their noise and draws from the prior are
        copies of one another; `nn.one_generator` instead makes them those of one process.

        Args:
            group: a ProcessGroup of `torch.distributed` or `fastmmd.Shards`; None: this process trains by itself,
                whatever others do.

        Raises:
            TypeError, RuntimeError: see `fastmmd.mmd2`.
            ValueError: the models of the processes differ in their shapes or in the steps they have done.
        """
        shards = shards_of(group)
        if shards is not None:
            tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
            shapes = [f"{name} {list(tensor.shape)} {tensor.dtype}" for name, tensor in tensors.items()]
            device = next(iter(tensors.values())).device
            shards.agree(f"{type(self).__name__} at step {self.steps}, {'; '.join(shapes)}", [], device)
            shards.begin_alike(list(tensors.values()))
            shards = replace(shards, gradients="averaged")
        self.shards, self._alone = shards, shards is None
        for module in self.modules():
            if isinstance(module, Regularizer):
                module.shards = shards
        share_statistics(self, shards)

    def _check_synchronized(self) -> None:
        if self.shards is None and not self._alone and unsynchronized():
            raise RuntimeError(
                "training_step: torch.distributed runs several processes, and this step would train each one's model "
                "by itself; call model.synchronize(torch.distributed.group.WORLD) first, or wrap the model in "
                "DistributedDataParallel and call the wrapped model in a loop of your own (docs/models.md), or say by "
                "model.synchronize(None) that this is meant"
            )

    @property
    def descends_adversary(self) -> bool:
        """Whether an optimizer trains the regularizer's adversary."""
        return self.regularizer.descends_adversary

    def _adversary_optimizer(self) -> dict[str, Optimizer]:
        """Adam for "adversary", where an optimizer trains one."""
        if not self.descends_adversary:
            return {}
        adversary = list(self.regularizer.parameters())
        return {"adversary": adam(adversary, self.adversary_learning_rate, self.adversary_beta1)}

    @property
    def phase_progress(self) -> float:
        """Completed share of the current phase, in [0, 1): learning rate schedules restart with each phase."""
        return self.progress or 0.0

    def standardize_to(self, images: Tensor) -> None:
        """Before training, take from its images [N, data_dim] what the model needs to know of them: here nothing."""

    def configure_optimizers(self) -> dict[str, Optimizer]:
        """The optimizers of `training_step`, by name."""
        raise NotImplementedError(f"{type(self).__name__} must implement configure_optimizers()")

    def optimizer_names(self) -> tuple[str, ...]:
        """Those of `configure_optimizers`."""
        raise NotImplementedError(f"{type(self).__name__} must implement optimizer_names")

    def training_step(
        self, x: Tensor, optimizers: dict[str, Optimizer], labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """One batch [B, data_dim]; returns detached 0-d tensors: "loss", "reconstruction", "regularizer"."""
        raise NotImplementedError(f"{type(self).__name__} must implement training_step()")

    def sample(self, count: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Samples of the model: [count, data_dim]."""
        raise NotImplementedError(f"{type(self).__name__} must implement sample()")
