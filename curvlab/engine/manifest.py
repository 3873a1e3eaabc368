"""What a run ran on: versions, devices, threads, the commit; for ``manifest.json`` and ``curvlab env``."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from curvlab import __version__
from curvlab.engine.plan import Plan
from curvlab.engine.training import Training


def describe(training: Training, folder: Path) -> dict[str, Any]:
    """The content of ``manifest.json``: what the run is made from and what it runs on."""
    plan, model = training.plan, training.model
    metric, more_is_better = plan.task.judged_by
    return {
        "name": plan.run.name,
        "folder": str(folder),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "argv": list(sys.argv),
        **_here(),
        "processes": training.company.size,
        "parts": dict(plan.provenance),
        "device": str(plan.backend.torch_device),
        "dtype": str(plan.backend.dtypes.parameters).removeprefix("torch."),
        "seed": plan.run.seed,
        "method": plan.method_name,
        "task": plan.resolved.get("task", {}).get("use", type(plan.task).__name__),
        "budget": {unit: getattr(plan.run, unit) for unit in ("epochs", "steps", "seconds")},
        "examples": training.workload.size,
        "batch_size": plan.task.batch_size,
        "judged_by": {"metric": metric, "more_is_better": more_is_better},
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "state_bytes": training.optimizer.state_bytes(),
        "coverage": [row.as_row() for row in training.optimizer.coverage()],
    }


def same_everywhere(plan: Plan) -> dict[str, Any]:
    """What the processes of one run must have in common: versions, plugins and the configuration."""
    text = json.dumps(plan.resolved, sort_keys=True, default=str)
    return {
        "curvlab": __version__,
        "torch": torch.__version__,
        "plugins": plugins(),
        "the configuration's hash": hashlib.sha256(text.encode()).hexdigest()[:12],
    }


def environment() -> dict[str, Any]:
    """Versions of Python, curvlab, torch, dependencies and plugins; devices, threads, operating system."""
    return {**_here(), "devices": devices(), "dependencies": dependencies()}


def _here() -> dict[str, Any]:
    """What is cheap to find out and may change the numbers of a run."""
    return {
        "curvlab": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "plugins": plugins(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "executable": sys.executable,
        "git": commit(Path()),  # not Path.cwd(), which raises where the working folder was deleted
    }


def plugins() -> dict[str, str]:
    """Distribution and version of every installed plugin, whether or not it can be loaded."""
    return dict(_plugins())


@cache
def _plugins() -> tuple[tuple[str, str], ...]:
    """Looked up once, because it reads the metadata of every installed distribution."""
    points = metadata.entry_points(group="curvlab")
    return tuple(sorted({(p.dist.name, p.dist.version) for p in points if p.dist is not None}))


def dependencies() -> dict[str, str]:
    """Version of everything that curvlab and its plugins ask for, as far as it is installed."""
    found: dict[str, str] = {}
    for owner in ("curvlab", *plugins()):
        try:
            asked = metadata.requires(owner) or []
        except metadata.PackageNotFoundError:  # running from a source tree
            continue
        for requirement in asked:
            if re.search(r"extra\s*==\s*['\"]dev['\"]", requirement):
                continue  # tools of our own development
            name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:  # an extra that is not installed
                continue
    return dict(sorted(found.items()))


def devices() -> list[str]:
    """What torch could compute on, by name."""
    found = ["cpu"]
    if torch.cuda.is_available():
        found += [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def commit(folder: Path) -> dict[str, Any] | None:
    """Commit of the git tree that ``folder`` lies in, and whether files differ from it; ``None`` if none."""
    head = _git(folder, "rev-parse", "HEAD")
    if not head:
        return None
    return {"commit": head, "changed": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}


def _git(folder: Path, *arguments: str) -> str:
    """What git says; nothing if there is no git, no repository, or no commit in it."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            errors="replace",  # what git says of names that are not UTF-8
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _processor() -> str:
    """The processor's name as the operating system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
