"""Writes the folder of a new model, and keeps the generated files of all models fresh.

``python -m utils.scaffold NAME CLASS --kind pytorch`` writes ``models/NAME/``;
``python -m utils.scaffold --refresh`` writes the generated files of the registered models again.
"""

from __future__ import annotations

import re
from pathlib import Path

import click

from utils.common import cli
from utils.common.errors import UserError
from utils.common.paths import PROJECT_ROOT
from utils.export.dashboard import dashboard_json

TEMPLATES = PROJECT_ROOT / "templates" / "model"
KINDS = ("pytorch", "sklearn")
_REGISTERED = re.compile(r'^    "(\w+)": "models\.\1\.\1:(\w+)",$', re.MULTILINE)


def _render(template: str, class_name: str) -> str:
    text = (TEMPLATES / f"{template}.tmpl").read_text(encoding="utf-8")
    return text.replace("{{class}}", class_name)


def generated_files(class_name: str, kind: str) -> dict[str, str]:
    """Files of a model's folder that nobody edits: relative path → content."""
    return {
        "bentoml/__init__.py": _render("bentoml/__init__.py", class_name),
        "bentoml/svc_lts.py": _render("bentoml/svc_lts.py", class_name),
        "bentoml/evidently.yaml": _render("bentoml/evidently.yaml", class_name),
        "bentoml/dashboard.json": dashboard_json(),
        "bentoml/requirements.txt": _render(f"bentoml/requirements-{kind}.txt", class_name),
    }


def registered(root: Path = PROJECT_ROOT) -> dict[str, tuple[str, str]]:
    """Registered models: name → (class, kind), read from the files without importing them."""
    lines = _REGISTERED.findall((root / "models" / "__init__.py").read_text(encoding="utf-8"))
    found = {}
    for name, class_name in lines:
        text = (root / "models" / name / f"{name}.py").read_text(encoding="utf-8")
        found[name] = (class_name, "sklearn" if "SklearnModel" in text else "pytorch")
    return found


def write_model(name: str, class_name: str, kind: str, root: Path = PROJECT_ROOT) -> Path:
    """Write the folder of a new model.

    Raises
    ------
    UserError
        The name cannot be a module's, or is taken.
    """
    for word in (name, class_name):
        if not word.isidentifier():
            raise UserError(f"{word!r} cannot be a Python name. Use letters, digits and '_'.")
    folder = root / "models" / name
    if folder.exists():
        raise UserError(f"{folder} exists. Choose another name.")
    files = {
        "__init__.py": _render("__init__.py", class_name),
        f"{name}.py": _render(f"model-{kind}.py", class_name),
        **generated_files(class_name, kind),
    }
    _write(folder, files)
    return folder


def _write(folder: Path, files: dict[str, str]) -> None:
    for relative, content in files.items():
        path = folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


@click.command()
@click.argument("name", required=False)
@click.argument("class_name", metavar="CLASS", required=False)
@click.option("--kind", type=click.Choice(KINDS), default="pytorch", show_default=True)
@click.option("--refresh", is_flag=True, help="Write the generated files of all models again.")
def main(name: str | None, class_name: str | None, kind: str, refresh: bool) -> None:
    """Write the folder of a new model."""
    if refresh:
        for known, (known_class, known_kind) in registered().items():
            _write(PROJECT_ROOT / "models" / known, generated_files(known_class, known_kind))
        return
    if not name or not class_name:
        raise click.UsageError("Give a NAME and a CLASS, for example: my_model My_Model")
    folder = write_model(name, class_name, kind)
    cli.say(f"Wrote {folder}. Now add to models/__init__.py:")
    cli.say(f'    "{name}": "models.{name}.{name}:{class_name}",')
    cli.say(f'and to hyperparameters.json: "{name}": {{"display_name": "{class_name}"}}')


if __name__ == "__main__":
    main()
