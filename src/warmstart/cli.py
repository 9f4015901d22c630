"""The command line: one short function a verb."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from warmstart import cli_speech
from warmstart.errors import Interrupted, MissingExtra, WarmstartError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Open any pretrained model, see what will carry over, train from it, ship it.",
)

SPINS_ALONE, SPINS = 10_000, 3_000
LIBRARIES = dict.fromkeys(("torch", "tensorboard", "matplotlib", "sacrebleu", "jiwer"), "train")  # → extra

Json = Annotated[bool, typer.Option("--json", help="print JSON")]
Names = Annotated[list[str] | None, typer.Option("--names", help="only arrays of such names: '*.weight'")]
Vocab = Annotated[list[str] | None, typer.Option("--vocab", help="vocabulary file: source, then target")]
Overrides = Annotated[list[str] | None, typer.Argument(help="overrides, key=value")]
Coverage = Annotated[float, typer.Option("--require-coverage", min=0.0, max=1.0, help="refuse a plan that loads less")]
Beam = Annotated[int, typer.Option("--beam-size", help="1 is greedy")]
Normalize = Annotated[float, typer.Option("--normalize", help="scores are divided by length to this power")]
Inputs = Annotated[Path | None, typer.Option("--inputs", help="lines to run both on; else random ones")]
Metrics = Annotated[list[str] | None, typer.Option("--metric", help="a metric, for instance validation/chrf")]
Engine = Annotated[str | None, typer.Option("--engine", help="native or ctranslate2; by default what the model is for")]


def _stay_offline(context: typer.Context, chosen: bool) -> None:
    if chosen:
        from warmstart.sources.policy import using

        context.with_resource(using(offline=True))


Offline = Annotated[
    bool,
    typer.Option("--offline", help="use the cache, not the network", callback=_stay_offline, expose_value=False),
]


def _print_json(value: object) -> None:
    from warmstart.reports.text import json_text

    typer.echo(json_text(value))


def _print_report(text: Callable[..., str], facts: object) -> None:
    """As wide as the terminal (80 columns elsewhere), in colour only on one and without NO_COLOR."""
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    typer.echo(text(facts, width=shutil.get_terminal_size((80, 24)).columns, colour=colour), nl=False)


def _print_error(error: WarmstartError) -> None:
    from warmstart.reports.text import printable

    typer.echo(f"error: {printable(error, keep=chr(10))}", err=True)


@contextmanager
def _status_1_is_a_difference() -> Iterator[None]:
    """Whatever goes wrong ends with another status."""
    try:
        yield
    except WarmstartError as error:
        _print_error(error)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except Exception:
        traceback.print_exc()
        raise typer.Exit(2) from None


@app.command()
def inspect(
    source: str,
    names: Names = None,
    stats: Annotated[bool, typer.Option("--stats", help="read the arrays: min, max, mean, std, zeros, NaN")] = False,
    as_json: Json = False,
    offline: Offline = False,
) -> None:
    """Show what is in a checkpoint: format, configuration, arrays, optimizer, step."""
    from warmstart import api
    from warmstart.reports.inspect import inspect_text

    facts = api.inspect(source, names=names or (), stats=stats)
    _print_json(facts) if as_json else _print_report(inspect_text, facts)


@app.command()
def diff(
    a: str,
    b: str,
    names: Names = None,
    tolerance: Annotated[float, typer.Option("--tolerance", min=0.0, help="|A-B| that is no difference")] = 0.0,
    relative: Annotated[
        float, typer.Option("--relative", min=0.0, help="the same, as a part of the larger number")
    ] = 0.0,
    weights_only: Annotated[bool, typer.Option("--weights-only", help="compare arrays and nothing else")] = False,
    as_json: Json = False,
    offline: Offline = False,
) -> None:
    """Say what differs between two checkpoints. Status 0: nothing; 1: something; 2: trouble."""
    from warmstart import api
    from warmstart.reports.diff import diff_text

    with _status_1_is_a_difference():
        facts = api.diff(a, b, names=names or (), tolerance=tolerance, relative=relative, weights_only=weights_only)
    _print_json(facts) if as_json else _print_report(diff_text, facts)
    raise typer.Exit(0 if facts["same"] else 1)


@app.command()
def verify(
    a: str,
    b: str,
    inputs: Inputs = None,
    count: Annotated[
        int | None, typer.Option("--count", min=1, help="random inputs, without --inputs; 100, of sound 10")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="of random inputs")] = 0,
    tolerance: Annotated[
        float | None, typer.Option("--tolerance", min=0.0, help="largest difference of an answer")
    ] = None,
    vocab: Vocab = None,
    as_json: Json = False,
    offline: Offline = False,
) -> None:
    """Run two models on the same inputs. Status 0: the same answers; 1: others; 2: trouble."""
    from warmstart import api
    from warmstart.reports.verification import verification_text

    with _status_1_is_a_difference():
        facts = api.verify(a, b, inputs=inputs, count=count, seed=seed, tolerance=tolerance, vocabularies=vocab or ())
    _print_json(facts) if as_json else typer.echo(verification_text(facts), nl=False)
    raise typer.Exit(0 if facts["same"] else 1)


@app.command()
def extract(
    source: str,
    destination: Path,
    names: Names = None,
    slots: Annotated[bool, typer.Option("--slots", help="the optimizer's state too")] = False,
    force: Annotated[bool, typer.Option("--force", help="replace the destination")] = False,
    as_json: Json = False,
    offline: Offline = False,
) -> None:
    """Write chosen arrays to a new file; its ending names the format: .npz or .safetensors."""
    from warmstart import api
    from warmstart.reports.text import counted

    facts = api.extract(source, destination, names=names or (), slots=slots, force=force)
    if as_json:
        _print_json(facts)
        return
    more = f" and {counted(facts['slots'], 'slot')}" if facts["slots"] else ""
    arrays = counted(facts["arrays"], "array")
    typer.echo(f"{facts['destination']}: {facts['format']}, {arrays}{more}, {facts['bytes']:,} bytes")


@app.command()
def plan(
    config: Path,
    overrides: Overrides = None,
    require_coverage: Coverage = 0.0,
    as_json: Json = False,
    offline: Offline = False,
) -> None:
    """Say where every parameter's first value comes from. Reads no weights."""
    from warmstart import api
    from warmstart.reports.plan import plan_text

    made = api.plan(config, overrides or (), require_coverage=require_coverage)
    _print_json(made.as_json()) if as_json else typer.echo(plan_text(made), nl=False)


