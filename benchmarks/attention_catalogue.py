"""The tables of docs/attention.md, made from the blocks themselves.

    python -m benchmarks.attention_catalogue

rewrites what stands between the markers of the page. Families are the comments of the table in
``models/attention/__init__.py``; all else is asked of the classes: first line and citation of the docstring,
declarations, parameters.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from pathlib import Path

import models.attention
from models.attention import ATTENTION

PAGE = Path(__file__).resolve().parent.parent / "docs" / "attention.md"
BEGIN = "<!-- Made by: python -m benchmarks.attention_catalogue. What stands below is rewritten. -->"
END = "<!-- End of what is made. -->"
CHANNELS = 64

# Authors, what they call it, where it appeared, number. One author alone must begin a sentence: else any word with
# a comma behind it could be one.
_CITATION = re.compile(
    r"((?:(?:d')?[A-Z][\w-]+(?: et al\.| and [A-Z][\w-]+)|(?<=\. )[A-Z][\w-]+), (?:(?!arXiv|et al).)*?)arXiv (\d{4}\.\d{5})"
)


@dataclass(frozen=True)
class Family:
    """Blocks of one kind: a heading, a sentence, and their names in the order of the table."""

    title: str
    sentence: str
    keys: tuple[str, ...]


def families() -> list[Family]:
    """The families of the table, as its comments name them.

    Raises:
        ValueError: a block without a family, or a comment that is not a title, a colon and a sentence.
    """
    (table,) = re.findall(
        r"^ATTENTION: .*?\{\n(.*?)^\}", inspect.getsource(models.attention), re.MULTILINE | re.DOTALL
    )
    found = []
    for part in re.split(r"^ +# ", table, flags=re.MULTILINE)[1:]:
        comment, _, entries = part.partition("\n")
        title, colon, sentence = comment.partition(": ")
        if not colon:
            raise ValueError(f"{comment!r} in the table of attention is not: title, colon, sentence")
        found.append(
            Family(title, sentence[0].upper() + sentence[1:], tuple(re.findall(r'"(\w+)":', entries)))
        )
    if [key for family in found for key in family.keys] != list(ATTENTION):
        raise ValueError("every block of the table of attention wants to stand below the comment of a family")
    return found


def summary(key: str) -> str:
    """What a block computes: the first line of its docstring."""
    return _words(_docstring(key).split("\n\n")[0]).replace("``", "`")


def citation(key: str) -> str:
    """The first paper that a block's docstring names, with a link.

    Raises:
        ValueError: there is none in the form ``Authors, title, venue, arXiv 1234.56789``.
    """
    found = _CITATION.search(_words(_docstring(key)))
    if found is None:
        raise ValueError(f"{key}: no paper as 'Authors, title, venue, arXiv 1234.56789' in its docstring")
    return f"{found[1]}[arXiv {found[2]}](https://arxiv.org/abs/{found[2]})"


def parameters(key: str) -> int:
    """Number of parameters with the default options, for 64 channels in 2D."""
    return sum(p.numel() for p in ATTENTION[key](CHANNELS).parameters())


def tables() -> str:
    """All that stands between the markers."""
    return "\n".join(_table(family) for family in families())


def with_tables(page: str) -> str:
    """The page with what is between its markers made anew."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page wants the lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"


def _table(family: Family) -> str:
    rows = [
        "| Name | What it does | Paper | Axes | Cost | Parameters | Map | Kind |",
        "|---|---|---|---|---|---|---|---|",
        *(_row(key) for key in family.keys),
    ]
    return f"### {family.title}\n\n{family.sentence}\n\n" + "\n".join(rows) + "\n"


def _row(key: str) -> str:
    block = ATTENTION[key]
    cells = (
        f"`{key}`",
        summary(key),
        citation(key),
        ", ".join(f"{n}D" for n in sorted(block.ndims)),
        block.cost,
        f"{parameters(key):,}",
        "yes" if block.shows else "no",
        "mixes" if block.mixes else "gates",
    )
    return "| " + " | ".join(cells) + " |"


def _docstring(key: str) -> str:
    return inspect.cleandoc(ATTENTION[key].__doc__ or "")


def _words(text: str) -> str:
    return " ".join(text.split())


def main() -> None:
    PAGE.write_text(with_tables(PAGE.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
