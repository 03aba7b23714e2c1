"""Runs one part of the fuzz tests in a process of its own, as a crash or a hang would end it:

    python tests/fuzz_child.py PART COUNT RECORD

RECORD is a file that holds what was drawn for the case in progress.
"""

from __future__ import annotations

import faulthandler
import math
import os
import re
import resource
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from fuzz_answers import case
from fuzz_junk import JUNK
from fuzz_targets import TARGETS, Target
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastmmd

MEMORY = 6 << 30  # bytes of address space: what asks for all memory shall get an error, not take it
TARGET, WRONG = st.sampled_from(sorted(TARGETS)), st.sampled_from(sorted(JUNK))


class Draws:
    """`draw` of hypothesis, which writes down what it draws."""

    def __init__(self, record: Path) -> None:
        self._record = os.open(record, os.O_WRONLY | os.O_CREAT)
        self.start(lambda strategy: None)

    def start(self, draw: Callable[[Any], Any]) -> None:
        self._draw, self._size = draw, 0
        os.ftruncate(self._record, 0)

    def __call__(self, strategy: Any) -> Any:
        value = self._draw(strategy)
        self.note(repr(value))
        return value

    def note(self, text: str) -> None:
        self._size += os.pwrite(self._record, f"{text[:200]}, ".encode(), self._size)


def arguments(draw: Draws) -> None:
    """One to three arguments of a function are replaced."""
    target = TARGETS[draw(TARGET)]
    made = target.arguments()
    free = [name for name in made if name not in target.spared]
    chosen = draw(st.lists(st.sampled_from(free), min_size=1, max_size=3, unique=True))
    judge(target, made, {name: JUNK[draw(WRONG)]() for name in chosen})


def judge(target: Target, made: dict[str, Any], replaced: dict[str, Any]) -> None:
    """A call gives a documented error that names an argument, or a result of the right kind."""
    given = made | replaced
    try:
        result = target.call(**given)
    except MemoryError:
        return
    except (TypeError, ValueError) as error:
        found = any(re.search(rf"\b{re.escape(name)}\b", str(error)) for name in target.names())
        assert found or re.search(target.network, str(error)), f"{error!r} names no argument"
        return
    except RuntimeError as error:
        asked = "allocate|not enough memory|Storage size calculation"  # more than there is
        assert re.search(f"{asked}|{target.network}", str(error)), f"{error!r} is not documented"
        return
    if target.shape is None or not isinstance(result, Tensor) or result.device.type != "cpu":
        return
    sizes = [value for value in replaced.values() if hasattr(value, "__index__") or hasattr(value, "__len__")]
    if not sizes and not {"sigma", "sigmas"} & replaced.keys():  # of one number the result has one axis less
        assert tuple(result.shape) == target.shape, f"shape {list(result.shape)}, expected {list(target.shape)}"
    if all(map(moderate, given.values())):
        assert result.isfinite().all(), f"{result} of finite arguments"


def moderate(value: Any) -> bool:
    """Whether all numbers in it are 0 or of a size that no sum of squares overflows or vanishes for."""
    if isinstance(value, Tensor):
        if value.is_nested or value.is_quantized or value.layout != torch.strided or value.device.type == "meta":
            return False
        numbers = value.detach().double().abs().flatten().tolist() if not value.is_complex() else [math.inf]
    elif isinstance(value, list | tuple | set):
        return all(map(moderate, value))
    else:
        numbers = [abs(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []
        if not numbers and (hasattr(value, "__float__") or hasattr(value, "__next__")):
            return False
    return all(number == 0 or 1e-3 <= number <= 1e3 for number in numbers)


def answers(draw: Draws) -> None:
    with fastmmd.backend(draw(st.sampled_from(["auto", "reference"]))):
        try:
            case(draw)
        except RuntimeError as error:
            if "Inference tensors cannot be saved for backward" not in str(error):  # torch's own rule
                raise


def every_argument(draw: Draws) -> Iterator[None]:
    """Each argument of each function replaced by everything, one at a time."""
    for name, target in TARGETS.items():
        for argument in target.arguments():
            for wrong in JUNK if argument not in target.spared else ():
                draw.start(lambda strategy: None)
                draw.note(f"{name}, {argument}, {wrong}")
                judge(target, target.arguments(), {argument: JUNK[wrong]()})
                yield


def main(part: str, count: int, record: Path) -> None:
    faulthandler.enable()
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    draws = Draws(record)
    if part == "every argument":
        print(sum(1 for _ in every_argument(draws)), "cases")
        return
    if part == "files":
        from fuzz_files import files as body  # it needs more packages
    else:
        body = {"arguments": arguments, "answers": answers}[part]
    done: list[None] = []

    @settings(
        max_examples=count,
        derandomize=os.environ.get("FASTMMD_TEST_FULL") != "1",
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def run(data: st.DataObject) -> None:
        draws.start(data.draw)
        done.append(None)
        body(draws)

    run()
    print(len(done), "cases")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
