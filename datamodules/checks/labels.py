"""What stands in the masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from datamodules.checks.facts import Facts, MaskFacts, Survey
from datamodules.checks.findings import Finding, few
from datamodules.splits import LEFT_OUT

# Below this many cases a value in one file only is no surprise.
_FEWEST = 5
# Values in at most this share of the files (or in one) are foreign.
_FOREIGN = 0.02
# More values than this are no classes.
_MOST_VALUES = 64
# Empty masks are a part of the dataset where at least this many, and this share of the cases, are empty.
_EMPTY_COUNT, _EMPTY_SHARE = 3, 0.05


def find_undeclared(survey: Survey) -> Iterator[Finding]:
    """Values that no class is declared for, and numbers that can be no class."""
    declared = _declared(survey)
    for facts, mask in _masks(survey):
        file = (survey.mask_of(facts.case),)
        odd = [v for v in mask.counts if not v.is_integer() or not 0 <= v <= 65535]
        if odd:
            yield Finding(
                "error",
                "no label",
                file,
                f"holds {few(odd)}; labels are whole numbers from 0 to 65535. Was it resampled as an image, or is it "
                "one?",
            )
        elif declared is not None:
            unknown = {v: n for v, n in mask.counts.items() if v not in declared}
            if unknown:
                names = ", ".join(f"{v:g} {n}" for v, n in sorted(declared.items()))
                yield Finding(
                    "error",
                    "undeclared label",
                    file,
                    f"holds the value(s) {_counted(unknown)}; declared are {names}. Declare them, set an ignore value, "
                    "or mend the mask",
                )
        elif len(mask.counts) > _MOST_VALUES:
            yield Finding(
                "warning",
                "many labels",
                file,
                f"holds {len(mask.counts)} different values; is it a mask? If it is, declare its classes",
            )


def find_foreign(survey: Survey) -> Iterator[Finding]:
    """Where nothing is declared: values that next to no other mask holds."""
    masks = _masks(survey)
    if _declared(survey) is not None or len(masks) < _FEWEST:
        return
    files = Counter(v for _, mask in masks for v in mask.counts)
    limit = max(1, int(_FOREIGN * len(masks)))
    usual = sorted(v for v, n in files.items() if n > limit)
    for facts, mask in masks:
        foreign = {v: n for v, n in mask.counts.items() if files[v] <= limit and v.is_integer()}
        if foreign and len(mask.counts) <= _MOST_VALUES:
            yield Finding(
                "warning",
                "foreign label",
                (survey.mask_of(facts.case),),
                f"holds the value(s) {_counted(foreign)}, the other masks {few(usual)} only; mend it, or declare the "
                "classes if it is right",
            )


def find_encoding(survey: Survey) -> Iterator[Finding]:
    """0 and 255 for no and yes, which training has to be told."""
    if _declared(survey) is not None:
        return
    files = Counter(v for _, mask in _masks(survey) for v in mask.counts)
    if set(files) == {0.0, 255.0}:
        yield Finding(
            "note", "encoding", (), "masks hold 0 and 255; declare the classes as background=0,NAME=255"
        )
    elif 255.0 in files and len(files) > 2:
        yield Finding(
            "note",
            "encoding",
            (),
            f"{files[255.0]} mask(s) hold 255 beside other values; if it marks what is unknown, set --ignore-value 255",
        )


def find_empty(survey: Survey) -> Iterator[Finding]:
    """Masks without foreground."""
    masks = _masks(survey)
    background = {0.0 if survey.classes is None else float(next(iter(survey.classes.values())))}
    if survey.ignore_value is not None:
        background.add(float(survey.ignore_value))
    empty = [facts for facts, mask in masks if set(mask.counts) <= background]
    names = [survey.mask_of(facts.case) for facts in empty]
    if empty and len(empty) == len(masks):
        yield Finding(
            "error", "empty mask", tuple(names), "no mask holds any foreground; are these the right files?"
        )
    elif len(empty) >= max(_EMPTY_COUNT, _EMPTY_SHARE * len(masks)):
        yield Finding(
            "note",
            "empty mask",
            tuple(names),
            f"{len(empty)} of {len(masks)} masks hold no foreground; right if these images show none",
        )
    else:
        for name in names:
            yield Finding(
                "warning",
                "empty mask",
                (name,),
                f"holds no foreground, as {len(empty)} of {len(masks)} masks; right if its image shows none, else draw "
                "it or delete the pair",
            )


def find_unannotated(survey: Survey) -> Iterator[Finding]:
    """Masks that are ignored everywhere."""
    if survey.ignore_value is None:
        return
    for facts, mask in _masks(survey):
        if set(mask.counts) == {float(survey.ignore_value)}:
            yield Finding(
                "warning",
                "nothing known",
                (survey.mask_of(facts.case),),
                "is the ignore value everywhere, so nothing can be learned from it; delete the pair",
            )


def find_absent(survey: Survey) -> Iterator[Finding]:
    """Classes that no mask, or no mask of a split, holds."""
    present = {v for _, mask in _masks(survey) for v in mask.counts}
    if not present:
        return
    names = {float(v): n for n, v in (survey.classes or {}).items()}
    for value, name in names.items():
        if value not in present:
            yield Finding(
                "warning", "absent class", (), f"no mask holds {name} ({value:g}); is the value right?"
            )
    for split, keys in (survey.splits or {}).items():
        if split == LEFT_OUT:
            continue
        held: set[float] = set()
        count = 0
        for facts, mask in _masks(survey):
            if facts.case.key in set(keys):
                held |= set(mask.counts)
                count += 1
        # With next to no cases, a class that is absent is no news.
        if count < 2 and split != "train":
            continue
        missing = sorted(v for v in (present & set(names) if names else _common(survey)) if v not in held)
        if missing and count:
            said = ", ".join(f"{v:g} {names[v]}" if v in names else f"{v:g}" for v in missing)
            yield Finding(
                "warning",
                "absent class",
                (survey.splits_file,),
                f"no mask of the {split} split holds {said}; move cases that do into it",
            )


def _common(survey: Survey) -> set[float]:
    """Values that more than one mask holds, so that every split could have had one."""
    files = Counter(v for _, mask in _masks(survey) for v in mask.counts)
    return {v for v, n in files.items() if n >= 3}


def _declared(survey: Survey) -> dict[float, str] | None:
    if survey.classes is None:
        return None
    declared = {float(value): name for name, value in survey.classes.items()}
    if survey.ignore_value is not None:
        declared.setdefault(float(survey.ignore_value), "ignored")
    return declared


def _masks(survey: Survey) -> list[tuple[Facts, MaskFacts]]:
    return [(facts, facts.mask) for facts in survey.facts if facts.mask is not None]


def _counted(values: dict[float, int]) -> str:
    return few([f"{v:g} ({n} position{'' if n == 1 else 's'})" for v, n in values.items()])