@app.command()
def train(
    config: Path,
    overrides: Overrides = None,
    require_coverage: Coverage = 0.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="try it: say memory and time, write nothing")] = False,
    as_json: Json = False,
    offline: Offline = False,
) -> None:
    """Train as the configuration says, or go on where the same run stopped."""
    from warmstart import api

    if dry_run:
        from warmstart.reports.rehearsal import rehearsal_text

        found = api.dry_run(config, overrides or (), require_coverage=require_coverage)
        _print_json(found) if as_json else typer.echo(rehearsal_text(found), nl=False)
        return
    facts = api.train(config, overrides or (), require_coverage=require_coverage)
    if as_json:
        _print_json(facts)
        return
    for note in facts["notes"]:
        typer.echo(f"  {note}")
    metrics = ", ".join(f"{k.removeprefix('validation/')} {v:.3f}" for k, v in facts["metrics"].items())
    typer.echo(
        f"best at step {facts['best_step']} of {facts['steps']}: {metrics}" if metrics else "nothing was trained"
    )
    typer.echo(f"model: {facts['model']}")


@app.command()
def evaluate(
    model: str,
    data: Annotated[Path | None, typer.Option("--data", help="configuration that names the tasks")] = None,
    split: str = "test",
    beam_size: Annotated[
        int | None, typer.Option("--beam-size", min=1, help="1, which is greedy, by default; with a scorer 500")
    ] = None,
    normalize: Annotated[
        float | None, typer.Option("--normalize", help="of texts: scores are divided by length to this power")
    ] = None,
    scorer: Annotated[Path | None, typer.Option("--scorer", help="of speech: .scorer, ARPA or KenLM binary")] = None,
    alpha: Annotated[float | None, typer.Option("--alpha", help="weight of the scorer's language model")] = None,
    beta: Annotated[float | None, typer.Option("--beta", help="what each word adds, with a scorer")] = None,
    output: Annotated[Path | None, typer.Option("--output", help="of speech: JSON of every recording")] = None,
    report_count: Annotated[
        int, typer.Option("--report-count", min=0, help="of speech: how many best, median and worst are shown")
    ] = 5,
    engine: Engine = None,
    vocab: Vocab = None,
    as_json: Json = False,
    offline: Offline = False,
) -> None:
    """Score a run's or a model's outputs on a split of its tasks."""
    from warmstart import api

    reports: list[str] = []
    scores = api.evaluate(
        model, data, split=split, engine=engine, vocabularies=vocab or (), output=output, report=reports.append,
        report_count=report_count, progress=not as_json, beam_size=beam_size, normalize=normalize, scorer=scorer,
        alpha=alpha, beta=beta,
    )  # fmt: skip
    if as_json:
        _print_json(scores)
        return
    for text in reports:
        typer.echo(text, nl=False)
    for task, metrics in scores.items():
        typer.echo(f"{task}: " + ", ".join(f"{k} {v:.2f}" for k, v in metrics.items()))


