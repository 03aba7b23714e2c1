"""Adversarial autoencoder (Makhzani et al. 2015) in a training loop of your own, with fastmmd.mmd2 as the judge.

python python/aae_mnist.py                      # scikit-learn's digits, seconds
python python/aae_mnist.py --data mnist --data-dir DIR --epochs 50 --batch-size 250
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
PRIOR_STD = 5.0
BANDWIDTHS = (2.5, 5.0, 10.0, 20.0)  # of the MMD that the log shows


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
    weight = data.data_dim / 78  # of the generator's loss, against a cross-entropy summed over D pixels
    hidden = (1024, 512, 216) if data.data_dim > 100 else (256, 256)
    encoder = mlp(data.data_dim, *hidden, CODE_SIZE).to(device)
    decoder = mlp(CODE_SIZE, *hidden[::-1], data.data_dim).to(device)
    discriminator = mlp(CODE_SIZE, *hidden, 1).to(device)  # sees codes in units of the prior's std
    prior = fastmmd.priors.Gaussian(CODE_SIZE, std=PRIOR_STD)

    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=2e-3)
    adversary = torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=(0.5, 0.999))
    batch_size = min(options.batch_size, len(images))
    steps = options.epochs * (len(images) // batch_size)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, steps) for o in (optimizer, adversary)]
    for epoch in range(1, options.epochs + 1):
        for rows in torch.randperm(len(images), device=device).split(batch_size):
            if len(rows) < batch_size:
                continue
            x = images[rows]
            z = encoder(x)  # [B, CODE_SIZE]
            draws = prior.sample(len(z), device=device)
            real, fake = discriminator(draws / PRIOR_STD), discriminator(z.detach() / PRIOR_STD)
            adversary.zero_grad()
            (F.softplus(-real).mean() + F.softplus(fake).mean()).backward()
            adversary.step()
            # Non-saturating: the encoder raises log D(z). What the discriminator gets here is cleared above.
            generator_loss = F.softplus(-discriminator(z / PRIOR_STD)).mean()
            reconstruction = F.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum") / len(x)
            optimizer.zero_grad()
            (reconstruction + weight * generator_loss).backward()
            optimizer.step()
            for schedule in schedules:
                schedule.step()
        if epoch % max(options.epochs // 10, 1) == 0:
            mmd = fastmmd.mmd2(z.detach(), draws, BANDWIDTHS).item() / len(BANDWIDTHS)
            print(f"epoch {epoch}  reconstruction {reconstruction:.2f}  mmd2 {mmd:.2e}")

    encoder.eval()
    with torch.no_grad():
        codes = encoder(data.test.images)
    print(f"test codes: mean {codes.mean():.3f}, std {codes.std():.3f} (prior 0, {PRIOR_STD:g})")

    @torch.no_grad()
    def draw(count: int, generator: torch.Generator) -> Tensor:
        return torch.sigmoid(decoder(prior.sample(count, generator=generator, device=device)))

    # A window of width sigma on each of 10,000 samples; the validation images choose sigma, the test images count.
    sampler = Sampler("prior", draw, torch.device(device))
    likelihood = parzen_evaluation(sampler, data.validation.images, data.test.images, seed=options.seed)
    print(f"test log-likelihood: {likelihood}")


if __name__ == "__main__":
    main()
