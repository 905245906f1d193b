"""Real MRI that comes with a dependency: the ICBM-152 2009a T1 template and its tissue maps, packaged with nilearn."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from datamodules.errors import DataError


def packaged(what: str) -> Path:
    """The file of a volume of the template: ``t1``, ``gm`` or ``wm``.

    Raises:
        DataError: nilearn, which packages it, is not installed.
    """
    spec = find_spec("nilearn")
    if spec is None or spec.origin is None:
        raise DataError(
            "the demo's MRI is packaged with nilearn; install it: pip install -c constraints.txt '.[demo]'"
        )
    # Read as a file: importing nilearn would take seconds and a dozen packages.
    name = f"mni_icbm152_{what}_tal_nlin_sym_09a_converted.nii.gz"
    file = Path(spec.origin).parent / "datasets" / "data" / name
    if not file.is_file():
        raise DataError(f"{file}: nilearn does not package this file any more; install the pinned version")
    return file
