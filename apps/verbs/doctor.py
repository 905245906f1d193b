"""``delineate doctor``: what this machine has, and what to do about what is missing."""

from __future__ import annotations

import argparse

HELP = "check the installation and the machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments."""


def run(args: argparse.Namespace) -> int:
    """Print a line per finding; 0 where nothing must be mended, 1 otherwise."""
    from tasks.doctor import examine

    findings = examine()
    for finding in findings:
        print(f"{'ok   ' if finding.ok else 'MEND '} {finding.what}: {finding.found}")
        if finding.remedy:
            print(f"      {finding.remedy}")
    return 0 if all(finding.ok for finding in findings) else 1
