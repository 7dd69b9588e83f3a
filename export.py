#!/usr/bin/env python
"""Export trained models: ONNX graphs, or a service bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from models import MODELS
from utils.common import cli
from utils.common.errors import UserError, unknown
from utils.common.paths import PROJECT_ROOT, Layout
from utils.inference.manifest import OPSET, OPSETS, RUNTIMES, read_manifest

if TYPE_CHECKING:
    import pyarrow as pa

    from models.model import Model
    from utils.export.validation import Evidence
    from utils.hierarchy.dataset import Dataset, Split


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says, for every pair alike."""

    onnx: bool = False
    bento: bool = False
    monitoring: bool = False
    token: bool = True
    latest: bool = False
    time: str | None = None
    opset: int = OPSET
    quantize: str | None = None
    runtime: str = RUNTIMES[0]
    dvc: bool | None = None


def wanted_pairs(
    layout: Layout, models: Sequence[str] | None, datasets: Sequence[str] | None
) -> list[tuple[str, str]]:
    """The trained (model, dataset) pairs that were asked for.

    Raises
    ------
    UserError
        Unknown names, or nothing trained to export.
    """
    from utils.common.checkpoints import trained_pairs

    for model in models or []:
        if model not in MODELS:
            raise unknown("model", model, MODELS)
    if models and datasets:
        return [(model, dataset) for dataset in datasets for model in models]
    trained = trained_pairs(layout)
    for dataset in datasets or []:
        if trained and dataset not in {name for _, name in trained}:
            raise unknown("trained dataset", dataset, sorted({name for _, name in trained}))
    pairs = [
        (model, dataset)
        for model, dataset in trained
        if (not models or model in models) and (not datasets or dataset in datasets)
    ]
    if not pairs:
        raise UserError(
            f"Nothing trained to export in {layout.weights}. Train first: "
            "python train.py -m MODEL -d DATASET"
        )
    return pairs


def export(layout: Layout, model_name: str, dataset_name: str, options: Options) -> list[Path]:
    """Export one trained pair.

    Returns
    -------
    list of Path
        The folders written.
    """
    from models import model_class
    from utils.common import dvc
    from utils.common.checkpoints import find_checkpoint

    folders = layout.output(model_name, dataset_name), layout.bundle(model_name, dataset_name)
    asked = zip(folders, (options.onnx, options.bento), strict=True)
    dvc.check(layout.root, options.dvc, *(folder for folder, wanted in asked if wanted))
    cls = model_class(model_name)
    kind = "last" if options.latest and cls.resumable else "best"
    checkpoint = find_checkpoint(layout, model_name, dataset_name, kind, options.time)
    model = cls.from_checkpoint(checkpoint)
    if model.info.get("dataset", dataset_name) != dataset_name:
        raise UserError(
            f"{checkpoint} was trained on dataset {model.info['dataset']!r}, not on "
            f"{dataset_name!r}. Put it into that one's folder."
        )
    model.info |= {"checkpoint": checkpoint.name, "dataset": dataset_name}
    cli.say(f"Exporting {model_name} · {dataset_name} from {checkpoint.name}")
    # what may be missing is asked for before the graphs are made, which takes longer
    reference = reference_set(layout, model, checkpoint) if options.monitoring else None
    evidence = validation_rows(layout, model)
    written = []
    if options.onnx:
        folder = layout.output(model_name, dataset_name)
        model.export_onnx(folder, options.opset, quantize=options.quantize, evidence=evidence)
        _say_quantization(folder)
        written.append(folder)
    if options.bento:
        written.append(_export_bundle(layout, model, options, evidence, reference))
    dvc.add(layout.root, [path for folder in written for path in exported(folder)], options.dvc)
    return written


def exported(folder: Path) -> list[Path]:
    """What an export wrote into one of its folders, without what others keep there."""
    from utils.common.outputs import kept
    from utils.export.deployment import WRITTEN

    if (folder / "bentoml.yml").exists():
        return [folder]
    if (folder / "inference").exists():
        return [folder / name for name in WRITTEN]
    left = kept(folder)
    return [path for path in sorted(folder.iterdir()) if path.name not in left]


def reference_set(layout: Layout, model: Model, checkpoint: Path) -> Path | pa.Table:
    """What monitoring compares with: the file beside the checkpoint, or made from the test split.

    Raises
    ------
    UserError
        There is none and the dataset that it could be made from is missing, or another one by now.
    """
    from utils.common import dvc
    from utils.export.deployment import fits

    name = model.info["dataset"]
    beside = checkpoint.with_name(f"{checkpoint.stem}_reference.parquet")
    dvc.ensure(layout, beside)
    if beside.exists() and fits(beside, model.reference_columns()):
        check_size(beside, name)
        return beside
    try:
        dataset = trained_rows(layout, model)
    except UserError as error:
        raise UserError(
            f"Monitoring needs the reference set {beside.name}, which is missing, and it cannot "
            f"be made: {error.message.rstrip(' .…')}. Write one with: python train.py -m "
            f"{model.name} -d {name} -r"
        ) from error
    check_size(dataset.test, name)
    cli.say(f"Making a reference set from the test split of {name}")
    with cli.progress("reference set") as progress:
        return model.gen_reference_set(dataset.test, progress)


