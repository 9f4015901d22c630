"""``warmstart stt train|evaluate|export|transcribe|lm-optimize|config``, with Coqui STT's flags."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warmstart.errors import ConfigError, DataError, Problem, SourceError, WarmstartError, validation_problems
from warmstart.frontends.coqui import COMMANDS
from warmstart.frontends.coqui.auto_input import with_dataset
from warmstart.frontends.coqui.flags import Flags, parse
from warmstart.frontends.coqui.native import check, check_alphabet, run_in, training_config
from warmstart.frontends.coqui.places import Places, find_places

if TYPE_CHECKING:
    from collections.abc import Iterator

    from warmstart.data.speech.config import SpeechDataConfig
    from warmstart.inference.ctc import SpeechSearch

Say = Callable[[str], None]


def run(command: str, arguments: Sequence[str], out: Say, remark: Say) -> None:
    """Do what Coqui's ``command`` does; ``out`` is given lines of output, ``remark`` what is to be said beside it.

    Raises:
        ConfigError: flags that are refused or do not go, all at once.
        WarmstartError: as the verbs that it stands for.
        SystemExit: arguments that the command does not have (status 2), or ``--help``.
    """
    _RUN[command](parse(command, COMMANDS[command], arguments), out, remark)


def _config(flags: Flags, out: Say, remark: Say) -> None:
    import yaml

    asked = training_config(flags, "config")
    for line in asked.said:
        remark(line)
    out(yaml.safe_dump(asked.config, sort_keys=False, allow_unicode=True).rstrip())


def _train(flags: Flags, out: Say, remark: Say) -> None:
    from warmstart import api
    from warmstart.frontends.coqui.going_on import follow
    from warmstart.frontends.coqui.written import Mirror, describe, set_aside
    from warmstart.models.deepspeech.parameters import VOCABULARY
    from warmstart.reports.rehearsal import rehearsal_text
    from warmstart.setting import open_setting
    from warmstart.training.ranks import alone
    from warmstart.vocabularies.alphabet import Alphabet

    alone(
        "warmstart stt train",
        "write a configuration with `warmstart stt config`, and run `torchrun … -m warmstart train` on it",
    )
    if not flags["train_files"] and not flags["auto_input_dataset"] and _other_steps(flags):
        remark("there are no --train_files, and nothing is trained")
        for step in _other_steps(flags):
            step(flags, out, remark)
        return
    asked = training_config(flags)
    config, places, flags = asked.config, asked.places, asked.flags
    for line in asked.said:
        remark(line)
    assert places.save is not None
    if flags["automatic_mixed_precision"]:
        remark("matrix products are computed in bfloat16; weights and checkpoints stay float32")
    progress = flags["show_progressbar"]
    stored = run_in(places.save)
    if places.starts_inside and stored is None:
        config["start"]["source"] = set_aside(config["start"]["source"], places.save)
    if stored is not None:
        follow(places.save, stored, config.get("start"))
    with _written(config) as path:
        if flags["test_files"] or flags["one_shot_infer"]:  # a training of days shall not end with a wrong scorer
            alphabet = open_setting(path, (), 0.0).vocabularies[VOCABULARY]
            assert isinstance(alphabet, Alphabet)
            _search(flags).open(alphabet)
        if not flags["skip_batch_test"]:
            remark("Performing dummy training to check for memory problems.")
            remark(rehearsal_text(api.dry_run(path, progress=progress)).rstrip())
        result = api.train(path, progress=progress, on_checkpoint=Mirror(flags))
    for line in result["notes"]:
        remark(line)
    for line in describe(places.save):
        out(line)
    if flags["test_files"]:
        _report(str(places.save), flags, out)
    if flags["export_dir"]:
        _export_model(str(places.save), flags, out)
    if flags["one_shot_infer"]:
        out(_heard(str(places.save), [flags["one_shot_infer"]], flags)[0])


def _other_steps(flags: Flags) -> list[Callable[[Flags, Say, Say], None]]:
    """What upstream's train does, too: a command of ours each."""
    evaluates = flags["test_files"] or flags["one_shot_infer"]
    return [*([_evaluate] if evaluates else []), *([_export] if flags["export_dir"] else [])]


