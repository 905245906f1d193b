"""What the pages say is there: files, verbs, recipes, settings, messages, links."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from apps.cli import VERBS, build_parser
from apps.verbs.recipes import folder as recipe_folder

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("apps", "models", "datamodules", "tasks", "configs")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
IDS = [page.relative_to(ROOT).as_posix() for page in PAGES]
RECIPES = {file.stem for file in recipe_folder().glob("*.yaml")}
# Those of systems have a test and a table of their own (tests/systems/test_recipes.py, docs/systems.md).
ALL_RECIPES = {file.stem for file in recipe_folder().rglob("*.yaml")}
every_page = pytest.mark.parametrize("page", PAGES, ids=IDS)

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")


def text_of(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def fenced(text: str, language: str) -> list[str]:
    return [body for found, body in FENCE.findall(text) if found == language]


def code(text: str) -> list[str]:
    """All that is typed: the fenced blocks, and the spans outside of them."""
    return [body for language, body in FENCE.findall(text) if language != "tree"] + SPAN.findall(
        FENCE.sub("", text)
    )


def tables(text: str) -> Iterator[list[list[str]]]:
    """Every table as rows of cells, the heading first, the rule below it left out."""
    for block in re.findall(r"(?:^\|.*\|\n)+", FENCE.sub("", text) + "\n", re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        yield [rows[0], *rows[2:]]


def first_column(text: str, heading: str) -> list[str]:
    """What stands in the code spans of the first column of all tables with this heading."""
    return [
        span
        for heads, *rows in tables(text)
        if heads[0] == heading
        for row in rows
        for span in SPAN.findall(row[0])
    ]


# The tree ------------------------------------------------------------------------------------------------------


def test_the_tree_is_the_tree() -> None:
    (block,) = fenced(text_of("docs/all-on-one-page.md"), "tree")
    files, folders, parents = set(), set(), []
    for line in block.splitlines():
        match = re.fullmatch(r"( *)(\S+) {2,}(\S.*)", line)
        assert match, f"{line!r} is not: name, two spaces or more, what it holds"
        parents = parents[: len(match[1]) // 2]
        assert len(parents) == len(match[1]) // 2, f"{line!r} is indented below nothing"
        path = "/".join([*parents, match[2].rstrip("/")])
        (folders if match[2].endswith("/") else files).add(path)
        if match[2].endswith("/"):
            parents.append(match[2].rstrip("/"))
    real = {
        file.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for pattern in ("*.py", "*.yaml", "*.j2")
        for file in (ROOT / package).rglob(pattern)
        if not file.name.startswith(".")
    }
    assert files <= real, f"in the tree, but not there: {sorted(files - real)}"
    # Of what lies deeper only the folders: each file says in its first line what it is.
    wanted = {file for file in real if file.count("/") == 1 and not file.endswith("/__init__.py")}
    assert wanted <= files, f"there, but not in the tree: {sorted(wanted - files)}"
    parents_of = {parent.as_posix() for file in real for parent in Path(file).parents} - {"."}
    assert folders <= parents_of, f"in the tree, but not there: {sorted(folders - parents_of)}"
    near = {folder for folder in parents_of if folder.count("/") <= 1}
    assert near <= folders, f"there, but not in the tree: {sorted(near - folders)}"


# What is typed ---------------------------------------------------------------------------------------------------


@every_page
def test_verbs_and_recipes_that_are_named_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    for typed in code(text):
        assert set(re.findall(r"\bdelineate +([a-z]+)", typed)) <= set(VERBS), typed
        assert set(re.findall(r"(?<!\S)-c +([a-z]\w+)(?![\w./])", typed)) <= ALL_RECIPES, typed
    for typed in fenced(text, "sh"):
        assert set(re.findall(r"delineate recipes +([a-z]\w+)", typed)) <= ALL_RECIPES, typed


def test_the_readme_names_every_verb_and_every_recipe() -> None:
    readme = text_of("README.md")
    assert {verb for verb in VERBS if f"`delineate {verb}`" in readme} == set(VERBS)
    assert set(first_column(readme, "Recipe")) == RECIPES
    assert len(readme.splitlines()) < 150


def test_every_recipe_has_a_card() -> None:
    """But for the one without data of its own. A card says how to run it, on what, with which licence and limits."""
    cards = {card.stem: card.read_text("utf-8") for card in (ROOT / "docs/cards").glob("*.md")}
    assert set(cards) == RECIPES - {"folder_2d"}
    for name, text in cards.items():
        command = (
            "delineate demo" if name == "mri_tissue_demo" else f"delineate fit -c {name} --data.root FOLDER"
        )
        assert command in fenced(text, "sh")[0]
        headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
        assert headings == ["Data", "Worth knowing", "Limits"], name
        assert "**Reached here:**" in text
        assert re.search("licence|CC BY", text, re.IGNORECASE), name
        assert f"docs/cards/{name}.md" in text_of("README.md")


def test_every_decision_is_named_where_the_whole_is_told() -> None:
    whole = text_of("docs/all-on-one-page.md")
    for page in sorted((ROOT / "docs/decisions").glob("*.md")):
        assert f"(decisions/{page.name})" in whole
        assert re.findall(r"^## (.*)$", page.read_text("utf-8"), re.MULTILINE) == [
            "What",
            "Why",
            "What else was weighed",
            "The price",
        ]


@pytest.mark.parametrize(
    ("page", "verb"),
    [
        ("predict", "predict"),
        ("metrics", "evaluate"),
        ("check", "check"),
        ("plan", "plan"),
        ("export", "export"),
        ("interactive", "masks"),
    ],
)
def test_every_option_of_a_verb_is_explained(page: str, verb: str) -> None:
    (verbs,) = (action for action in build_parser()._actions if action.dest == "verb")
    assert isinstance(verbs.choices, dict)
    options = {name for action in verbs.choices[verb]._actions for name in action.option_strings}
    assert set(first_column(text_of(f"docs/{page}.md"), "Option")) == options - {"-h", "--help"}


@every_page
def test_snippets_parse(page: Path) -> None:
    text = page.read_text("utf-8")
    for snippet in fenced(text, "yaml"):
        assert yaml.safe_load(snippet), snippet
    for snippet in fenced(text, "python"):
        for node in ast.walk(ast.parse(snippet)):
            if isinstance(node, ast.ImportFrom):
                module = __import__(node.module or "", fromlist=["x"])
                assert all(hasattr(module, name.name) for name in node.names), snippet
            elif isinstance(node, ast.Import):
                assert all(name.name.split(".")[0] in PACKAGES for name in node.names), snippet


def snippets_of_networks() -> list[Any]:
    found = []
    for page in PAGES:
        for snippet in fenced(page.read_text("utf-8"), "yaml"):
            loaded = yaml.safe_load(snippet)
            network = loaded.get("model", {}).get("init_args", {}).get("network", {}).get("init_args", loaded)
            if "attention" in network:
                found.append(pytest.param(network, id=f"{page.stem}-{len(found)}"))
    return found


@pytest.mark.parametrize("network", snippets_of_networks())
def test_networks_that_are_shown_can_be_built(network: dict[str, Any]) -> None:
    from models import EncoderDecoder

    EncoderDecoder(1, 2, **({"encoder": {"name": "plain", "widths": [8, 8, 8]}} | network))


# Settings --------------------------------------------------------------------------------------------------------


def signatures() -> dict[str, set[str]]:
    """Prefix of a setting -> the names that may follow it."""
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import ModelCheckpoint

    from datamodules import SegmentationData
    from datamodules.augmentation import Augmentation
    from datamodules.division import Division
    from models import SYSTEMS
    from models.clipseg import ClipSegSegmenter
    from models.sam import SamSegmenter
    from tasks import SegmentationTask

    def names(function: Callable[..., Any]) -> set[str]:
        return set(inspect.signature(function).parameters) - {"self"}

    return {
        "data.augmentation": names(Augmentation),
        "data.division": names(Division),
        "data": names(SegmentationData.__init__),
        "model.network": set().union(
            *(names(c.__init__) for c in (*SYSTEMS.values(), SamSegmenter, ClipSegSegmenter))
        ),
        "model": names(SegmentationTask.__init__),
        "trainer": names(pl.Trainer.__init__),
        "checkpoint": names(ModelCheckpoint.__init__),
    }


@every_page
def test_settings_that_are_named_exist(page: Path) -> None:
    known = signatures()
    pattern = re.compile(rf"(?<![\w./*(])(?:--)?({'|'.join(map(re.escape, known))})\.(?!init_args)([a-z]\w*)")
    for typed in code(page.read_text("utf-8")):
        if re.search(r"\.(md|json|yaml|csv|html|safetensors|onnx|pt2|py|previous)\b", typed):
            continue
        for prefix, name in pattern.findall(typed):
            assert name in known[prefix], typed


@every_page
def test_settings_of_data_in_snippets_exist(page: Path) -> None:
    known = signatures()
    for snippet in fenced(page.read_text("utf-8"), "yaml"):
        arguments = yaml.safe_load(snippet).get("data", {}).get("init_args", {})
        assert set(arguments) <= known["data"], snippet
        for group in ("division", "augmentation"):
            assert set(arguments.get(group, {})) <= known[f"data.{group}"], snippet


def test_classes_that_are_shown_arrive_as_they_are_written(tmp_path: Path) -> None:
    """YAML is read twice on the way: a colour must not become a comment."""
    from jsonargparse import ArgumentParser

    from datamodules import SegmentationData

    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(SegmentationData, "data")
    shown = [
        yaml.safe_load(text) for text in fenced(text_of("docs/data.md"), "yaml") if text.startswith("classes")
    ]
    assert len(shown) == 4
    for example in shown:
        wanted = {"root": "x", "ignore_value": "#123456", **example}
        file = tmp_path / "a.yaml"
        file.write_text(yaml.safe_dump({"data": {"class_path": "datamodules.Folder", "init_args": wanted}}))
        got = parser.parse_args(["--config", str(file)]).data.init_args
        assert got.classes == example["classes"]
        assert got.ignore_value == "#123456"


def test_every_normalization_sensor_and_index_is_explained() -> None:
    from datamodules.normalization import NORMALIZATIONS
    from datamodules.sensors import INDICES, SENSORS

    assert first_column(text_of("docs/recipes.md"), "`data.normalization`") == list(NORMALIZATIONS)
    assert set(first_column(text_of("docs/data.md"), "`data.sensor`")) == set(SENSORS)
    assert set(first_column(text_of("docs/data.md"), "Index")) == set(INDICES)


def test_every_option_of_other_networks_is_explained() -> None:
    from models.clipseg import ClipSegSegmenter
    from models.sam import SamSegmenter

    explained = set(first_column(text_of("docs/sam.md"), "Option"))
    for cls in (SamSegmenter, ClipSegSegmenter):
        options = set(inspect.signature(cls.__init__).parameters)
        assert options - explained == {"self", "in_channels", "num_classes", "ndim"}


def test_every_setting_of_ours_is_explained() -> None:
    explained = set(SPAN.findall(text_of("docs/recipes.md")))
    from models import EncoderDecoder

    known = signatures()
    known["model.network"] = set(inspect.signature(EncoderDecoder.__init__).parameters) - {"self"}
    for prefix in ("data.augmentation", "data.division", "data", "model.network", "model"):
        missing = {f"{prefix}.{name}" for name in known[prefix]} - explained
        assert not missing, sorted(missing)


def test_every_part_is_explained() -> None:
    from models.attention import ATTENTION
    from models.decoders import DECODERS
    from models.encoders import ENCODERS
    from models.fusion import FUSION
    from models.necks import NECKS
    from tasks import losses

    explained = set(SPAN.findall(text_of("docs/recipes.md")))
    assert set(ATTENTION) <= set(first_column(text_of("docs/attention.md"), "Name"))
    parts = {*DECODERS, *ENCODERS, *FUSION, *NECKS}
    parts |= {
        f"tasks.losses.{name}"
        for name, value in vars(losses).items()
        if inspect.isclass(value)
        and issubclass(value, losses.SegmentationLoss)
        and value is not losses.SegmentationLoss
    }
    assert parts <= explained, sorted(parts - explained)


# Outputs ---------------------------------------------------------------------------------------------------------


def test_columns_and_fields_are_those_that_are_written() -> None:
    from tasks.prediction import Status
    from tasks.scores import COLUMNS

    columns = first_column(text_of("docs/predict.md"), "Column")
    assert columns == [field.name for field in dataclasses.fields(Status)]
    row = ", ".join(f"`{name}`" for name in COLUMNS)
    assert row in text_of("docs/metrics.md")


def test_the_rule_for_empty_masks_is_quoted_to_the_word() -> None:
    from tasks.overlap import EMPTY_RULE

    quoted = re.sub(r"^> ?", "", text_of("docs/metrics.md"), flags=re.MULTILINE)
    assert EMPTY_RULE in " ".join(quoted.split())


def test_fields_of_the_model_file_are_those_that_are_written() -> None:
    tree = ast.parse(text_of("tasks/model_file.py"))
    (save,) = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "save_model")
    header = next(
        n.value for n in ast.walk(save) if isinstance(n, ast.Assign) and isinstance(n.value, ast.Dict)
    )
    described = next(
        n.value
        for f in ast.walk(tree)
        if isinstance(f, ast.FunctionDef) and f.name == "to_json"
        for n in ast.walk(f)
        if isinstance(n, ast.Return) and isinstance(n.value, ast.Dict)
    )
    keys = [key.value for key in (*header.keys, *described.keys) if isinstance(key, ast.Constant)]
    assert first_column(text_of("docs/model-file.md"), "Field") == keys


# Messages --------------------------------------------------------------------------------------------------------


def templates() -> list[str]:
    """Every text in our packages but docstrings; what is filled in when it is said is a zero character."""
    found = []
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            tree = ast.parse(file.read_text("utf-8"))
            inside = {
                id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values
            }
            inside |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            for node in ast.walk(tree):
                if isinstance(node, ast.JoinedStr):
                    parts = [str(p.value) if isinstance(p, ast.Constant) else "\0" for p in node.values]
                    found.append("".join(parts))
                elif (
                    isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside
                ):
                    found.append(node.value)
    return [" ".join(text.split()) for text in found]


def test_messages_that_are_explained_are_said() -> None:
    quoted = first_column(text_of("docs/troubleshooting.md"), "Message")
    assert len(quoted) > 50
    said = templates()
    for message in quoted:
        # Between wildcards the words must be ours, in one text, in this order.
        pieces = [re.escape(piece.strip()) for piece in message.split("...") if piece.strip()]
        assert pieces, message
        wanted = re.compile(".*?".join(pieces))
        assert any(wanted.search(text) for text in said), message


# Links, and what must not be there -------------------------------------------------------------------------------


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text("utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        goal = page.parent / file if file else page
        assert goal.exists(), f"{target} does not exist"
        if anchor:
            headings = re.findall(r"^#+ +(.*)$", FENCE.sub("", goal.read_text("utf-8")), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}, target


@every_page
def test_no_page_is_lost(page: Path) -> None:
    """Every page can be reached from the README."""
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        at = todo.pop()
        if at in reached:
            continue
        reached.add(at)
        for target in re.findall(r"\]\(([^)\s#]+\.md)", at.read_text("utf-8")):
            if "://" not in target:
                todo.append((at.parent / target).resolve())
    assert page in reached


@every_page
def test_no_page_names_a_machine_or_a_registry(page: Path) -> None:
    text = page.read_text("utf-8").lower()
    for forbidden in ("/work/", "/tmp/", "pypi", "files.pythonhosted"):
        assert forbidden not in text
