"""Findings about the installation and the machine, each with what to do."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from datamodules.cache import default_cache_folder

# Malware was published under these versions (GHSA-w37p-236h-pfx3).
BAD_LIGHTNING = ("2.6.2", "2.6.3")
EXTRAS = {
    "pydicom": "dicom: DICOM images",
    "rasterio": "geo: GeoTIFF scenes",
    "nilearn": "demo: the embedded MRI",
    "streamlit": "viewer: the browser viewer",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    found: str
    ok: bool = True
    remedy: str = ""


def examine() -> list[Finding]:
    """Look at python, packages, the torch/torchvision pair, devices, memory, disk and the cache."""
    return [
        _python(),
        *(_package(name) for name in ("delineate", "torch", "monai", "lightning", "timm", "nibabel")),
        _torchvision(),
        _lightning(),
        *_extras(),
        _device(),
        _memory(),
        _disk(),
        _cache(),
    ]


def _python() -> Finding:
    ok = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Finding("python", platform.python_version(), ok, "" if ok else "use python 3.11 to 3.13")


def _package(name: str) -> Finding:
    try:
        return Finding(name, version(name))
    except PackageNotFoundError:
        return Finding(name, "not installed", False, "run: pip install -c constraints.txt '.[all]'")


def _torchvision() -> Finding:
    """timm and segment-anything die on import where torchvision does not match torch."""
    try:
        importlib.import_module("torchvision")
        return Finding("torchvision", f"{version('torchvision')} fits torch {version('torch')}")
    except Exception as error:
        remedy = (
            f"torch {version('torch')} and torchvision do not fit: install the pair that constraints.txt names, both "
            "from the same source (a CPU-only torch wheel needs a CPU-only torchvision)"
        )
        return Finding("torchvision", f"{type(error).__name__}: {error}".splitlines()[0], False, remedy)


def _lightning() -> Finding:
    found = version("lightning")
    bad = found in BAD_LIGHTNING
    remedy = "this release was malware: uninstall it, rotate the machine's credentials" if bad else ""
    return Finding(
        "lightning release", "known bad" if bad else "not among the known bad ones", not bad, remedy
    )


def _extras() -> list[Finding]:
    findings = []
    for package, use in EXTRAS.items():
        name, _, what = use.partition(": ")
        try:
            findings.append(Finding(f"extra {name}", f"{package} {version(package)} ({what})"))
        except PackageNotFoundError:
            remedy = f"only for {what}: pip install -c constraints.txt '.[{name}]'"
            findings.append(Finding(f"extra {name}", "not installed (optional)", True, remedy))
    return findings


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Finding("device", f"CUDA: {names}")
    return Finding("device", f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads used by torch")


def _memory() -> Finding:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError, AttributeError):
        return Finding("memory", "cannot be told on this system")
    ok = total >= 4
    return Finding("memory", f"{total:.1f} GiB", ok, "" if ok else "4 GiB or more are needed to train")


def _disk() -> Finding:
    free = shutil.disk_usage(".").free / 2**30
    ok = free >= 1
    return Finding(
        "free disk here", f"{free:.1f} GiB", ok, "" if ok else "free at least 1 GiB for runs and caches"
    )


def _cache() -> Finding:
    folder = default_cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        return Finding("cache of prepared cases", f"{folder} (safe to delete)")
    except OSError as error:
        return Finding(
            "cache of prepared cases", f"{folder}: {error}", False, "set XDG_CACHE_HOME, or data.cache_dir"
        )
