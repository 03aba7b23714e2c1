"""Checkpoints: written atomically, read without executing anything."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from fastmmd.errors import UserError, first_line
from fastmmd.files import replacing


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, lists, dictionaries) so that `path` always holds a whole one.

    Raises:
        UserError: it cannot be written; the previous checkpoint is intact.
    """
    with replacing(path) as file:
        torch.save(state, file)


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint onto `device`; random states stay on the host.

    Raises:
        UserError: it is missing or damaged.
    """
    state = load_state(path, "model", device)
    if name := not_finite(state):
        raise UserError(f"{path} is not a usable checkpoint (NaN or infinity in {name})")
    return state


def load_state(path: Path, entry: str, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, with a dictionary `entry`.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that it then refuses
            state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"no checkpoint in {path.parent}: start a new run with another --run-dir") from error
    except Exception as error:  # a foreign file makes the parser raise anything
        reason = first_line(error)
        if reason.startswith("Weights only load failed"):  # torch goes on to recommend what would execute it
            reason = "it holds more than tensors, numbers, strings, lists and dictionaries"
        raise UserError(f"{path} is not a usable checkpoint ({reason})") from error
    if not isinstance(state, dict) or not isinstance(state.get(entry), dict):
        raise UserError(f"{path} is not a checkpoint of fastmmd")
    return state


def load_weights(module: nn.Module, weights: Mapping[str, Any]) -> None:
    """`module.load_state_dict`, which by itself would round weights of another dtype.

    Raises:
        ValueError: names, shapes or dtypes differ.
    """
    for name, own in module.state_dict().items():
        given = weights.get(name)
        if isinstance(own, Tensor) and isinstance(given, Tensor) and given.dtype != own.dtype:
            raise ValueError(f"{name} is {given.dtype}, expected {own.dtype}")
    try:
        module.load_state_dict(weights)
    except Exception as error:  # of the module's own hooks too
        lines = str(error).splitlines()
        raise ValueError(shorten(" ".join(lines[1:] or lines), 200)) from error


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """`optimizer.load_state_dict`, which by itself takes moments of other shapes, and the state of another optimizer.

    Raises:
        ValueError: groups, or shapes, differ.
    """
    expected = [set(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, names in zip(optimizer.param_groups, expected, strict=True):
        if missing := names - set(group):
            raise ValueError(f"{', '.join(sorted(missing))} missing: the state of another optimizer")
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                raise ValueError(f"{name} has shape {list(value.shape)}, the weight {list(parameter.shape)}")


def not_finite(state: Any, name: str = "") -> str | None:
    """The name of the first tensor that holds NaN or infinity, through dictionaries and lists; None: there is none."""
    if isinstance(state, Tensor):
        return None if bool(state.isfinite().all()) else name
    parts = state.items() if isinstance(state, Mapping) else enumerate(state) if isinstance(state, list | tuple) else ()
    found = (not_finite(part, f"{name}.{key}" if name else str(key)) for key, part in parts)
    return next(filter(None, found), None)


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The states of the random generators that training draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Undo what happened since `random_states`; a generator that has no state there (another device) is left alone."""
    torch.set_rng_state(states["cpu"].cpu())
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)