def _evaluate(flags: Flags, out: Say, remark: Say) -> None:
    if not any(flags[name] for name in ("test_files", "one_shot_infer", "auto_input_dataset")):
        raise ConfigError("there is nothing to evaluate on", todo="give --test_files or --one_shot_infer")
    source = _source(flags, "evaluate", remark)
    flags = _with_lists(flags, remark)
    if flags["one_shot_infer"]:
        out(_heard(source, [flags["one_shot_infer"]], flags)[0])
    if flags["test_files"]:
        _report(source, flags, out)


def _export(flags: Flags, out: Say, remark: Say) -> None:
    if not flags["export_dir"]:
        raise ConfigError("nothing says where to export to", todo="give --export_dir")
    _export_model(_source(flags, "export", remark), flags, out)


def _transcribe(flags: Flags, out: Say, remark: Say) -> None:
    from warmstart.frontends.coqui.recordings import recordings, write_tlog
    from warmstart.inference.speech.acoustic import open_acoustic
    from warmstart.inference.speech.transcriber import Transcriber

    jobs = recordings(flags)
    source = _source(flags, "transcribe", remark)
    transcriber = Transcriber(open_acoustic(source, vocabularies=_vocabularies(source, flags)), _search(flags))
    wrong: list[Problem] = []
    for audio, tlog in jobs:
        try:
            write_tlog(transcriber, audio, tlog, flags)
        except (DataError, SourceError) as error:
            wrong.append(error.problem)
        else:
            out(f"{audio} -> {tlog}")
    if wrong:
        raise DataError(f"{len(wrong):,} of {len(jobs):,} recordings cannot be transcribed", problems=wrong)


