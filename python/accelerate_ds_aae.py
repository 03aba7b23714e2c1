"""The doubly stochastic adversarial autoencoder with Accelerate: accumulated and clipped gradients, any device.

python python/accelerate_ds_aae.py                                    # scikit-learn's digits, seconds
torchrun --nproc_per_node 2 python/accelerate_ds_aae.py               # two replicas
"""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed
from torch.utils.data import DataLoader, TensorDataset

from fastmmd import nn
from fastmmd.training import load_data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--epochs", type=int, default=50)
    options = parser.parse_args()

    # While the model warms up no gradient reaches the decoder.
    parallel = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(gradient_accumulation_steps=2, kwargs_handlers=[parallel])
    set_seed(0, device_specific=True)
    data = load_data("digits")
    autoencoder = nn.DSAAE(data.data_dim, hidden=(256, 128, 64), regularizer_weight=150.0, warmup_steps=20)
    loader = DataLoader(TensorDataset(data.train.images), batch_size=50, shuffle=True, drop_last=True)
    optimizer = autoencoder.configure_optimizers()["autoencoder"]
    model, optimizer, loader = accelerator.prepare(autoencoder, optimizer, loader)

    for epoch in range(1, options.epochs + 1):
        for (x,) in loader:
            with accelerator.accumulate(model):
                losses: nn.Losses = model(x)
                accelerator.backward(losses.loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1000.0)
                optimizer.step()
                optimizer.zero_grad()
                if accelerator.sync_gradients:  # a step: the random function moves, the warm-up counts
                    autoencoder.end_step(losses.codes)
        if epoch % max(options.epochs // 10, 1) == 0:
            terms = f"reconstruction {losses.reconstruction:.2f}  regularizer {losses.regularizer:.2e}"
            accelerator.print(f"epoch {epoch}  step {autoencoder.steps}  {terms}")

    autoencoder.eval()
    with torch.no_grad():
        codes = autoencoder.encode(data.test.images.to(accelerator.device))
    accelerator.print(f"test codes: mean {codes.mean():.3f}, std {codes.std():.3f} (prior 0, 1)")


if __name__ == "__main__":
    main()
