"""Checkpoints: written atomically, read without executing anything."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmmd.errors import UserError, first_line


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, lists, dictionaries) so that `path` always holds a whole one.

    The content goes to a temporary file that reaches the disk before it takes the name, so a crash or a
    full disk leaves the previous checkpoint.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the new name too must reach the disk
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def load_checkpoint(path: Path, device: torch.device | str = "cpu", *, entry: str = "model") -> dict[str, Any]:
    """Read a checkpoint, which has `entry`, onto `device`; random states stay on the host.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"no checkpoint in {path.parent}: start a new run with another --run-dir") from error
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError) as error:
        raise UserError(f"{path} is not a usable checkpoint ({first_line(error)})") from error
    if not isinstance(state, dict) or entry not in state:
        raise UserError(f"{path} is not a checkpoint of fastmmd")
    return state


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
