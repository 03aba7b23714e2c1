"""Where the labels of a batch go."""

from __future__ import annotations

from torch import Tensor

from ..ops.labels import check_labels
from .regularizers import Regularizer


def receivers(
    labels: Tensor | None, regularizer: Regularizer, decoder_classes: int
) -> tuple[Tensor | None, Tensor | None]:
    """The labels for the regularizer and the prior, and for the decoder: None where these have no classes.

    Raises:
        ValueError: labels, and none of them has classes.
    """
    if labels is not None and not (regularizer.num_classes or decoder_classes):
        raise ValueError(
            f"labels: got some, but neither {type(regularizer).__name__} nor the decoder has classes; give a "
            "regularizer num_classes (Adversarial, FourierAdversary, MMD) or Autoencoder decoder_classes"
        )
    return labels if regularizer.num_classes else None, labels if decoder_classes else None


def check_switch(points: Tensor, labels: Tensor | None, decoder_classes: int) -> None:
    """Labels [B] for points [B, D] where the decoder has classes, and only there.

    Raises:
        ValueError, TypeError: labels missing, not wanted, or that do not fit.
    """
    if decoder_classes == 0:
        if labels is not None:
            raise ValueError("labels: got some, but the decoder has no classes; give Autoencoder decoder_classes")
    elif labels is None:
        raise ValueError(
            f"labels: got None, but the decoder has {decoder_classes} classes; give int64 labels [B], "
            "-1 for unlabeled points"
        )
    else:
        check_labels(labels, points.shape[0], decoder_classes, points.device)
