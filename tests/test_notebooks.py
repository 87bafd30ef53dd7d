"""Notebooks are kept without outputs and teach the public names; `make notebooks` runs them."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))
PUBLIC = {"liveavatar", "liveavatar.plan", "liveavatar.journal", "liveavatar.report"}


def test_there_are_five() -> None:
    assert [notebook.stem[:2] for notebook in NOTEBOOKS] == ["01", "02", "03", "04", "05"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stripped_shows_something_and_uses_public_names(notebook: Path) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert "".join(cells[0]["source"]).startswith("# ")
    text = "\n".join("".join(cell["source"]) for cell in code)
    assert re.search(r"plt\.|Image\(", text), "pictures or plots"
    for node in ast.walk(ast.parse(text)):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        assert {name for name in names if name.startswith("liveavatar")} <= PUBLIC
        assert not (isinstance(node, ast.Attribute) and node.attr.startswith("_"))
