"""What `import fastmmd` touches, and that a forked worker can use it."""

from __future__ import annotations

import json
import subprocess
import sys

import torch
from helpers import points
from torch.utils.data import DataLoader, Dataset

import fastmmd

PROBE = """
import json, sys
import torch
def threads():
    return int(next(line for line in open("/proc/self/status") if line.startswith("Threads")).split()[1])
before = threads()
import fastmmd
compiled = ("_native", "_cuda")
modules = [name for name in sys.modules if name.startswith("fastmmd.") and name.split(".")[1] in compiled]
mapped = {line.split("/")[-1].strip() for line in open("/proc/self/maps") if "/" in line}
libraries = [name for name in mapped if name.split(".")[0] in compiled]
print(json.dumps({"threads": threads() - before, "modules": modules, "libraries": libraries,
                  "cuda": torch.cuda.is_initialized(), "public": fastmmd.__all__}))
"""


def test_import_touches_nothing() -> None:
    """No threads, no compiled code, no CUDA."""
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    run = json.loads(done.stdout)
    assert (run["threads"], run["modules"], run["libraries"], run["cuda"]) == (0, [], [], False)
    public = run["public"]
    assert len(set(public)) == len(public)
    assert all(hasattr(fastmmd, name) for name in public)


class Discrepancies(Dataset[torch.Tensor]):
    """Each item runs every operation inside the worker."""

    def __init__(self, backend: str) -> None:
        self.backend = backend

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        return everything(self.backend, index)


def everything(backend: str, index: int) -> torch.Tensor:
    x, y = points(300, 5, seed=index).requires_grad_(), points(200, 5, seed=100 + index)
    with fastmmd.backend(backend):
        value = fastmmd.mmd2(x, y, (1.0, 2.0))
        (gradient,) = torch.autograd.grad(value, x)
        features = fastmmd.fourier_mean(y, fastmmd.FourierFeatures(5, 64)).sum()
        likelihood = fastmmd.parzen_log_likelihood(y, x.detach(), 0.5).mean()
        witness = fastmmd.witness(y, x.detach(), y).mean()
    return torch.stack([value.detach(), gradient.norm(), features, likelihood, witness])


def test_forked_workers_work_after_use(backend: str) -> None:
    """Use, fork, use: the children neither hang nor disagree, and the parent goes on."""
    before = everything(backend, 0)
    loader = DataLoader(Discrepancies(backend), batch_size=1, num_workers=2, multiprocessing_context="fork", timeout=60)
    loaded = torch.cat(list(loader))
    torch.testing.assert_close(loaded[0], before, rtol=1e-6, atol=1e-6)
    assert torch.equal(everything(backend, 0), before)
