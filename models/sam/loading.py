"""Makes the tensors of a checkpoint fit a network, and says of every one what became of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

from models.errors import ModelError
from models.sam.attention import resample_positions
from models.sam.sizes import SIZES

_PATCHES = "image_encoder.patch_embed.proj.weight"
_POSITIONS = "image_encoder.pos_embed"
_RELATIVE = re.compile(r"image_encoder\.blocks\.\d+\.attn\.rel_pos_[hw]")
# One per mask: another number of classes begins anew, as in SAMed. A whole family does or none of it.
_PER_MASK = (
    "mask_decoder.mask_tokens.",
    "mask_decoder.output_hypernetworks_mlps.",
    "mask_decoder.iou_prediction_head.",
)


@dataclass
class Report:
    """What became of the tensors of a file; every name of the file and of the network is in one of them.

    Attributes:
        file: the file's name.
        loaded: taken as they are.
        resampled: positions, brought to this image size: name ``->`` both shapes.
        adapted: the patch embedding, for other channels: name ``->`` both shapes.
        new: of the network, not in the file or not of its shape there: begins at random.
        left_out: of the file, not used.
    """

    file: str
    loaded: list[str] = field(default_factory=list)
    resampled: dict[str, str] = field(default_factory=dict)
    adapted: dict[str, str] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = {name: len(getattr(self, name)) for name in ("loaded", "resampled", "adapted", "new")}
        parts = [f"{n} {name}" for name, n in counts.items() if n]
        return f"{self.file}: {', '.join(parts)}; left out: {_some(self.left_out)}"

    def lines(self) -> list[str]:
        """A line for every tensor."""
        return [
            *(f"loaded     {name}" for name in self.loaded),
            *(f"resampled  {name}: {how}" for name, how in self.resampled.items()),
            *(f"adapted    {name}: {how}" for name, how in self.adapted.items()),
            *(f"new        {name}" for name in self.new),
            *(f"left out   {name}" for name in self.left_out),
        ]


def fit_tensors(
    wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], file: Path
) -> tuple[dict[str, Tensor], Report]:
    """Tensors for a network's ``load_state_dict(..., strict=False)``, of its shapes and dtypes.

    Positions are resampled to the network's image size, linearly, as SAMed does. A patch embedding for other channels
    is summed over them for one channel, and otherwise repeated and scaled so that a grey image gives what it gave, as
    timm does. Tokens and heads of another number of masks are not taken.

    Args:
        wanted: the network's tensors, of which only shapes and dtypes matter, without those of adapters.
        given: by SAM's names.
        file: for messages.

    Raises:
        ModelError: another size of SAM, or a part is missing.
    """
    _check_size(wanted, given, file)
    report = Report(file.name)
    tensors: dict[str, Tensor] = {}
    other_masks = any(
        given[name].shape != wanted[name].shape
        for name in wanted
        if name.startswith(_PER_MASK) and name in given
    )
    for name, ours in wanted.items():
        theirs = given.get(name)
        if theirs is None or (other_masks and name.startswith(_PER_MASK)):
            report.new.append(name)
            continue
        change = f"{_shape(theirs)} -> {_shape(ours)}"
        if theirs.shape == ours.shape:
            tensors[name] = theirs.to(ours.dtype)
            report.loaded.append(name)
            continue
        fitted = _fitted(name, theirs, ours)
        if fitted is None or fitted.shape != ours.shape:
            raise ModelError(
                f"weights: {file} has {name} of another shape: {change}; give the size it was trained with"
            )
        (report.adapted if name == _PATCHES else report.resampled)[name] = change
        tensors[name] = fitted.to(ours.dtype)
    _check_whole(report, file, other_masks)
    report.left_out = [name for name in given if name not in tensors]
    return tensors, report


def _fitted(name: str, theirs: Tensor, ours: Tensor) -> Tensor | None:
    """``theirs`` in the shape of ``ours``, where that can be; in float32."""
    theirs = theirs.float()
    if name == _POSITIONS:
        maps = F.interpolate(theirs.permute(0, 3, 1, 2), ours.shape[1:3], mode="bilinear")
        return maps.permute(0, 2, 3, 1)
    if _RELATIVE.fullmatch(name):
        return resample_positions(theirs, len(ours))
    if name == _PATCHES:
        channels = ours.shape[1]
        if channels == 1:
            return theirs.sum(1, keepdim=True)
        repeated = theirs.repeat(1, -(-channels // theirs.shape[1]), 1, 1)[:, :channels]
        return repeated * (theirs.shape[1] / channels)
    return None


def _check_size(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], file: Path) -> None:
    """That the file holds a SAM of this width and depth, where both can be seen."""
    came, want = _numbers(given), _numbers(wanted)
    if came == want:
        return
    names = {(s.embed_dim, s.depth): name for name, s in SIZES.items()}
    name = names.get(came)
    kind = f"is a SAM {name}" if name else "is a SAM of another size"
    raise ModelError(
        f"weights: {file} {kind} ({came[0]} channels, {came[1]} blocks), the network has {want[0]} channels and "
        f"{want[1]} blocks; " + (f"set size: {name}" if name else "set size to its numbers")
    )


def _numbers(tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """Channels and blocks of the image encoder."""
    found = [re.match(r"image_encoder\.blocks\.(\d+)\.attn\.qkv\.", name) for name in tensors]
    return tensors[_POSITIONS].shape[-1], 1 + max((int(m[1]) for m in found if m), default=-1)


def _check_whole(report: Report, file: Path, other_masks: bool) -> None:
    """That nothing is missing but what other numbers of masks explain."""
    missing = [name for name in report.new if not (other_masks and name.startswith(_PER_MASK))]
    if missing:
        raise ModelError(f"weights: {file} is no whole SAM; it lacks {_some(missing)}")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))


def _some(names: list[str]) -> str:
    """All names where they are few, else the first ones and how many there are."""
    return (", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")) or "nothing"
