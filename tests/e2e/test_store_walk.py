"""docs/store.md compares the store with seed 004, row by row; here each row is run."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.support.s3 import BUCKET, CREDENTIALS, s3_server
from tests.support.stores import tiny_model
from utils.common.paths import PROJECT_ROOT, Layout
from utils.store import Store

pytestmark = pytest.mark.slow

PAGE = PROJECT_ROOT / "docs" / "store.md"
ROW = re.compile(r"^\| (\d+) \| (.+?) \| `([^`]+)` \|", re.MULTILINE)
Names = dict[str, Any]


def rows() -> list[tuple[int, str]]:
    """Number and what is to be run, of each row of the table."""
    return [(int(number), code) for number, _, code in ROW.findall(PAGE.read_text("utf-8"))]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    """A project with a trained model, an S3 server, and a remote."""
    with s3_server(tmp_path) as address:
        for key, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": address}.items():
            monkeypatch.setenv(key, value)
        layout = Layout(tmp_path / "project")
        monkeypatch.setenv("KTT_ROOT", str(layout.root))
        model = tiny_model(layout, dataset="shop")
        here = tmp_path / "here"
        here.mkdir()
        monkeypatch.chdir(here)
        (layout.root / "store.json").write_text(
            f'{{"remotes": {{"team": {{"url": "s3://{BUCKET}/team", "endpoint": "{address}"}}}}}}'
        )
        yield {"store": Store(layout), "model": model, "out": ""}


def execute(code: str, names: Names) -> None:
    """Run a row as it stands: a command of the project, or Python."""
    files = sorted(Path().glob("tfidf_hsgd_shop-*.kttmodel"))
    code = code.replace("FILE.kttmodel", files[0].name if files else "FILE.kttmodel")
    if not code.startswith("python "):
        exec(code if "=" in code else f"value = {code}", names)
        return
    script, *arguments = shlex.split(code)[1:]
    main = importlib.import_module(Path(script).stem).main
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, f"{code}\n{result.output}"
    names["out"] = result.output


def check(number: int, names: Names) -> None:
    """What must hold once a row has been run."""
    store: Store = names["store"]
    entry, out = names.get("entry"), names["out"]
    tags = [str(one.tag) for one in store.list()]
    expected = {
        1: lambda: len(tags) == 1 and "In the store: tfidf_hsgd_shop:" in out,
        2: lambda: len(tags) == 2,
        3: lambda: entry.info.labels == {"stage": "dev"} and entry.info.metadata == {"acc": 0.9},
        4: lambda: dict(entry.custom_objects) == {"words": ["a", "b"]},
        5: lambda: names["store"].get("tfidf_hsgd_shop:mine").version == entry.version,
        6: lambda: names["loaded"].hierarchy.to_dict() == names["model"].hierarchy.to_dict(),
        7: lambda: entry.info.name == "mine",
        8: lambda: names["value"] == "tfidf_hsgd",
        9: lambda: all(tag in out for tag in tags),
        10: lambda: f"tag: {tags[-1]}" in out and "python: 3.11" in out,
        11: lambda: "Settings: the same" in out,
        12: lambda: store.get("tfidf_hsgd_shop:mine").info.labels == {"team": "nlp"},
        13: lambda: store.get("tfidf_hsgd_shop:production").info.name == "mine",
        14: lambda: len(list(Path().glob("*.kttmodel"))) == 1,
        15: lambda: "Gone with it: production" in out and len(tags) == 3,
        16: lambda: store.get("tfidf_hsgd_shop:mine").info.labels == {"team": "nlp"},
        17: lambda: Path(names["path"]).read_bytes() == next(Path().glob("tfidf*")).read_bytes(),
        18: lambda: entry.info.name == "mine",
        19: lambda: "s3://bucket/prefix/tfidf_hsgd_shop-" in out,
        20: lambda: entry.info.name == "mine",
        21: lambda: "s3://bucket/team/tfidf_hsgd/shop/" in out,
        22: lambda: "was here already" in out,
        23: lambda: entry.info.name == "mine",
        24: lambda: out.index("leaf accuracy") < out.index(tags[-1]),
        25: lambda: [str(one.tag) for one in names["entries"]] == tags,
        26: lambda: str(entry.tag) not in tags and len(tags) == 4,
        28: lambda: names["runner"].predict,
        29: lambda: names["answers"][0][1:] == ("Equate", "Soap"),
        30: lambda: "inference" in out,
        31: lambda: names["answers"][0].confidence > 0,
        32: lambda: names["answers"].shape[0] == 1,
        33: lambda: (names["dims"].input_dim, names["dims"].output_dim) == (1, 0),
        34: lambda: all(f"\n  {name} " in out for name in ("list", "compare", "push", "pull")),
    }  # fmt: skip
    assert expected.get(number, lambda: True)(), (number, out)


def test_every_row_of_the_table_runs(project: Names) -> None:
    found = rows()
    table = PAGE.read_text("utf-8").split("## Command by command")[1]
    assert [number for number, _ in found] == list(range(1, table.count("\n| ")))
    for number, code in found:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            execute(code, project)
        check(number, project)
    if runner := project.get("runner"):
        runner.close()
