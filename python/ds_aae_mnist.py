"""Doubly stochastic adversarial autoencoder in a training loop of your own: the adversary is a random function.

It compares codes and prior in random Fourier features phi, made from a seed inside the kernel and never stored:
zeta_k = mean phi_k(prior) - mean phi_k(codes). Its weights alpha move toward the frequencies where the two differ most.

    python python/ds_aae_mnist.py                      # scikit-learn's digits, seconds
    python python/ds_aae_mnist.py --data mnist --data-dir DIR --epochs 50 --batch-size 250
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastmmd
from fastmmd.evaluation import Sampler, parzen_evaluation
from fastmmd.training import UserError, load_data

CODE_SIZE = 4
BANDWIDTHS = (0.5, 1.0, 2.0, 4.0, 8.0)  # in units of the prior's standard deviation, 1
FREQUENCIES = 480
ADVERSARY_RATE = 0.05  # share of the way that alpha moves in a step
WARMUP_STEPS = 100  # of the regularizer alone: codes reach the prior before they mean anything


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="digits", help="digits, mnist, fashion-mnist, an array or a folder")
    parser.add_argument("--data-dir", help="folder of the MNIST files")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        data = load_data(options.data, options.data_dir).to(device)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    images = data.train.images  # [N, D] in [0, 1]
    weight = 0.5 * data.data_dim  # of the regularizer, against a cross-entropy summed over D pixels
    hidden = (1024, 512, 216) if data.data_dim > 100 else (256, 128)
    encoder = nn.Sequential(nn.Dropout(0.1), *mlp(data.data_dim, *hidden, CODE_SIZE)).to(device)
    decoder = mlp(CODE_SIZE, *hidden[::-1], data.data_dim).to(device)
    prior = fastmmd.priors.Gaussian(CODE_SIZE)
    features = fastmmd.FourierFeatures(CODE_SIZE, FREQUENCIES, bandwidths=BANDWIDTHS)
    alpha = torch.ones(FREQUENCIES, device=device)  # the adversary: one weight per frequency, mean 1

    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=2e-3)
    batch_size = min(options.batch_size, len(images))
    steps = options.epochs * (len(images) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    step = 0
    for epoch in range(1, options.epochs + 1):
        for rows in torch.randperm(len(images), device=device).split(batch_size):
            if len(rows) < batch_size:
                continue
            x = images[rows]
            z = encoder(x)  # [B, CODE_SIZE]
            draws = prior.sample(len(z), device=device)
            fastmmd.fourier_ascent(alpha, z.detach(), draws, features, ADVERSARY_RATE)  # the adversary's step, in place
            discrepancy = fastmmd.fourier_discrepancy(z, draws, alpha, features)  # sum_k alpha_k |zeta_k|^2
            reconstruction = F.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum") / len(x)
            step += 1
            optimizer.zero_grad()
            (weight * discrepancy + (reconstruction if step > WARMUP_STEPS else 0.0)).backward()
            optimizer.step()
            schedule.step()
        if epoch % max(options.epochs // 10, 1) == 0:
            print(f"epoch {epoch}  reconstruction {reconstruction:.2f}  discrepancy {discrepancy:.2e}")

    encoder.eval()
    with torch.no_grad():
        codes = encoder(data.test.images)
    print(f"test codes: mean {codes.mean():.3f}, std {codes.std():.3f} (prior 0, 1)")

    @torch.no_grad()
    def draw(count: int, generator: torch.Generator) -> Tensor:
        return torch.sigmoid(decoder(prior.sample(count, generator=generator, device=device)))

    # A window of width sigma on each of 10,000 samples; the validation images choose sigma, the test images count.
    sampler = Sampler("prior", draw, torch.device(device))
    likelihood = parzen_evaluation(sampler, data.validation.images, data.test.images, seed=options.seed)
    print(f"test log-likelihood: {likelihood}")


if __name__ == "__main__":
    main()
