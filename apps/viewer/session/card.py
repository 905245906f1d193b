"""What a model file says about its model, as people read it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from datamodules.classes import Class
from tasks.model_file import Description


@dataclass(frozen=True)
class Card:
    """What to know before a model is used.

    Attributes:
        draws: the classes that it draws, without the background.
        facts: (name, value) pairs, text.
        metrics: name -> score, as the file has them.
        calibrated: what the probabilities are worth, in one sentence.
    """

    draws: tuple[Class, ...]
    facts: tuple[tuple[str, str], ...]
    metrics: dict[str, float]
    calibrated: str


def card_of(description: Description, file: Path) -> Card:
    """Read a description as a card."""
    how, patch, classes = description.preprocessing, description.patch, description.classes
    axes = len(patch.size)
    wants = "volumes" if axes == 3 else "pictures and maps"
    sees = " x ".join(str(n) for n in patch.size)
    facts = [
        ("For", wants),
        ("Channels", f"{len(how.channels)}: {', '.join(how.channels)}"),
    ]
    if how.may_miss:
        facts.append(("May be missing", ", ".join(how.may_miss)))
    facts.append(("Sees at a time", f"{sees} {'voxels' if axes == 3 else 'pixels'}"))
    if how.spacing is not None:
        facts.append(("Resampled to", f"{' x '.join(f'{s:g}' for s in how.spacing)} per element"))
    if how.sensor:
        facts.append(("Sensor", how.sensor))
    if not classes.exclusive:
        facts.append(("Classes", "may overlap"))
    said = {"name": "Trained on", "source": "Data", "licence": "Licence", "cases": "Cases"}
    for key, title in said.items():
        value = description.data.get(key)
        if isinstance(value, str | int) and str(value):
            facts.append((title, str(value)))
    if "licence" not in description.data:
        facts.append(
            ("Licence", "the file does not say; ask who made it (that of the training data counts too)")
        )
    version = description.versions.get("delineate")
    if version:
        facts.append(("Made with", f"delineate {version}"))
    facts.append(("File", f"{file.name}, {file.stat().st_size / 1e6:.1f} MB"))
    return Card(
        tuple(classes[k] for k in classes.foreground),
        tuple(facts),
        {str(k): float(v) for k, v in description.metrics.items() if isinstance(v, int | float)},
        calibration_note(description),
    )


def calibration_note(description: Description) -> str:
    """What the model's probabilities are worth, in one sentence."""
    temperature = (description.calibration or {}).get("temperature")
    if temperature is None:
        return "Probabilities are not calibrated: 0.9 does not mean that 9 of 10 such positions are right."
    return f"Probabilities are calibrated on validation data (temperature {temperature:.2f})."
