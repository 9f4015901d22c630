"""Coqui's checkpoints: names, flags, alphabets, cuDNN's layout, and what contradicts itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coqui_models import CELL, COQUI, CUDNN, FAMILY, LABELS, OPAQUE, config, save, tensors, trained
from warmstart.bundle.model import open_anyway, open_model
from warmstart.errors import BundleError, ConfigError, DialectError, VocabularyError
from warmstart.formats.checkpoint import SlotEntry
from warmstart.models.deepspeech.config import DeepSpeechConfig
from warmstart.spec.lstm import CudnnLstm, halves
from warmstart.spec.mapping import expand, read_through
from warmstart.testing import FamilyContract, InMemory, random_arrays, written

FLAGS = {"n_hidden": 6, "audio_sample_rate": 8000}
ALPHABET = "".join(f"{label}\n" for label in LABELS)


class TestContract(FamilyContract):
    family = FAMILY
    configs = (config(), config(layer_norm=True), config(vocab_size=256, n_hidden=3))


@pytest.mark.parametrize("dialect", [COQUI, CUDNN], ids=lambda d: d.name)
def test_slots_follow_their_parameters_both_ways(dialect) -> None:
    """Adam's state goes through the table as the weights do; of cuDNN's biases both have the state of their sum."""
    c = config()
    arrays, states = random_arrays(FAMILY, c), random_arrays(FAMILY, c, seed=1)
    links = expand(dialect.rules(c))
    there = written(FAMILY, c, dialect, arrays)
    slots: dict[tuple[str, str], np.ndarray] = {}
    for link in links:
        if link.copy:
            continue
        out = link.op.backward_slot(
            [states[n] for n in link.canonical], None, [states[n].shape for n in link.canonical]
        )
        slots |= {(name, "m"): state for name, state in zip(link.foreign, out, strict=True)}

    class WithSlots(InMemory):
        def read_slot(self, parameter: str, slot: str) -> np.ndarray:
            return slots[parameter, slot]

    checkpoint = WithSlots(there)
    checkpoint.slots = {key: SlotEntry(*key, a.shape, a.dtype.name) for key, a in slots.items()}
    reading = read_through(checkpoint, links)
    for name, state in states.items():
        assert reading.slot_axes(name) == {("m", None): ("m", None)}
        assert reading.read_slot(name, "m").tobytes() == state.tobytes(), name


def test_gates_lie_where_tensorflow_and_cudnn_have_them() -> None:
    """Each gate of the canonical LSTM (i, f, c, o) is filled with its own number."""
    c = config()
    weight = np.repeat(np.arange(4, dtype=np.float32), 6)[:, None].repeat(12, 1)
    weight[:, 6:] += 10  # of the state
    arrays = {**random_arrays(FAMILY, c), "lstm.weight": weight, "lstm.bias": np.repeat(np.float32([0, 2, 4, 6]), 6)}
    kernel = written(FAMILY, c, COQUI, arrays)[f"{CELL}/kernel"]
    assert kernel.shape == (12, 24)
    assert kernel[0, ::6].tolist() == [0, 2, 1, 3]  # TensorFlow's order: i, c, f, o
    assert kernel[6, ::6].tolist() == [10, 12, 11, 13]
    opaque = written(FAMILY, c, CUDNN, arrays)[OPAQUE]
    assert opaque[: 8 * 36].reshape(8, 36)[:, 0].tolist() == [0, 1, 2, 3, 10, 11, 12, 13]
    assert opaque[8 * 36 :].reshape(8, 6)[:, 0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_halves_sum_to_the_whole_bit_for_bit() -> None:
    awkward = np.array(
        [0.0, -0.0, 1e-45, -3e-45, 1.1754944e-38, 3.4028235e38, -3.4028235e38, 1 / 3, np.inf], np.float32
    )
    random = np.random.default_rng(0).integers(0, 2**32, 100_000, np.uint32).view(np.float32)
    values = np.concatenate([awkward, random[np.isfinite(random)]])
    first, second = halves(values)
    assert (first + second).tobytes() == values.tobytes()


def test_an_opaque_array_of_another_size_is_refused(tmp_path: Path) -> None:
    arrays = tensors(config(), cudnn=True, slots=False)
    arrays[OPAQUE] = arrays[OPAQUE][:-3]
    path = save(tmp_path / "run", arrays, FLAGS, ALPHABET)
    with pytest.raises(DialectError, match="is not the 336 elements of 6 units with 6 inputs"):
        open_model(path)


def test_a_checkpoint_is_read_with_what_lies_beside_it(tmp_path: Path) -> None:
    flags = {
        **FLAGS, "audio_sample_rate": 16000, "feature_win_len": 25, "feature_win_step": 10, "relu_clip": 5.0,
        "dropout_rate": 0.3, "dropout_rate2": 0.2, "dropout_rate3": -1.0, "dropout_rate4": 0.9, "dropout_rate6": 0.1,
    }  # fmt: skip
    model = open_model(save(tmp_path / "run", tensors(config(layer_norm=True)), flags, ALPHABET))
    assert model.dialect == "coqui"
    assert model.config == config(
        layer_norm=True, sample_rate=16000, win_ms=25, step_ms=10, relu_clip=5.0,
        dropout_1=0.3, dropout_2=0.2, dropout_3=0.3, dropout_5=0.1,
    )  # fmt: skip
    assert model.vocabularies["text"].tokens == (*LABELS, "<blank>")
    assert (model.checkpoint.step, model.reading.unknown, model.remarks) == (12, [], [])


def test_flags_of_deepspeech_are_read_too(tmp_path: Path) -> None:
    path = save(tmp_path / "run", tensors(config(layer_norm=True)), None, ALPHABET)
    text = "--audio_sample_rate=8000\n--layer_norm\n--notrain_cudnn\n--dropout_rate=0.2\n--n_hidden=6\n--utf8=false\n"
    (path.parent / "flags.txt").write_text(text)
    model = open_model(path)
    assert (model.config.sample_rate, model.config.dropout_5, model.remarks) == (8000, 0.2, [])


def test_arrays_count_where_flags_contradict_them_and_it_is_said(tmp_path: Path) -> None:
    """Coqui writes flags.txt before it corrects n_hidden from the checkpoint that it loads."""
    path = save(tmp_path / "run", tensors(config()), {**FLAGS, "n_hidden": 2048, "layer_norm": True}, ALPHABET)
    model, notes = open_anyway(path)
    assert (model.config.n_hidden, model.config.layer_norm) == (6, False)
    assert [note.partition(" (")[0] for note in notes] == [
        "flags.txt says n_hidden 2048, the arrays have 6, which counts",
        "flags.txt says layer_norm true, the arrays have false, which counts",
    ]


def test_without_flags_defaults_are_taken_and_it_is_said(tmp_path: Path) -> None:
    path = save(tmp_path / "run", tensors(config()), None, ALPHABET)
    model = open_model(path)
    assert model.config.sample_rate == 16000
    assert "--from coqui:audio_sample_rate=8000" in model.remarks[0]
    said = open_model(path, dialect="coqui:audio_sample_rate=8000")
    assert (said.config.sample_rate, said.remarks) == (8000, [])


@pytest.mark.parametrize("what", ["bytes", "n_hidden=3", "nothing=1", "audio_sample_rate="])
def test_what_is_said_must_be_a_flag(tmp_path: Path, what: str) -> None:
    with pytest.raises(ConfigError, match="says nothing of a model of coqui"):
        open_model(trained(tmp_path / "run"), dialect=f"coqui:{what}")


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ({"audio_sample_rate": "fast", "relu_clip": -1}, ["audio_sample_rate", "relu_clip"]),
        ({"audio_sample_rate": 22030}, ["win_ms 32 and step_ms 20"]),
        ({"bytes_output_mode": True}, ["bytes_output_mode"]),
    ],
)
def test_flags_that_no_model_has_are_all_named(tmp_path: Path, flags: dict[str, Any], found: list[str]) -> None:
    path = save(tmp_path / "run", tensors(config()), {**FLAGS, **flags}, ALPHABET)
    with pytest.raises(DialectError) as caught:
        open_model(path, vocabularies=[str(path.parent / "alphabet.txt")])
    assert all(any(name in problem.what for problem in caught.value.problems) for name in found)


def test_flags_that_cannot_be_parsed(tmp_path: Path) -> None:
    path = save(tmp_path / "run", tensors(config()), None, ALPHABET)
    for text, found in (("{broken", "Expecting property name"), ("--epochs=1\n" * 100_000, "more than 1,048,576")):
        (path.parent / "flags.txt").write_text(text)
        with pytest.raises(DialectError, match="the flags cannot be read") as caught:
            open_model(path)
        assert found in str(caught.value.found)


def test_a_missing_alphabet_says_what_to_do(tmp_path: Path) -> None:
    path = save(tmp_path / "run", tensors(config()), FLAGS, None)
    with pytest.raises(VocabularyError, match="--vocab") as caught:
        open_model(path)
    assert caught.value.expected == "alphabet.txt"
    (tmp_path / "other.txt").write_text(ALPHABET)
    assert open_model(path, vocabularies=[str(tmp_path / "other.txt")]).vocabularies["text"].labels == tuple(LABELS)


def test_an_alphabet_of_another_width_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "run", tensors(config()), FLAGS, ALPHABET + "g\n")
    with pytest.raises(BundleError, match="7 tokens, one for each row"):
        open_model(path)


@pytest.mark.parametrize("alphabet", ["\n".join(map(chr, range(1, 250))), None])
def test_byte_mode_is_known_from_the_flags_or_said(tmp_path: Path, alphabet: str | None) -> None:
    arrays = tensors(config(vocab_size=256))
    path = save(tmp_path / "run", arrays, {**FLAGS, "bytes_output_mode": True}, alphabet)
    assert open_model(path).vocabularies["text"].utf8
    path = save(tmp_path / "silent", arrays, FLAGS, alphabet)
    with pytest.raises(VocabularyError, match="bytes_output_mode=true" if alphabet else "--vocab"):
        open_model(path)
    assert open_model(path, dialect="coqui:bytes_output_mode=true").vocabularies["text"].utf8


def test_bytes_that_are_no_text_are_no_alphabet(tmp_path: Path) -> None:
    path = save(tmp_path / "run", tensors(config(vocab_size=256)), FLAGS, None)
    (path.parent / "alphabet.txt").write_bytes(b"\n".join(bytes([b]) for b in range(1, 256)))
    with pytest.raises(VocabularyError, match="bytes_output_mode=true"):
        open_model(path)


def test_other_features_are_refused_in_both_directions(tmp_path: Path) -> None:
    arrays = tensors(config())
    arrays |= {name: array[:400] for name, array in arrays.items() if name.startswith("layer_1/weights")}
    with pytest.raises(DialectError, match="494"):
        open_model(save(tmp_path / "run", arrays, FLAGS, ALPHABET))
    with pytest.raises(DialectError, match="n_context 3"):
        COQUI.rules(DeepSpeechConfig(vocab_size=7, n_hidden=4, n_context=3))


def test_cudnn_is_believed_only_where_it_holds_the_weights_beside_it(tmp_path: Path) -> None:
    arrays = tensors(config(), cudnn=True)
    good = open_model(save(tmp_path / "good", arrays, FLAGS, ALPHABET))
    assert good.dialect == "coqui-cudnn"
    assert good.reading.read("lstm.weight").shape == (24, 12)
    arrays[OPAQUE] = np.roll(arrays[OPAQUE], 1)
    path = save(tmp_path / "bad", arrays, FLAGS, ALPHABET)
    bad = open_model(path)
    for read in (lambda: bad.reading.read("lstm.weight"), lambda: bad.reading.read_slot("lstm.weight", "m")):
        with pytest.raises(DialectError, match="does not hold the weights that stand beside it") as caught:
            read()
        assert "--from coqui" in str(caught.value)
    plain = open_model(path, dialect="coqui")
    kernel = arrays[f"{CELL}/kernel"]
    np.testing.assert_array_equal(plain.reading.read("lstm.weight")[6:12], kernel.T[12:18])  # f is TensorFlow's third
    assert plain.reading.unknown == [OPAQUE]


def test_biases_that_are_no_halves_are_said(tmp_path: Path) -> None:
    arrays = tensors(config(), cudnn=True)
    arrays[OPAQUE][-1] += 1.0
    arrays[f"{OPAQUE}/Adam"][-2:] += 1.0
    bias = arrays[f"{CELL}/bias"]
    op = CudnnLstm(6, 6)
    first, second = op.biases(arrays[OPAQUE])
    bias[-1] = (first + second)[-1]
    model = open_model(save(tmp_path / "run", arrays, FLAGS, ALPHABET))
    assert dict(model.checkpoint.lossy) == {
        "lstm.bias": "cuDNN's two biases are not halves of one in 1 of 24 places: their sum is kept",
        "lstm.bias: m": "of cuDNN's two biases it differs in 2 of 24 places: the first's is kept",
    }
    assert model.reading.read("lstm.bias")[-1] == bias[-1]


def test_flags_that_are_written_read_back_as_the_same_model(tmp_path: Path) -> None:
    from warmstart.models.deepspeech.dialects.flags import flags_of, parse_flags

    c = config(dropout_1=0.2, dropout_2=0.0, relu_clip=7.5, win_ms=25, step_ms=10)
    flags = parse_flags(json.loads(json.dumps(flags_of(c, utf8=False))), "flags.txt")
    assert config(**flags.model()) == c


def test_shapes_that_no_model_has_are_refused(tmp_path: Path) -> None:
    """A checkpoint that only resembles one of Coqui's is no dialect's, or says what is wrong with it."""
    arrays = tensors(config(), slots=False)
    flat = {**arrays, "layer_6/weights": arrays["layer_6/weights"].ravel()}
    assert open_model(save(tmp_path / "flat", flat, FLAGS, ALPHABET)).family is None
    narrow = {**arrays, "layer_6/weights": arrays["layer_6/weights"][:, :1], "layer_6/bias": arrays["layer_6/bias"][:1]}
    with pytest.raises(DialectError, match="vocab_size"):
        open_model(save(tmp_path / "narrow", narrow, FLAGS, ALPHABET))
    for name in ("layer_3/bias", "layer_5/weights", f"{CELL}/bias"):
        less = {key: array for key, array in arrays.items() if key != name}
        opened = open_model(save(tmp_path / name.replace("/", "-"), less, FLAGS, ALPHABET))
        assert len(opened.reading.origins) == len(FAMILY.parameters(opened.config)) - 1


def test_headers_are_enough_to_open_a_checkpoint_whose_data_is_missing(tmp_path: Path) -> None:
    path = save(tmp_path / "run", tensors(config(), cudnn=True), FLAGS, ALPHABET)
    path.with_name(path.name + ".data-00000-of-00001").unlink()
    assert open_anyway(path)[0].dialect == "coqui-cudnn"
