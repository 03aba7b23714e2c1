"""The MMD autoencoder in Lightning: the model returns the losses of a batch, Lightning does the rest.

python python/lightning_mmd_ae.py              # scikit-learn's digits, seconds
"""

from __future__ import annotations

import argparse

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

from fastmmd import nn
from fastmmd.training import load_data


class LitAutoencoder(lightning.LightningModule):
    """Any model of fastmmd.nn without an adversary; with one, call `end_step`, as accelerate_ds_aae.py does."""

    def __init__(self, model: nn.Autoencoder) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        losses: nn.Losses = self.model(batch[0])
        self.log_dict({"reconstruction": losses.reconstruction, "mmd2": losses.regularizer}, prog_bar=True)
        return losses.loss

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        self.log("validation loss", self.model(batch[0]).loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.model.configure_optimizers()["autoencoder"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--epochs", type=int, default=50)
    options = parser.parse_args()

    lightning.seed_everything(0)
    data = load_data("digits")
    train = DataLoader(TensorDataset(data.train.images), batch_size=100, shuffle=True, drop_last=True)
    validation = DataLoader(TensorDataset(data.validation.images), batch_size=1000)
    module = LitAutoencoder(nn.MMDAE(data.data_dim, hidden=(256, 128, 64), regularizer_weight=300.0))
    trainer = lightning.Trainer(
        max_epochs=options.epochs, gradient_clip_val=1000.0, logger=False, enable_checkpointing=False
    )
    trainer.validate(module, validation)
    trainer.fit(module, train, validation)
    images = module.model.eval().sample(10)  # [10, 64] in [0, 1]
    print(f"validation loss: {trainer.callback_metrics['validation loss']:.2f}, {len(images)} samples")


if __name__ == "__main__":
    main()