@app.command()
def convert(
    source: str,
    destination: Path,
    to: Annotated[str, typer.Option("--to", help="ctranslate2, marian, warmstart …")],
    quantize: Annotated[str | None, typer.Option("--quantize", help="int8, int16, float16 … (ctranslate2)")] = None,
    from_: Annotated[str | None, typer.Option("--from", help="the source's dialect, if not found out")] = None,
    vocab: Vocab = None,
    copy_files: Annotated[list[str] | None, typer.Option("--copy-files", help="a file beside the source")] = None,
    vmap: Annotated[Path | None, typer.Option("--vmap", help="vocabulary map (ctranslate2)")] = None,
    force: Annotated[bool, typer.Option("--force", help="replace the destination")] = False,
    strict: Annotated[bool, typer.Option(help="refuse what nothing explains")] = True,
    report: Annotated[bool, typer.Option("--report", help="show what was lost, array by array")] = False,
    requantize: Annotated[bool, typer.Option("--requantize", help="round again what is quantized")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="run both; write it if the answers are the same")] = False,
    inputs: Inputs = None,
    as_json: Json = False,
    offline: Offline = False,
) -> None:
    """Write a model in another framework's dialect."""
    from warmstart import api
    from warmstart.reports.conversion import conversion_text

    facts = api.convert(
        source, destination, to, quantize=quantize, from_=from_, vocabularies=vocab or (),
        copy_files=copy_files or (), vmap=vmap, force=force, strict=strict, report=report, requantize=requantize,
        verify=verify, inputs=inputs, progress=True,
    )  # fmt: skip
    _print_json(facts) if as_json else typer.echo(conversion_text(facts), nl=False)


_AS_IT_IS = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def _declare_converter(command: str) -> None:
    @app.command(command, context_settings=_AS_IT_IS, help=f"CTranslate2's {command}, with its own flags.")
    def converter(context: typer.Context) -> None:
        from warmstart.frontends.ct2 import run
        from warmstart.reports.conversion import conversion_text

        typer.echo(conversion_text(run(command, context.args)), nl=False)


# Their names stand here too, so that `--help` need not load the table of flags.
for _name in ("marian", "opus-mt", "transformers", "openai-gpt2", "opennmt-py", "opennmt-tf", "fairseq"):
    _declare_converter(f"ct2-{_name}-converter")


