"""The verbs of speech: ``transcribe``, and ``stt`` with Coqui STT's own flags."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from warmstart.cli.options import AS_IT_IS, Device, Offline, TrainedModel
from warmstart.errors import ConfigError, DataError
from warmstart.frontends.coqui import ALIASES, COMMANDS

if TYPE_CHECKING:
    from warmstart.inference.speech.transcriber import Transcriber

_HEADERS = (b"RIFF", b"RIFX", b"RF64", b"fLaC", b"OggS", b"ID3", b"FORM", b"caff", b".snd")
SHOWN = 100  # characters of what a stream has heard
HotWords = Annotated[list[str] | None, typer.Option("--hot-word", help="WORD=BOOST, added to its logarithm")]


def transcribe(
    model: TrainedModel,
    files: Annotated[list[str], typer.Argument(help="files or URLs; - is raw 16-bit mono on standard input")],
    beam_size: Annotated[int | None, typer.Option("--beam-size", help="1 is greedy; with a scorer 500")] = None,
    scorer: Annotated[Path | None, typer.Option("--scorer", help=".scorer package, ARPA or KenLM file")] = None,
    alpha: Annotated[float | None, typer.Option("--alpha", help="weight of the scorer; else its own")] = None,
    beta: Annotated[float | None, typer.Option("--beta", help="weight of a word; else the scorer's own")] = None,
    hot_words: HotWords = None,
    flashlight: Annotated[bool, typer.Option("--flashlight", help="search by flashlight-text: faster")] = False,
    stream: Annotated[bool, typer.Option("--stream", help="one file as it comes, showing what is heard")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON with the times of words and characters")] = False,
    as_srt: Annotated[bool, typer.Option("--srt", help="print subtitles")] = False,
    device: Device = "cpu",
    vocab: Annotated[list[str] | None, typer.Option("--vocab", help="the alphabet's file")] = None,
    offline: Offline = False,
) -> None:
    """Say what is said in recordings. Status 1 if a file cannot be read; the others are transcribed."""
    from warmstart.data.speech.example import AudioSource
    from warmstart.inference.ctc import SpeechSearch
    from warmstart.inference.speech.acoustic import open_acoustic
    from warmstart.inference.speech.transcriber import Transcriber
    from warmstart.reports.subtitles import srt
    from warmstart.reports.text import json_text

    if as_json and as_srt:
        raise ConfigError("--json and --srt exclude each other")
    one = as_srt or stream or "-" in files
    if one and len(files) != 1:
        raise ConfigError("--srt, --stream and - are for one recording", found=f"{len(files)} files")
    options: dict[str, Any] = {
        "beam_size": beam_size, "scorer": scorer, "alpha": alpha, "beta": beta, "hot_words": _boosts(hot_words or ()),
        "flashlight": flashlight,
    }  # fmt: skip
    if one:
        acoustic = open_acoustic(model, vocabularies=tuple(vocab or ()), device=device)
        transcriber = Transcriber(acoustic, SpeechSearch(**options))
        if stream or files[0] == "-":
            heard = _hear(transcriber, files[0], show=stream and not (as_json or as_srt))
        else:
            heard = transcriber.file(AudioSource(files[0]))
        if as_srt:
            typer.echo(srt(heard.words, heard.characters), nl=False)
        else:
            typer.echo(json_text([{"file": str(AudioSource(files[0])), **heard.as_json()}]) if as_json else heard.text)
        return
    from warmstart import api
    from warmstart.reports.text import printable

    found = api.transcribe(model, files, progress=True, vocabularies=vocab or (), device=device, **options)
    if as_json:
        typer.echo(json_text(found))
    for row in found:
        if "error" in row:
            typer.echo(f"error: {printable(row['error'], keep=chr(10))}", err=True)
        elif not as_json:
            typer.echo(row["text"] if len(files) == 1 else f"{printable(row['file'])}\t{row['text']}")
    if any("error" in row for row in found):
        raise typer.Exit(1)


def _hear(transcriber: Transcriber, file: str, *, show: bool) -> Any:
    """One recording as it comes; with ``show``, standard error has the end of what is heard so far, as it changes."""
    stream, shown = transcriber.stream(), ""
    for samples in _samples(file, transcriber.acoustic.mfcc.sample_rate):
        stream.feed(samples)
        if show and (text := stream.intermediate().text) != shown:
            shown = text
            end = text[-SHOWN:]
            typer.echo(f"\r\x1b[K{end}" if sys.stderr.isatty() else end, nl=not sys.stderr.isatty(), err=True)
    if shown and sys.stderr.isatty():
        typer.echo("\r\x1b[K", nl=False, err=True)
    return stream.finish()


def _samples(file: str, rate: int) -> Iterator[Any]:
    """Pieces of a fifth of a second."""
    import numpy as np

    from warmstart.data.speech.audio import FULL_SCALE, audio_blocks
    from warmstart.data.speech.example import AudioSource

    size = rate // 5
    if file != "-":
        for block in audio_blocks(AudioSource(file), rate):
            yield from (block[at : at + size] for at in range(0, len(block), size))
        return
    heard = False
    while data := sys.stdin.buffer.read(2 * size):
        if not heard and data.startswith(_HEADERS):
            raise DataError(
                "there is a file on standard input, not samples",
                expected=f"16-bit mono at {rate} Hz, without a header",
                found=repr(data[:4]),
                todo="give its name, or take the samples out, for instance: "
                f"ffmpeg -i FILE -f s16le -ac 1 -ar {rate} - | warmstart transcribe MODEL -",
            )
        if len(data) % 2:
            raise DataError("the recording on standard input ends in the middle of a sample", expected="16-bit mono")
        heard = True
        yield np.frombuffer(data, "<i2").astype(np.float32) / FULL_SCALE
    if not heard:
        raise DataError("there is nothing on standard input", expected=f"16-bit mono at {rate} Hz, without a header")


def _boosts(hot_words: list[str] | tuple[str, ...]) -> dict[str, float]:
    boosts: dict[str, float] = {}
    for given in hot_words:
        word, sign, boost = given.rpartition("=")
        if word in boosts:
            raise ConfigError(f"--hot-word {word} is given twice")
        try:
            boosts[word] = float(boost)
        except ValueError:
            sign = ""
        if not (sign and word):
            raise ConfigError(f"--hot-word {given} says no boost", expected="WORD=BOOST, for instance warmstart=7.5")
    return boosts


def lm_tune(
    model: TrainedModel,
    scorer: Annotated[Path, typer.Option("--scorer", help=".scorer package, ARPA or KenLM file")],
    data: Annotated[list[str], typer.Option("--data", help="CSV, SDB or tar file of recordings with transcripts")],
    beam_size: Annotated[int, typer.Option("--beam-size", help="of the search")] = 100,
    alpha_max: Annotated[float, typer.Option("--alpha-max", help="greatest weight of the scorer")] = 5.0,
    beta_max: Annotated[float, typer.Option("--beta-max", help="greatest weight of a word")] = 5.0,
    vocab: Annotated[list[str] | None, typer.Option("--vocab", help="the alphabet's file")] = None,
    offline: Offline = False,
) -> None:
    """Choose the weights of a language model. Every recording is heard once, then pairs of weights are tried."""
    from warmstart import api
    from warmstart.inference.speech.tuning import tuning_table

    found = api.lm_tune(
        model, scorer, data, beam_size=beam_size, alpha_max=alpha_max, beta_max=beta_max, vocabularies=vocab or (),
        progress=True,
    )  # fmt: skip
    typer.echo(tuning_table(found.trials, found.best), nl=False)


stt = typer.Typer(no_args_is_help=True, help="Coqui STT's commands, with its own flags.")


def _declare(command: str, text: str, name: str = "") -> None:
    @stt.command(name or command, help=text, context_settings=AS_IT_IS, hidden=bool(name))
    def run_command(context: typer.Context) -> None:
        from warmstart.frontends.coqui.commands import run

        run(command, context.args, typer.echo, lambda line: typer.echo(line, err=True))


for _command, _text in COMMANDS.items():
    _declare(_command, _text)
for _name, _command in ALIASES.items():
    _declare(_command, COMMANDS[_command], _name)
