"""A memory of codes: a discrepancy of more codes than a batch has."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..kernels import Kernel
from ..ops.arguments import check_int
from ..ops.shards import Shards
from ..priors import Prior
from .networks import check_module
from .regularizers import KL, Moments, Regularizer
from .steps import outside_graphs


class CodeMemory(Regularizer):
    """Another regularizer, on the last `size` codes: those of the batch, and those of the steps before as they were.

    Its value is that of the other regularizer on the union, with as many draws from the prior as it takes for so many
    codes: the estimate of a discrepancy varies, and a biased one is too large, by the inverse of their number. A
    gradient reaches the codes of the batch alone, those of before are constants (the queue of He et al. 2020, "Momentum
    contrast"). It is multiplied by the size of the union over that of the batch, so a code is pulled as hard as without
    a memory: for MMD by the slope of the witness function between union and prior, over the number of codes in the
    batch. An adversary learns on the union too.

    Labels are remembered with their codes, so that a class that has a few codes in a batch has many in the union.

    A step ends with `update`, which remembers its codes: `training_step` and `end_step` call it. Until `size` codes are
    remembered, and where a batch has as many, the regularizer sees those of the batch alone. The memory is saved with
    the model. Codes of before lag behind the encoder by up to size / B steps: a large memory of small batches at a
    large learning rate makes it overshoot.

    Args:
        regularizer: any but `KL`, which compares no sample with the prior.
        size: number of codes, those of a batch among them.
        code_size: dimension D of the codes.

    Raises:
        TypeError, ValueError: naming the argument; also where several processes share a batch (`synchronize`): each
            would remember its own codes.
    """

    codes: Tensor
    labels: Tensor

    def __init__(self, regularizer: Regularizer, size: int, code_size: int) -> None:
        super().__init__()
        self.regularizer, self.size = check_module("regularizer", regularizer, Regularizer), check_int("size", size)
        if isinstance(regularizer, KL | CodeMemory):
            kind = type(regularizer).__name__
            raise ValueError(
                f"regularizer: got {kind}, expected one that compares codes with the prior, without memory"
            )
        self.num_classes = regularizer.num_classes
        self.register_buffer("codes", torch.zeros(self.size, check_int("code_size", code_size)))
        self.register_buffer("labels", torch.full((self.size,), -1))
        self._count(0, 0)

    def forward(
        self, codes: Tensor, prior: Prior, moments: Moments | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """[B, D], labels [B] int64 -> 0-d.

        Raises:
            ValueError, TypeError: see those of the other regularizer.
        """
        union, classes = self._union(codes, prior, labels)
        value: Tensor = self.regularizer(union, prior, None, *classes)
        return value

    def adversary_loss(self, codes: Tensor, prior: Prior, labels: Tensor | None = None) -> Tensor:
        """That of the other regularizer on the union: 0-d."""
        union, classes = self._union(codes.detach(), prior, labels)
        return self.regularizer.adversary_loss(union, prior, *classes)

    def update(
        self,
        codes: Tensor,
        prior: Prior,
        optimizer: torch.optim.Optimizer | None = None,
        labels: Tensor | None = None,
    ) -> None:
        """Remembers detached codes [B, D], labels [B] int64; then the adversary's step on the union."""
        union, classes = self._union(codes.detach(), prior, labels, ended=False)
        self._push(codes.detach(), labels)
        if self.trains_adversary and optimizer is None:  # in a loop of your own, whose optimizer has moved it
            return
        self.regularizer.update(union, prior, optimizer, *classes)

    @property
    def shards(self) -> Shards | None:
        """None: a memory is of one process."""
        return None

    @shards.setter
    def shards(self, shards: Shards | None) -> None:
        if shards is not None and shards.count > 1:
            raise ValueError(
                f"memory: got one of {self.size} codes in a model that {shards.count} processes train together; each "
                "would remember its own codes: leave it out, the codes of all processes are compared anyway"
            )

    @property
    def trains_adversary(self) -> bool:
        return self.regularizer.trains_adversary

    @property
    def learns(self) -> bool:
        return self.regularizer.learns

    @property
    def ends_steps(self) -> bool:
        return True

    @property
    def estimator(self) -> str | None:
        """That of the other regularizer, if it has one."""
        return getattr(self.regularizer, "estimator", None)

    def kernel_spec(self) -> Kernel | None:
        return self.regularizer.kernel_spec()

    def get_extra_state(self) -> dict[str, Any]:
        return {"remembered": self._remembered, "newest": self._newest}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._count(state["remembered"], state["newest"])

    def _count(self, remembered: int, newest: int) -> None:
        """How many codes are remembered, and how many of them are of the last step; the newest come first."""
        self._remembered, self._newest = remembered, newest
        # Compiled code reads this and not the count, which would compile it anew at each step.
        self._full = remembered >= self.size

    def _union(
        self, codes: Tensor, prior: Prior, labels: Tensor | None, *, ended: bool = True
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Codes [M, D] and, where there are classes, labels [M] of the batch and of the steps before it.

        Args:
            ended: the last codes that are remembered are taken for those of this step, as they are after `update`.
        """
        self.check_labels(codes, prior, labels)
        if self.num_classes and labels is None:
            labels = torch.full(codes.shape[:1], -1, device=codes.device)
        start = self._newest if ended else 0
        before = slice(start, start + max(self.size - len(codes), 0))
        old = self.codes[before].to(codes)
        if not (self.training and self._full and len(old)):
            return codes, () if labels is None else (labels,)
        scale = 1 + len(old) / len(codes)
        union = torch.cat([_scaled(codes, scale), old])
        return union, () if labels is None else (torch.cat([labels, self.labels[before]]),)

    def _push(self, codes: Tensor, labels: Tensor | None) -> None:
        """Codes [B, D] and labels [B] before those that are remembered."""
        labels = torch.full(codes.shape[:1], -1, device=codes.device) if labels is None else labels
        self.codes.copy_(torch.cat([codes.to(self.codes), self.codes])[: self.size])
        self.labels.copy_(torch.cat([labels, self.labels])[: self.size])
        self._end_step(len(codes))

    @outside_graphs
    def _end_step(self, newest: int) -> None:
        newest = min(newest, self.size)
        self._count(min(self._remembered + newest, self.size), newest)


def _scaled(codes: Tensor, scale: float) -> Tensor:
    """The codes, bit for bit, with a gradient that is multiplied by `scale`."""
    return codes.detach() + scale * (codes - codes.detach())
