"""The command line itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from apps.cli import VERBS, main, shadowed_packages

ROOT = Path(__file__).parent.parent


def test_help_names_every_verb_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom apps.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'lightning', 'monai', 'nibabel', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert all(verb in done.stdout for verb in VERBS)


def test_recipes_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert {"mri_tissue_demo", "mri_hippocampus_2d", "mri_hippocampus_3d", "folder_2d"} <= set(listed.split())
    assert main(["recipes", "folder_2d"]) == 0
    assert capsys.readouterr().out == (ROOT / "configs" / "recipes" / "folder_2d.yaml").read_text()
    assert main(["recipes", "nonsense"]) == 2


def test_no_verb_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "demo" in capsys.readouterr().out


def test_another_package_of_our_name_is_said(tmp_path: Path) -> None:
    assert shadowed_packages() is None
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("")
    code = (
        f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nsys.path.append({str(ROOT)!r})\n"
        "from apps.cli import main\nsys.exit(main(['recipes']))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert done.returncode == 2
    assert "another package of that name" in done.stderr


def test_doctor_looks_at_the_pair_that_breaks(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor"])
    said = capsys.readouterr().out
    assert "torchvision" in said
    assert "memory" in said
    assert (code == 1) == ("MEND" in said)


def test_an_unexpected_error_is_no_bare_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import apps.verbs.doctor

    def broken(args: object) -> int:
        raise KeyError("x")

    monkeypatch.setattr(apps.verbs.doctor, "run", broken)
    assert main(["doctor"]) == 2
    assert "DELINEATE_TRACEBACK=1" in capsys.readouterr().err
