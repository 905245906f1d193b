"""``delineate``: one command, a verb for each thing people do.

Only the standard library is imported here; each verb imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

# Verb -> module in apps.verbs, in the order people meet them.
VERBS = {
    "demo": "demo",
    "check": "check",
    "plan": "plan",
    "recipes": "recipes",
    "fit": "training",
    "validate": "training",
    "test": "training",
    "predict": "predict",
    "masks": "masks",
    "view": "view",
    "evaluate": "evaluate",
    "export": "export",
    "benchmark": "benchmark",
    "doctor": "doctor",
}
# These are handed to LightningCLI as they are, in any order.
TRAINING = ("fit", "validate", "test")
OWN_PACKAGES = ("models", "datamodules", "tasks", "configs")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code: 0 all good, 1 some inputs failed, 2 nothing could be done."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    foreign = shadowed_packages()
    if foreign:
        print(f"delineate: {foreign}", file=sys.stderr)
        return 2
    verb = next((a for a in arguments if a in TRAINING), None)
    try:
        if verb is not None and not any(a in VERBS for a in arguments[: arguments.index(verb)]):
            arguments.remove(verb)
            return int(importlib.import_module("apps.verbs.training").run(verb, arguments))
        args = build_parser().parse_args(arguments)
        if args.verb is None:
            build_parser().print_help()
            return 2
        return int(importlib.import_module(f"apps.verbs.{VERBS[args.verb]}").run(args))
    except KeyboardInterrupt:
        print("delineate: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get("DELINEATE_TRACEBACK"):
            raise
        said = said_by_us(error)
        if said is None:
            print(
                f"delineate: unexpected {type(error).__name__}: {error}\n"
                "Set DELINEATE_TRACEBACK=1 to see where it happened, and report it.",
                file=sys.stderr,
            )
            return 2
        print(f"delineate: {said}", file=sys.stderr)
        return 2


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = argparse.ArgumentParser(
        prog="delineate",
        description="Train, evaluate and run attention-augmented segmentation on MRI, X-ray and satellite imagery.",
        epilog="delineate VERB --help explains a verb. Start with delineate demo; with images of your own: check, plan, "
        "fit, predict, evaluate. Research use only, not for diagnosis.",
    )
    parser.add_argument("--version", action="version", version=_version())
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    for verb, module_name in VERBS.items():
        module = importlib.import_module(f"apps.verbs.{module_name}")
        text = module.HELP[verb] if isinstance(module.HELP, dict) else module.HELP
        sub = verbs.add_parser(verb, help=text, description=text[0].upper() + text[1:] + ".")
        if verb not in TRAINING:
            module.add_arguments(sub)
    return parser


def shadowed_packages() -> str | None:
    """Say which of our packages another one of the same name hides, if any."""
    home = Path(__file__).resolve().parent.parent
    for name in OWN_PACKAGES:
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve().parent if spec is not None and spec.origin else None
        if found != home / name:
            return (
                f"the package {name!r} is found at {found}, not at {home / name}: another package of that name hides "
                "it. Run delineate from another folder, or install it in an environment of its own"
            )
    return None


def said_by_us(error: BaseException | None) -> BaseException | None:
    """The innermost error of ours: it says in one sentence what to do, whatever parser wrapped it."""
    found = None
    while error is not None:
        if type(error).__module__.split(".")[0] in ("datamodules", "tasks", "models", "apps"):
            found = error
        error = error.__cause__ or error.__context__
    return found


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"delineate {version('delineate')}"
    except PackageNotFoundError:
        return "delineate (not installed)"


if __name__ == "__main__":
    sys.exit(main())