def check_size(reference: Path | Split, dataset: str) -> None:
    """Refuse a reference set that the monitoring service would not start with.

    Raises
    ------
    UserError
        It has too few rows.
    """
    from utils.export.deployment import LEAST_ROWS, row_count

    if (rows := row_count(reference)) < LEAST_ROWS:
        raise UserError(
            f"Monitoring needs a reference set of {LEAST_ROWS} rows or more, and that of "
            f"{dataset!r} has {rows}, from its test split. Adapt the dataset with a larger one "
            "(--train-ratio, --val-ratio) and train again, or export without monitoring: --bento."
        )


def trained_rows(layout: Layout, model: Model) -> Dataset:
    """The dataset that a model was trained with.

    Raises
    ------
    UserError
        It is not here, or has other rows by now.
    """
    from utils.hierarchy.dataset import load_dataset

    dataset = load_dataset(layout, model.info["dataset"])
    if dataset.fingerprint != model.info.get("fingerprint"):
        raise UserError(
            f"Dataset {dataset.name!r} has other rows than those that the model was trained with."
        )
    return dataset


def validation_rows(layout: Layout, model: Model) -> Evidence:
    """The validation rows that a model was trained with, or why there are none."""
    from utils.export.validation import Evidence

    try:
        dataset = trained_rows(layout, model)
    except UserError as error:
        reason = error.message
    else:
        if len(dataset.val):
            return Evidence(rows=dataset.val, origin=f"validation rows of {dataset.name}")
        reason = f"Dataset {dataset.name!r} has no validation rows."
    cli.say(f"The graphs are compared with the model on generated texts: {reason}")
    return Evidence(rows=None, origin=f"generated texts: {reason}")


def by_small_graph(layout: Layout, model: Model, classifier: Path) -> pa.Table | None:
    """The reference set as an exported 8-bit graph answers it; None if there is no such graph.

    Live answers are compared with it, and they are that graph's. Without the rows that the model
    was tested on its own answers have to do.
    """
    from utils.inference.classifier import Classifier

    if not read_manifest(classifier).get("quantization"):
        return None
    try:
        dataset = trained_rows(layout, model)
    except UserError as error:
        cli.say(f"The reference set is the model's, not its 8-bit graph's: {error.message}")
        return None
    with cli.progress("reference set") as progress:
        scorer = Classifier.load(classifier).scorer
        return model.gen_reference_set(dataset.test, progress, scorer)


def _say_quantization(folder: Path) -> None:
    """Say what int8 cost, if a folder has it."""
    if found := read_manifest(folder).get("quantization"):
        gate = found["gate"]
        cli.say(
            f"{found['type']} ({found['method']}): {gate['equal_decisions']:.2%} of "
            f"{gate['texts']:,} validation decisions are the model's, leaf accuracy "
            f"{gate['leaf_accuracy_of_the_model']:.4f} → {gate['leaf_accuracy']:.4f}"
        )


def _export_bundle(
    layout: Layout,
    model: Model,
    options: Options,
    evidence: Evidence,
    reference: Path | pa.Table | None,
) -> Path:
    from utils.common.files import scratch
    from utils.export.bundle import write_bundle
    from utils.export.deployment import write_deployment

    folder = layout.bundle(model.name, model.info["dataset"])
    service_file = PROJECT_ROOT / "models" / model.name / "bentoml" / "svc_lts.py"

    with scratch() as temporary:
        classifier = temporary / "classifier"
        model.export_classifier(
            classifier,
            options.opset,
            quantize=options.quantize,
            evidence=evidence,
            runtime=options.runtime,
            monitoring=reference is not None,
        )
        _say_quantization(classifier)
        if reference is not None:
            small = by_small_graph(layout, model, classifier)
            return write_deployment(
                folder,
                service_file=service_file,
                classifier=classifier,
                reference=reference if small is None else small,
                score_columns=model.score_columns(),
                token=options.token,
            )
        if (folder / "docker-compose.yaml").exists():
            cli.say(
                f"The rest of {folder} is of an earlier export, and its monitor gets nothing from "
                "this bundle: add --monitoring to renew both"
            )
        return write_bundle(folder / "inference", service_file=service_file, classifier=classifier)


