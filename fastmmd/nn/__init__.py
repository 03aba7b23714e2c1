"""Generative autoencoders: encoder + decoder + posterior + prior + regularizer, over the fused operators."""

from .adversaries import Adversarial, FourierAdversary
from .autoencoders import Autoencoder
from .convolutional import ConvDecoder, ConvEncoder
from .diagnostics import CodeHealth, code_health, kernel_problem
from .gmmn import GMMNAE, GeneratorPrior
from .memory import CodeMemory
from .models import AAE, DSAAE, MMDAE, MODELS, VAE
from .networks import MLP
from .regularizers import KL, MMD, ClosedFormMMD, Moments, Regularizer
from .spread import one_generator
from .steps import Losses

__all__ = [
    "AAE",
    "DSAAE",
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
    "CodeMemory",
    "ConvDecoder",
    "ConvEncoder",
    "FourierAdversary",
    "GeneratorPrior",
    "Losses",
    "Moments",
    "Regularizer",
    "code_health",
    "kernel_problem",
    "one_generator",
]