def _lm_optimize(flags: Flags, out: Say, remark: Say) -> None:
    from warmstart.inference.ctc import BeamOptions
    from warmstart.inference.speech.tuning import tune_scorer

    needed = {"scorer_path": "a language model", "test_files": "recordings to choose its weights on"}
    given = {**flags.values, "test_files": flags["test_files"] or flags["auto_input_dataset"]}
    missing = [Problem(f"--{key} is missing", todo=f"name {what}") for key, what in needed.items() if not given[key]]
    if missing:
        raise ConfigError("there is nothing to choose weights for", problems=missing)
    source = _source(flags, "lm-optimize", remark)
    flags = _with_lists(flags, remark)
    grid = max(2, min(9, math.isqrt(flags["n_trials"] // 2)))
    if "n_trials" in flags.given:
        remark(f"--n_trials {flags['n_trials']}: a grid of {grid**2} pairs, then up to 16 around the best")
    found = tune_scorer(
        source,
        [example for split in _test_data(flags).tasks.values() for example in split.splits["test"].examples()],
        flags["scorer_path"],
        options=BeamOptions(flags["export_beam_width"], **_cutoffs(flags)),
        alpha_max=flags["lm_alpha_max"],
        beta_max=flags["lm_beta_max"],
        grid=grid,
        progress=flags["show_progressbar"],
        vocabularies=_vocabularies(source, flags),
    )
    best = found.best
    out(f"Best params: lm_alpha={best.alpha:g} and lm_beta={best.beta:g} with WER={best.wer:f}, CER={best.cer:f}")


_RUN = {
    "train": _train,
    "evaluate": _evaluate,
    "export": _export,
    "transcribe": _transcribe,
    "lm-optimize": _lm_optimize,
    "config": _config,
}


# what they have in common


def _source(flags: Flags, command: str, remark: Say) -> str:
    """The checkpoint that is looked at."""
    from warmstart.bundle.model import open_model
    from warmstart.frontends.coqui.kept import check_outputs, kept

    check(flags, command, training=False)
    places: Places = find_places(flags, training=False)
    for line in (*places.said, *flags.notes()):
        remark(line)
    assert places.source is not None
    model = open_model(places.source)
    check_outputs(flags, model)
    if flags["alphabet_config_path"] and Path(places.source).is_dir():
        given = {"type": "alphabet", "path": flags["alphabet_config_path"]}
        check_alphabet(given, model, "open the model that it belongs to")
    if model.config is not None:
        for line in kept(flags, model.config):
            remark(line)
    return places.source


def _with_lists(flags: Flags, remark: Say) -> Flags:
    """``flags`` with the lists that ``--auto_input_dataset`` stands for."""
    flags, said = with_dataset(flags, alphabet=False)
    for line in said:
        remark(line)
    return flags


@contextmanager
def _written(config: dict[str, Any]) -> Iterator[Path]:
    import yaml

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stt.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), "utf-8")
        yield path


def _vocabularies(source: str, flags: Flags) -> tuple[str, ...]:
    """The alphabet of a checkpoint of TensorFlow's; a run or bundle, which are directories, bring their own."""
    path = flags["alphabet_config_path"]
    return (path,) if path and not Path(source).is_dir() else ()


def _test_data(flags: Flags) -> SpeechDataConfig:
    """Every test file is a task of its own, and is reported so."""
    from pydantic import ValidationError

    from warmstart.data.speech.config import SpeechDataConfig

    limit = {"limit": flags["limit_test"]} if flags["limit_test"] else {}
    tasks = {name: {"splits": {"test": {"files": [name], **limit}}} for name in flags["test_files"]}
    try:
        return SpeechDataConfig.model_validate(
            {"type": "speech", "tasks": tasks, "batch_size": flags["test_batch_size"]}
        )
    except ValidationError as error:
        raise ConfigError("--test_files cannot be read", problems=validation_problems(error)) from None


def _search(flags: Flags) -> SpeechSearch:
    """As upstream: weights count only with a scorer."""
    from warmstart.inference.ctc import SpeechSearch

    chosen: dict[str, Any] = {"beam_size": flags["export_beam_width"], **_cutoffs(flags)}
    if flags["scorer_path"]:
        names = {"alpha": "lm_alpha", "beta": "lm_beta"}
        weights = {key: flags[name] for key, name in names.items() if name in flags.given}
        chosen |= {"scorer": Path(flags["scorer_path"]), **weights}
    return SpeechSearch(**chosen)


def _cutoffs(flags: Flags) -> dict[str, Any]:
    """As upstream: they count only where ``--cutoff_prob`` is below 1."""
    return {key: flags[key] for key in ("cutoff_prob", "cutoff_top_n")} if flags["cutoff_prob"] < 1 else {}


def _report(source: str, flags: Flags, out: Say) -> None:
    from warmstart.bundle.model import open_model
    from warmstart.inference.ctc import write_samples
    from warmstart.inference.evaluate_speech import evaluate_speech

    model = open_model(source, vocabularies=_vocabularies(source, flags))
    found = evaluate_speech(model, _test_data(flags), "test", _search(flags), progress=flags["show_progressbar"])
    for name, one in found.items():
        out(one.text(name, flags["report_count"]))
    if flags["test_output_file"]:
        write_samples([sample for one in found.values() for sample in one.samples], Path(flags["test_output_file"]))


def _heard(source: str, files: Sequence[str], flags: Flags) -> list[str]:
    from warmstart import api

    rows = api.transcribe(source, files, vocabularies=_vocabularies(source, flags), **vars(_search(flags)))
    wrong = [row["error"] for row in rows if "error" in row]
    if wrong:
        raise WarmstartError("a recording cannot be transcribed", found="; ".join(wrong))
    return [row["text"] for row in rows]


def _export_model(source: str, flags: Flags, out: Say) -> None:
    from warmstart import api

    dialect = "tflite" if flags["export_tflite"] else "onnx"
    quantize = "int8" if flags["export_quantize"] else None
    vocabularies = _vocabularies(source, flags)
    folder = Path(flags["export_dir"])
    api.convert(
        source, folder, dialect, quantize=quantize, force=flags["remove_export"] or _empty(folder),
        vocabularies=vocabularies, beam_size=flags["export_beam_width"] if flags["export_tflite"] else None,
    )  # fmt: skip
    out(f"exported to {folder / f'model.{dialect}'}")


def _empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())