@app.command()
def translate(
    models: list[str],
    input_file: Annotated[Path | None, typer.Option("--input", help="lines to translate; else standard input")] = None,
    beam_size: Beam = 1,
    normalize: Normalize = 0.0,
    nbest: Annotated[int, typer.Option("--nbest", help="outputs a line")] = 1,
    scores: Annotated[bool, typer.Option("--scores", help="print index ||| text ||| score")] = False,
    engine: Engine = None,
    precision: Annotated[Literal["float32", "bfloat16"], typer.Option(help="of the native engine")] = "float32",
    vocab: Vocab = None,
    offline: Offline = False,
) -> None:
    """Translate lines; several models are an ensemble."""
    from warmstart import api
    from warmstart.data.text import read_lines

    lines = list(read_lines(input_file)) if input_file else [line.rstrip("\n") for line in sys.stdin]
    found = api.translate(
        models, lines, engine=engine, precision=precision, vocabularies=vocab or (),
        beam_size=beam_size, nbest=nbest, normalize=normalize,
    )  # fmt: skip
    for index, best in enumerate(found):
        for text, score in best:
            typer.echo(f"{index} ||| {text} ||| {score:.6f}" if scores or nbest > 1 else text)


cli_speech.add_to(app)


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="[LABEL=]RUN")],
    metrics: Metrics = None,
    curves: Annotated[Path | None, typer.Option("--curves", help="draw them too: PNG or SVG")] = None,
) -> None:
    """Put runs side by side in a table of their metrics."""
    from warmstart.reports.curves import open_runs, write_curves
    from warmstart.reports.table import comparison_table

    records = open_runs(runs)
    chosen = metrics or ["validation/loss"]
    typer.echo(comparison_table(records, chosen), nl=False)
    if curves is not None:
        typer.echo(f"curves: {', '.join(map(str, write_curves(records, chosen, curves)))}")


@app.command()
def curves(
    runs: Annotated[list[str], typer.Argument(metavar="[LABEL=]RUN")],
    metrics: Metrics = None,
    output: Annotated[Path, typer.Option("--output", help="a .png, .svg or .csv file")] = Path("curves.png"),
) -> None:
    """Draw the learning curves of runs on one picture, and write their numbers beside it as CSV."""
    from warmstart import api

    typer.echo(f"curves: {', '.join(map(str, api.curves(runs, output, metrics or ())))}")


@app.command()
def runs(
    directories: Annotated[list[Path] | None, typer.Argument(metavar="DIR")] = None,
    lineage: Annotated[bool, typer.Option("--lineage", help="show what each came from, as a tree")] = False,
    pin: Annotated[list[int] | None, typer.Option("--pin", help="never remove the checkpoint of this step")] = None,
    unpin: Annotated[list[int] | None, typer.Option("--unpin", help="no longer keep it for ever")] = None,
    as_json: Json = False,
) -> None:
    """List the runs below directories (this one by default); pin a run's checkpoints. Status 1 if one is damaged."""
    from warmstart import api
    from warmstart.errors import ConfigError
    from warmstart.reports.runs import lineage_text, pin_checkpoints, runs_table

    places = directories or [Path()]
    if pin or unpin:
        if len(places) != 1:
            raise ConfigError("checkpoints are pinned in one run", found=f"{len(places)} directories")
        pin_checkpoints(places[0], pin or (), unpin or ())
    found = api.runs(places)
    if as_json:
        _print_json([run.as_json() for run in found])
    elif pin or unpin:
        typer.echo(f"pinned: {', '.join(map(str, found[0].pinned)) or 'none'}")
    elif not found:
        typer.echo(f"no runs below {', '.join(map(str, places))}; `warmstart train CONFIG` begins one")
    else:
        typer.echo("\n".join(map(lineage_text, found)) if lineage else runs_table(found), nl=False)
    problems = [problem for run in found for problem in run.problems]
    for problem in problems:
        typer.echo(f"damaged: {problem}", err=True)
    if problems:
        raise typer.Exit(1)


