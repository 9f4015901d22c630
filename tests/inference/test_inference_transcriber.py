"""Transcription: whole files, batches, streams and exported models hear the same."""

from __future__ import annotations

import csv
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import marian_models
from speech_models import ALPHABET, CONFIG, write_audio, write_model
from warmstart import api
from warmstart.bundle.layout import write_bundle
from warmstart.cli.verbs import app
from warmstart.data.speech.audio import read_audio
from warmstart.errors import BundleError, ConfigError, DataError, DialectError, MissingExtra, WarmstartError
from warmstart.inference.ctc import SpeechSearch, greedy
from warmstart.inference.speech.acoustic import open_acoustic
from warmstart.inference.speech.transcriber import PIECE, Transcriber
from warmstart.models.deepspeech.family import DeepSpeechFamily

pytest.importorskip("torch")
pytest.importorskip("soundfile")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_model(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("beam", [None, SpeechSearch(beam_size=8)], ids=["greedy", "beam"])
@pytest.mark.parametrize("chunk", [1, 37, 1600, 100_000])
def test_a_stream_hears_what_the_file_has(tmp_path: Path, model: Path, beam: SpeechSearch | None, chunk: int) -> None:
    write_audio(tmp_path / "a.wav", 2.03)
    transcriber = Transcriber(open_acoustic(model), beam)
    ((_, whole),) = transcriber.files([tmp_path / "a.wav"])
    assert not isinstance(whole, WarmstartError)
    assert len(whole.text) > 5
    samples = read_audio(tmp_path / "a.wav", 8000)
    if chunk == 1:
        samples = samples[:3000]  # every sample on its own, of a shorter recording
        whole = transcriber.heard(transcriber.transcripts([transcriber.acoustic.mfcc(samples)])[0], len(samples) / 8000)
    stream = transcriber.stream()
    for at in range(0, len(samples), chunk):
        stream.feed(samples[at : at + chunk])
    found = stream.finish()
    assert (found.text, found.words, found.seconds) == (whole.text, whole.words, pytest.approx(whole.seconds))
    assert found.confidence == pytest.approx(whole.confidence, rel=1e-4)


def test_every_option_that_cannot_be_used_is_named() -> None:
    search = SpeechSearch(beam_size=0, alpha=1.0, cutoff_prob=0.9)
    with pytest.raises(ConfigError) as caught:
        search.open(ALPHABET)
    assert [problem.what for problem in caught.value.problems] == [
        "alpha changes nothing without a scorer",
        "no beam is that narrow",
    ]


def test_ranges_of_weights_are_looked_at_before_anything_is_heard(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("wav_filename,transcript\na.wav,one\n")
    with pytest.raises(ConfigError) as caught:
        api.lm_tune(tmp_path / "model", tmp_path / "a.scorer", [tmp_path / "a.csv"], alpha_max=0, beta_max=np.nan)
    assert [problem.what.split()[0] for problem in caught.value.problems] == ["alpha_max", "beta_max"]


def test_a_hot_word_has_one_boost() -> None:
    heard = CliRunner().invoke(app, ["transcribe", "model", "a.wav", "--hot-word", "one=1", "--hot-word", "one=2"])
    assert isinstance(heard.exception, ConfigError)
    assert "--hot-word one is given twice" in str(heard.exception)


def test_intermediate_results_change_nothing(tmp_path: Path, model: Path) -> None:
    samples = write_audio(tmp_path / "a.wav", 1.5)
    plain, asked = (Transcriber(open_acoustic(model)).stream() for _ in range(2))
    plain.feed(samples)
    seen = []
    for piece in np.array_split(samples, 9):
        asked.feed(piece)
        seen.append(asked.intermediate().text)
    assert asked.finish() == plain.finish()
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(seen))
    assert len(set(seen)) > 2


@pytest.mark.parametrize("frames", [0, 1, 15, 16, 17, 24, 25, 31, 40, 41, 48])
def test_a_stream_through_a_model_of_fixed_pieces(model: Path, frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As TensorFlow Lite's are: 16 frames and their context, however much is left at the end."""
    acoustic = open_acoustic(model)
    samples = np.random.default_rng(1).uniform(-0.5, 0.5, max(0, 256 + 160 * (frames - 1) + 7)).astype(np.float32)
    features = acoustic.mfcc(samples)
    assert len(features) == frames
    whole = Transcriber(acoustic).transcripts([features])[0]
    step, pieces = acoustic.step, []

    def fixed(padded: Any, state: Any) -> Any:
        pieces.append(padded.shape[1])
        return step(padded, state)

    monkeypatch.setattr(acoustic, "frames", 16)
    monkeypatch.setattr(acoustic, "step", fixed)
    stream = Transcriber(acoustic).stream()
    for at in range(0, len(samples), 999):
        stream.feed(samples[at : at + 999])
    assert stream.finish().text == whole.text
    assert set(pieces) <= {16 + 2 * acoustic.n_context}
    assert len(pieces) == -(-frames // 16)


def test_long_recordings_go_in_pieces(model: Path) -> None:
    acoustic = open_acoustic(model)
    features = np.random.default_rng(0).standard_normal((2 * PIECE + 100, 26)).astype(np.float32)
    transcriber = Transcriber(acoustic)
    pieces = list(transcriber.pieces([features]))
    assert [at for at, _ in pieces] == [0, PIECE, 2 * PIECE]
    joined = np.concatenate([log_probs[0] for _, log_probs in pieces])
    padded = np.pad(features, ((9, 9), (0, 0)))[None]
    np.testing.assert_allclose(joined, acoustic.step(padded, acoustic.start(1))[0][0], atol=1e-4)


def test_batches_hear_what_single_files_have(tmp_path: Path, model: Path) -> None:
    paths = [tmp_path / f"{k}.wav" for k in range(7)]
    for k, path in enumerate(paths):
        write_audio(path, 0.4 + 0.3 * (k % 4), seed=k)
    transcriber = Transcriber(open_acoustic(model))
    together = dict(transcriber.files(paths))
    for number, path in enumerate(paths):
        ((_, alone),) = transcriber.files([path])
        assert together[number].text == alone.text  # type: ignore[union-attr]


@pytest.mark.parametrize("samples", [0, 1, 255])
def test_what_is_shorter_than_a_window_is_silence(tmp_path: Path, model: Path, samples: int) -> None:
    write_audio(tmp_path / "a.wav", samples / 8000)
    (row,) = api.transcribe(model, [tmp_path / "a.wav"])
    assert (row["text"], row["words"], row["seconds"]) == ("", [], round(samples / 8000, 3))


def test_files_that_cannot_be_read_do_not_stop_the_others(tmp_path: Path, model: Path) -> None:
    write_audio(tmp_path / "a.wav", 1.0)
    (tmp_path / "b.flac").write_bytes(b"fLaC" + bytes(100))
    rows = api.transcribe(model, [tmp_path / "b.flac", tmp_path / "missing.wav", tmp_path / "a.wav"])
    assert "b.flac" in rows[0]["error"]
    assert "missing.wav" in rows[1]["error"]
    assert rows[2]["text"]


def test_onnx_hears_what_the_bundle_does(tmp_path: Path, model: Path) -> None:
    pytest.importorskip("onnxruntime")
    write_audio(tmp_path / "a.wav", 1.7)
    api.convert(model, tmp_path / "onnx", "onnx")
    (ours,), (theirs,) = (api.transcribe(m, [tmp_path / "a.wav"]) for m in (model, tmp_path / "onnx"))
    assert (ours["text"], ours["words"]) == (theirs["text"], theirs["words"])
    stream = Transcriber(open_acoustic(tmp_path / "onnx")).stream()
    stream.feed(read_audio(tmp_path / "a.wav", 8000))
    assert stream.finish().text == ours["text"]


def test_an_export_is_opened_by_its_file_too(tmp_path: Path, model: Path) -> None:
    pytest.importorskip("onnxruntime")
    write_audio(tmp_path / "a.wav", 1.0)
    api.convert(model, tmp_path / "out", "onnx")
    (whole,) = api.transcribe(tmp_path / "out", [tmp_path / "a.wav"])
    assert api.transcribe(tmp_path / "out" / "model.onnx", [tmp_path / "a.wav"]) == [whole]
    (tmp_path / "out" / "config.json").unlink()
    with pytest.raises(WarmstartError, match=r"config\.json"):
        api.transcribe(tmp_path / "out" / "model.onnx", [tmp_path / "a.wav"])


def test_a_damaged_export_is_named(tmp_path: Path, model: Path) -> None:
    pytest.importorskip("onnxruntime")
    api.convert(model, tmp_path / "onnx", "onnx")
    (tmp_path / "onnx" / "config.json").write_text('{"alphabet": {}}')
    with pytest.raises(BundleError, match=r"config\.json"):
        open_acoustic(tmp_path / "onnx")
    api.convert(model, tmp_path / "other", "onnx")
    told = json.loads((tmp_path / "other" / "config.json").read_text("utf-8"))
    for wrong, message in (
        ({"n_input": 20, "n_hidden": 7, "alphabet": {"labels": ["a"]}}, "features.*h is of.*log_probs"),
        ({"n_hidden": -1}, "n_hidden is not valid\n  expected: more than 0"),
        ({"step_ms": 3.5}, "step_ms is not valid\n  expected: a whole number"),
    ):
        (tmp_path / "onnx" / "config.json").write_text(json.dumps(told | wrong))
        with pytest.raises(BundleError, match=f"(?s){message}"):
            open_acoustic(tmp_path / "onnx")
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"nothing")
    (tmp_path / "onnx" / "config.json").write_bytes((tmp_path / "other" / "config.json").read_bytes())
    with pytest.raises(BundleError, match=r"model\.onnx"):
        open_acoustic(tmp_path / "onnx")


def test_without_litert_the_extra_is_named(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(MissingExtra, match=r"warmstart\[tflite\]"):
        api.convert(model, tmp_path / "out", "tflite")
    assert not (tmp_path / "out").exists()


def test_models_of_text_and_of_speech_are_not_mistaken_for_each_other(tmp_path: Path, model: Path) -> None:
    with pytest.raises(DialectError, match=r"deepspeech do not translate.*(?s:.*)`warmstart transcribe`"):
        api.translate([model], ["a"])
    marian_models.write(tmp_path / "text", marian_models.OPTIONS, marian_models.arrays(marian_models.OPTIONS))
    with pytest.raises(DialectError, match=r"transformer do not transcribe.*(?s:.*)`warmstart translate`"):
        api.transcribe(tmp_path / "text", [])


def test_options_that_change_nothing_are_refused(model: Path) -> None:
    with pytest.raises(ConfigError) as error:
        api.transcribe(model, [], alpha=2.0, hot_words={"a": 1.0}, cutoff_top_n=3)
    assert [problem.what.split()[0] for problem in error.value.problems] == ["alpha", "hot_words", "cutoff_top_n"]
    with pytest.raises(ConfigError, match="width changes nothing"):
        api.transcribe(model, [], width=3)


def test_flashlight_searches_words_of_the_scorer(tmp_path: Path, model: Path) -> None:
    pytest.importorskip("kenlm")
    pytest.importorskip("flashlight.lib.text")
    unigrams = "-1\t<unk>\n-99\t<s>\t0\n-1\t</s>\n-0.5\tbad\t0\n-0.5\tcab\t0"
    bigrams = "-0.3\tbad cab\n-0.3\tcab bad"
    arpa = f"\\data\\\nngram 1=5\nngram 2=2\n\n\\1-grams:\n{unigrams}\n\n\\2-grams:\n{bigrams}\n\n\\end\\\n"
    (tmp_path / "words.arpa").write_text(arpa)
    write_audio(tmp_path / "a.wav", 1.0)
    found = [
        api.transcribe(model, [tmp_path / "a.wav"], scorer=tmp_path / "words.arpa", beam_size=50, flashlight=fast)
        for fast in (False, True)
    ]
    for (row,), name in zip(found, ("ours", "flashlight"), strict=True):
        assert row["text"], name
        assert set(row["text"].split()) <= {"bad", "cab"}, name


def test_the_command_prints_text_json_and_subtitles(tmp_path: Path, model: Path) -> None:
    write_audio(tmp_path / "a.wav", 1.0)
    write_audio(tmp_path / "b.wav", 1.2, seed=5)
    run = CliRunner()
    one = run.invoke(app, ["transcribe", str(model), str(tmp_path / "a.wav")])
    (row,) = api.transcribe(model, [tmp_path / "a.wav"])
    assert one.stdout == row["text"] + "\n"
    two = run.invoke(app, ["transcribe", str(model), str(tmp_path / "a.wav"), str(tmp_path / "b.wav")])
    assert two.stdout.splitlines()[0] == f"{tmp_path / 'a.wav'}\t{row['text']}"
    as_json = run.invoke(app, ["transcribe", str(model), str(tmp_path / "a.wav"), "--json"])
    assert json.loads(as_json.stdout) == [row]
    assert "".join(one["character"] for one in row["characters"]) == row["text"]
    assert all(0 <= one["start"] < one["end"] <= row["seconds"] + 1 for one in row["words"] + row["characters"])
    streamed = run.invoke(app, ["transcribe", str(model), str(tmp_path / "a.wav"), "--stream"])
    assert streamed.stdout == one.stdout
    subtitles = run.invoke(app, ["transcribe", str(model), str(tmp_path / "a.wav"), "--srt"])
    assert subtitles.stdout.startswith("1\n00:00:0")
    live = run.invoke(app, ["transcribe", str(model), str(tmp_path / "a.wav"), "--srt", "--stream"])
    assert live.stdout == subtitles.stdout
    raw = (np.round(read_audio(tmp_path / "a.wav", 8000) * 32767)).astype("<i2").tobytes()
    piped = run.invoke(app, ["transcribe", str(model), "-"], input=raw)
    assert piped.stdout == one.stdout


def test_a_stream_of_any_length_shows_the_end_of_what_is_heard(tmp_path: Path, model: Path) -> None:
    write_audio(tmp_path / "a.wav", 60.0)
    found = CliRunner().invoke(app, ["transcribe", str(model), str(tmp_path / "a.wav"), "--stream"])
    shown = found.stderr.splitlines()
    assert len(found.stdout) > 1000
    assert max(map(len, shown)) <= 100
    assert shown[-1].rstrip()[-50:] in found.stdout


def test_a_model_whose_weights_are_no_numbers_hears_nothing(tmp_path: Path) -> None:
    weights = write_model(tmp_path / "sound")
    weights["layer_6.bias"][3] = np.nan
    write_bundle(tmp_path / "model", DeepSpeechFamily(), CONFIG, weights.values(), {"text": ALPHABET}, {})
    write_audio(tmp_path / "a.wav", 1.0)
    (tmp_path / "list.csv").write_text("wav_filename,transcript\na.wav,abc\n")
    with pytest.raises(DataError, match="are not numbers"):
        api.transcribe(tmp_path / "model", [tmp_path / "a.wav"])
    with pytest.raises(DataError, match="are not numbers") as caught:
        api.evaluate(tmp_path / "model", tmp_path / "list.csv")
    assert "1 of 1 recordings" in str(caught.value.found)


def test_the_command_ends_with_1_where_a_file_failed(tmp_path: Path, model: Path) -> None:
    write_audio(tmp_path / "a.wav", 1.0)
    found = CliRunner().invoke(app, ["transcribe", str(model), str(tmp_path / "a.wav"), str(tmp_path / "no.wav")])
    assert found.exit_code == 1
    assert "no.wav" in found.stderr
    assert found.stdout.startswith(str(tmp_path / "a.wav"))


@pytest.mark.parametrize("which", ["best", "last"])
def test_coquis_checkpoint_hears_what_coqui_heard(fixtures: Path, which: str) -> None:
    """The fixture's own greedy transcripts are those of the best checkpoint."""
    folder = fixtures / "fixtures" / "coqui-digits-en"
    recordings = fixtures / "data" / "fsdd"
    rows = list(csv.DictReader((folder / "expected" / "test_greedy.csv").open(encoding="utf-8")))[:60]
    found = api.transcribe(f"{folder}@{which}", [recordings / row["wav_filename"] for row in rows])
    same = sum(ours["text"] == row["greedy"] for ours, row in zip(found, rows, strict=True))
    assert same == len(rows) if which == "best" else same > 0.8 * len(rows)


def test_greedy_in_pieces_is_greedy() -> None:
    from warmstart.inference.ctc.greedy import GreedyStream

    rng = np.random.default_rng(0)
    log_probs = np.log(rng.dirichlet(np.full(9, 0.2), 50))
    stream = GreedyStream(ALPHABET)
    for piece in (log_probs[:7], log_probs[7:7], log_probs[7:8], log_probs[8:]):
        stream.feed(piece)
    whole, pieces = greedy(log_probs, ALPHABET), stream.finish()[0]
    assert (whole.ids, whole.timesteps) == (pieces.ids, pieces.timesteps)
    assert whole.confidence == pytest.approx(pieces.confidence)