def _say_token(folder: Path) -> None:
    """Say whether requests need a token, and never which."""
    from utils.export.deployment import API_TOKEN, value_of

    settings = folder / ".env"
    if value_of(settings.read_text("utf-8", "surrogateescape"), API_TOKEN):
        cli.say(f"Requests to port 5000 need the {API_TOKEN} of {settings}")
    else:
        cli.say(f"Port 5000 answers whoever reaches it: {settings} has no {API_TOKEN}")


def export_all(layout: Layout, pairs: Sequence[tuple[str, str]], options: Options) -> None:
    """Export every pair; one that fails does not stop the others."""
    failed = []
    for pair in pairs:
        try:
            for folder in export(layout, *pair, options):
                cli.say(f"Wrote {folder}")
                if options.monitoring and (folder / "docker-compose.yaml").exists():
                    cli.say(f"Start it: cd {folder} && docker-compose up -d --build")
                    _say_token(folder)
        except Exception as error:
            if len(pairs) == 1:
                raise
            cli.show_error(error)
            failed.append(" · ".join(pair))
    if failed:
        raise UserError(f"{len(failed)} of {len(pairs)} failed: {', '.join(failed)} (see above).")


EPILOG = """Examples:

\b
  python export.py --bento                           bundles of all models
  python export.py -m db_bhcn -d shop --bento        of one
  python export.py -m db_bhcn -d shop --monitoring   with monitoring
  python export.py -m db_bhcn -d shop                its ONNX graphs
  python export.py --tag db_bhcn_shop:production --bento   a run by its tag
  bentoml serve build/db_bhcn_shop/inference         run it
"""


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-m", "--models", type=cli.NameList(), help="Models to export.  [default: all trained]"
)
@click.option("-d", "--datasets", type=cli.NameList(), help="Their datasets.  [default: all]")
@click.option("--onnx", is_flag=True, help="Write ONNX graphs to outputs/ (the default).")
@click.option("--bento", is_flag=True, help="Write a service bundle to build/.")
@click.option(
    "--monitoring", is_flag=True,
    help="Write the bundle with monitoring, Prometheus and Grafana, for docker-compose up.",
)  # fmt: skip
@click.option(
    "--token/--no-token", default=True,
    help="Whether --monitoring makes a token for requests to port 5000, in .env, unless there is "
    "one.  [default: token]",
)  # fmt: skip
@click.option("--best/--latest", "best", default=True, help="Which checkpoint.  [default: best]")
@click.option("-t", "--time", help="Export the run of this time: YYYY-MM-DDTHH:MM:SS.")
@click.option(
    "--opset", type=click.IntRange(OPSETS[0], OPSETS[-1]),
    help=f"Operator set of ONNX graphs.  [default: {OPSET}]",
)  # fmt: skip
@click.option(
    "--quantize",
    type=click.Choice(["int8"]),
    help="Write model.onnx in 8-bit integers, if validation rows show no harm.",
)
@click.option(
    "--runtime",
    type=click.Choice(RUNTIMES),
    default=RUNTIMES[0],
    show_default=True,
    help="What runs a bundle's model. torch is for a GPU, and for encoder models.",
)
@cli.tag_option
@cli.dvc_option
@click.option("-v", "--verbose", is_flag=True, help="Log what happens.")
def main(
    models: list[str] | None,
    datasets: list[str] | None,
    tag: str | None,
    best: bool,
    verbose: bool,
    **values: Any,
) -> None:
    """Export trained models as ONNX graphs or as a service bundle."""
    from utils.store import run_options

    cli.start_logging(verbose)
    layout = Layout(fetch=values["dvc"] is not False)
    values["bento"] = values["bento"] or values["monitoring"]
    values["onnx"] = values["onnx"] or not values["bento"]
    if values["runtime"] != RUNTIMES[0] and not values["bento"]:
        raise UserError(f"--runtime {values['runtime']} is of service bundles: add --bento.")
    if values["opset"] and values["runtime"] == "torch" and not values["onnx"]:
        raise UserError(
            f"--opset {values['opset']} is of ONNX graphs: leave it or --runtime torch out, or add "
            "--onnx."
        )
    values["opset"] = values["opset"] or OPSET
    if tag:
        if not best:
            raise UserError(f"--tag {tag} means that run's best checkpoint: leave out --latest.")
        given = ",".join(models or []), ",".join(datasets or []), values["time"]
        model, dataset, values["time"] = run_options.chosen(layout, tag, *given)
        models, datasets = [model], [dataset]
    export_all(layout, wanted_pairs(layout, models, datasets), Options(latest=not best, **values))


if __name__ == "__main__":
    cli.run(main)