@app.command()
def ls(source: str, as_json: Json = False) -> None:
    """List what there is at a path or URL, one level deep."""
    from warmstart import api

    found = api.ls(source)
    if as_json:
        _print_json(found)
        return
    for entry in found:
        size = "" if entry["size"] is None else f"{entry['size']:,}"
        typer.echo(f"{size:>15}  {entry['url']}")


@app.command()
def fetch(
    source: str,
    directory: Annotated[Path | None, typer.Argument(help="where to copy it; else it is in the cache alone")] = None,
    everything: Annotated[bool, typer.Option("--all", help="every file of a directory that can be listed")] = False,
    force: Annotated[bool, typer.Option("--force", help="replace other files of the same names")] = False,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Bring a file or directory, and what belongs to it, from a URL; goes on where it broke off."""
    from warmstart import api

    files = api.fetch(source, directory, everything=everything, force=force)
    if as_json:
        _print_json([str(file) for file in files])
        return
    for file in files:
        typer.echo(file)


cache = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What was fetched: list, prune, verify.")
app.add_typer(cache, name="cache")


@cache.command("list")
def cache_list(as_json: Json = False) -> None:
    """List what was fetched, with its size and when it was last used."""
    from datetime import datetime

    from warmstart import api

    rows = api.cache_list()
    if as_json:
        _print_json(rows)
        return
    for row in rows:
        used = datetime.fromtimestamp(row["used"]).strftime("%Y-%m-%d %H:%M")
        typer.echo(f"{row['bytes']:>15,}  {used}  {row['url']}{'' if row['complete'] else '  (incomplete)'}")


@cache.command("prune")
def cache_prune(
    days: Annotated[float, typer.Option("--days", min=0.0, help="keep what was used in as many days")] = 30.0,
) -> None:
    """Remove what was not used lately (--days 0: everything)."""
    from warmstart import api

    typer.echo(f"{api.cache_prune(days):,} bytes freed")


@cache.command("verify")
def cache_verify() -> None:
    """Compare every file with its SHA-256 and remove what is damaged. Status 1 if something was."""
    from warmstart import api

    damaged = api.cache_verify()
    for url in damaged:
        typer.echo(f"damaged, removed: {url}", err=True)
    if damaged:
        raise typer.Exit(1)
    typer.echo("every file is what it was")


def wait_briefly() -> None:
    """Let OpenMP's threads spin between two pieces of work, and then sleep: for about a tenth of a millisecond, or
    three tenths on a machine that does nothing else when the command begins.

    Threads that sleep at once take as long to wake as a small model's products take, those that spin for long keep
    other processes, and each other, from a core that they need (docs/decisions/0011). Without effect once torch is
    imported, or if ``OMP_WAIT_POLICY`` or ``GOMP_SPINCOUNT`` says otherwise.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS_ALONE if _alone() else SPINS))


def _alone() -> bool:
    """Whether no other process wants a processor, in most of a few moments; no, where the system does not say."""
    running = []
    try:
        for _ in range(5):
            running.append(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
            time.sleep(0.001)
    except (OSError, IndexError):
        return False
    return running.count("1") >= 3


def main() -> None:
    """Run a verb. Errors that warmstart raises on purpose are printed without a traceback; status 1."""
    wait_briefly()
    gc.set_threshold(50_000)  # imports and vocabularies make many objects and no garbage
    try:
        app()
    except Interrupted as stop:
        typer.echo(str(stop), err=True)
        raise SystemExit(stop.status) from None
    except WarmstartError as error:
        _print_error(error)
        raise SystemExit(1) from None
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in LIBRARIES:
            raise
        _print_error(MissingExtra(library, LIBRARIES[library]))
        raise SystemExit(1) from None
    except BrokenPipeError:
        raise SystemExit(141) from None
    finally:
        _name_plugins()


def _name_plugins() -> None:
    """Whose code was run besides warmstart's, on stderr. Most verbs that need no model load no families."""
    registry = sys.modules.get("warmstart.models.registry")
    for plugin in registry.FAMILIES.ran() if registry is not None else ():
        typer.echo(f"with the plug-in {plugin}", err=True)


if __name__ == "__main__":
    main()
