"""``delineate recipes``: what can be trained out of the box."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "list what can be trained out of the box, or show one recipe"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("name", nargs="?", help="show this recipe's YAML")


def folder() -> Path:
    """Where the recipes lie."""
    import configs

    return Path(configs.__path__[0]) / "recipes"


def path_of(name: str) -> Path | None:
    """The file of a recipe by its name, or None."""
    return {file.stem: file for file in _files()}.get(name)


def run(args: argparse.Namespace) -> int:
    """Print the list, or one recipe."""
    if args.name is None:
        group = folder()
        for file in _files():
            if file.parent != group:
                group = file.parent
                print(f"\n{group.name.capitalize()}")
            print(f"{file.stem:24}{_summary(file)}")
        print("\nShow one:  delineate recipes NAME\nTrain one: delineate fit -c NAME --data.root FOLDER")
        return 0
    file_of_name = path_of(args.name)
    if file_of_name is None:
        known = ", ".join(f.stem for f in _files())
        print(f"delineate: there is no recipe {args.name!r}; there are: {known}")
        return 2
    print(file_of_name.read_text("utf-8"), end="")
    return 0


def _files() -> list[Path]:
    """All recipes, those in folders of their own last."""
    return sorted(folder().rglob("*.yaml"), key=lambda file: (file.parent != folder(), file))


def _summary(file: Path) -> str:
    """The first comment line of a recipe says what it is."""
    first = file.read_text("utf-8").splitlines()[0]
    return first.lstrip("# ").strip()
