"""What can be wrong with a dataset. Each check is one small function over what was remembered of all cases."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from datamodules.checks import duplicates, flips, geometry, intensity, labels, leaks, pairing
from datamodules.checks.facts import Survey
from datamodules.checks.findings import Finding, Report, Summary

# A new check is a function and a line here.
CHECKS: tuple[Callable[[Survey], Iterable[Finding]], ...] = (
    pairing.find_unpaired,
    pairing.find_disguised,
    pairing.find_lossy_masks,
    geometry.find_sheared,
    geometry.find_other_axes,
    geometry.find_odd_spacing,
    labels.find_undeclared,
    labels.find_foreign,
    labels.find_encoding,
    labels.find_empty,
    labels.find_unannotated,
    labels.find_absent,
    intensity.find_nonfinite,
    intensity.find_constant,
    intensity.find_channels,
    intensity.find_scale,
    intensity.find_nodata,
    intensity.find_swapped,
    duplicates.find_duplicates,
    duplicates.find_near_duplicates,
    duplicates.find_shared_masks,
    leaks.find_split_keys,
    leaks.find_groups,
    leaks.find_overlaps,
    flips.find_flips,
)

__all__ = ["CHECKS", "Finding", "Report", "Summary", "Survey"]
