"""Generative autoencoders and generators, from parts over the fused operators: networks, priors, regularizers."""

from .adversaries import Adversarial, FourierAdversary
from .autoencoders import Autoencoder
from .convolutional import ConvDecoder, ConvEncoder
from .diagnostics import CodeHealth, code_health, kernel_problem
from .generative import GenerativeModel
from .generators import GenerativeNetwork, GeneratorPrior
from .gmmn import GMMNAE
from .models import AAE, DSAAE, GAN, GMMN, MMDAE, MODELS, VAE
from .networks import MLP
from .regularizers import KL, MMD, ClosedFormMMD, Moments, Regularizer
from .spread import one_generator
from .steps import Losses

__all__ = [
    "AAE",
    "DSAAE",
    "GAN",
    "GMMN",
    "GMMNAE",
    "KL",
    "MLP",
    "MMD",
    "MMDAE",
    "MODELS",
    "VAE",
    "Adversarial",
    "Autoencoder",
    "ClosedFormMMD",
    "CodeHealth",
    "ConvDecoder",
    "ConvEncoder",
    "FourierAdversary",
    "GenerativeModel",
    "GenerativeNetwork",
    "GeneratorPrior",
    "Losses",
    "Moments",
    "Regularizer",
    "code_health",
    "kernel_problem",
    "one_generator",
]
