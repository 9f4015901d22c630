"""Language models of EOLE and OpenNMT-py: the bytes of CTranslate2's converters, and what the frameworks compute."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
import onmt_lm_models as models
from warmstart import api
from warmstart.bundle.model import open_model
from warmstart.converters import EoleConverter, OpenNMTPyConverter
from warmstart.errors import DialectError
from warmstart.export.quantize import QUANTIZATIONS
from warmstart.formats.detect import open_checkpoint
from warmstart.frontends import ct2
from warmstart.models import eole

# Of ctranslate2 4.8.5; recorded and compared again by tests/interop/test_interop_convert_onmt_lm.py.
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "ctranslate2-converters" / "onmt-lm.json"
DIGESTS = json.loads(GOLDEN.read_text())
CASES = [(framework, kind) for framework, kinds in DIGESTS.items() for kind in kinds]
ROWS = [2, 5, 9, 4, 11]


def write(folder: Path, framework: str, kind: str, **changes: object) -> Path:
    if framework == "eole":
        return models.write_eole(folder / "source", kind, **changes)
    return models.write_onmt(folder / "model.pt", kind, **changes)


@pytest.mark.parametrize(("framework", "kind"), CASES)
def test_bytes_are_those_of_the_reference_converter(framework, kind, tmp_path):
    source = write(tmp_path, framework, kind)
    for quantization in QUANTIZATIONS:
        ledger = api.convert(source, tmp_path / quantization, "ctranslate2", quantize=quantization)["ledger"]
        assert not ledger["lossy"]
        for name, digest in DIGESTS[framework][kind][quantization].items():
            assert sha256((tmp_path / quantization / name).read_bytes()).hexdigest() == digest, (quantization, name)


@pytest.mark.parametrize(("framework", "kind"), [*CASES, *(("eole", kind) for kind in models.SCALED_3)])
def test_the_engine_scores_as_the_framework_computes(framework, kind, tmp_path):
    """The reference is written from the frameworks' code, in float64."""
    ctranslate2 = pytest.importorskip("ctranslate2")
    api.convert(write(tmp_path, framework, kind, sliding_window=0), tmp_path / "out", "ctranslate2")
    generator = ctranslate2.Generator(str(tmp_path / "out"), compute_type="float32")
    scored = generator.score_batch([[models.TOKENS[row] for row in ROWS]])[0].log_probs
    expected = models.log_probabilities(kind, ROWS, framework)[np.arange(len(ROWS) - 1), ROWS[1:]]
    np.testing.assert_allclose(scored, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("framework", "kind"), [case for case in CASES if "relative" in case[1]])
def test_the_engine_adds_the_vectors_of_distances_step_by_step(framework, kind, tmp_path):
    ctranslate2 = pytest.importorskip("ctranslate2")
    api.convert(write(tmp_path, framework, kind), tmp_path / "out", "ctranslate2")
    generator = ctranslate2.Generator(str(tmp_path / "out"), compute_type="float32")
    written = generator.generate_batch(
        [[models.TOKENS[row] for row in ROWS]], max_length=12, sampling_topk=1, include_prompt_in_result=False
    )[0].sequences_ids[0]
    rows = list(ROWS)
    while (
        len(rows) < len(ROWS) + 12 and (best := int(models.log_probabilities(kind, rows, framework)[-1].argmax())) != 3
    ):
        rows.append(best)
    assert written == rows[len(ROWS) :]


@pytest.mark.parametrize("framework", ["eole", "opennmt-py"])
def test_distances_reach_as_far_as_the_options_say(framework, tmp_path):
    said = {
        "eole": {"embeddings": {"position_encoding_type": "Relative", "n_positions": 5}},
        "opennmt-py": {"max_relative_positions": 5},
    }[framework]
    with pytest.raises(DialectError, match=r"relative_positions_embeddings(?s:.*)\[11, 4\]") as error:
        api.convert(write(tmp_path, framework, "relative", **said), tmp_path / "out", "ctranslate2")
    assert "[7, 4]" in str(error.value)


@pytest.mark.parametrize(("framework", "kind"), [*CASES, *(("eole", kind) for kind in models.SCALED_3)])
def test_a_model_bin_returns_with_every_bit(framework, kind, tmp_path):
    """Also where nothing of ours lies beside it: pairs of rotary positions, windows of any positions."""
    source = write(tmp_path, framework, kind)
    api.convert(source, tmp_path / "there", "ctranslate2")
    expected = open_model(source)
    kept = open_model(tmp_path / "there")
    (tmp_path / "there/warmstart.json").unlink()
    bare = open_model(tmp_path / "there")
    assert kept.config == expected.config
    free = {"architecture": None, "tied_output": False}
    assert bare.config.model_copy(update=free) == expected.config.model_copy(update=free)
    family, _, reading = expected.require()
    for model in (kept, bare):
        for storage in {p.storage for p in family.parameters(model.config)}:
            assert model.reading.read(storage).tobytes() == reading.read(storage).tobytes(), storage
    api.convert(tmp_path / "there", tmp_path / "again", "ctranslate2")
    for name in ("model.bin", "config.json", "vocabulary.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "there" / name).read_bytes(), name


def test_pairs_of_rotary_positions_become_halves_in_transformers(tmp_path):
    source = write(tmp_path, "opennmt-py", "base")
    api.convert(source, tmp_path / "out", "transformers")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["model_type"], config["rope_parameters"]["rope_theta"]) == ("llama", 500.0)
    found = open_checkpoint(tmp_path / "out/model.safetensors").read("model.layers.1.self_attn.q_proj.weight")
    expected = models.arrays("base")["layers.1.attention.query.weight"]
    np.testing.assert_array_equal(found[:4], expected[[0, 2, 1, 3]])


def test_the_commands_and_classes_of_the_reference(tmp_path):
    onmt, eole = write(tmp_path, "opennmt-py", "rotary"), write(tmp_path, "eole", "rotary")
    ct2.run("ct2-opennmt-py-converter", ["--model_path", str(onmt), "--output_dir", str(tmp_path / "a")])
    OpenNMTPyConverter(onmt).convert(tmp_path / "b")
    EoleConverter(eole).convert(tmp_path / "c")
    assert len({(tmp_path / name / "model.bin").read_bytes() for name in "abc"}) == 1


@pytest.mark.parametrize(
    ("framework", "changes", "found"),
    [
        ("eole", {"embeddings": {"position_encoding_type": "Relative"}}, f"0.{eole.DISTANCES}.weight is missing"),
        ("eole", {"embeddings": {"position_encoding_type": "Learned"}}, "'Learned' is not supported"),
        ("eole", {"layer_norm": "gemma-rms"}, "model.layer_norm: 'gemma-rms' is not supported"),
        ("eole", {"mlp_activation_fn": "gated-gelu"}, "mlp_activation_fn: 'gated-gelu' is not supported"),
        ("eole", {"parallel_residual": True}, "parallel_residual: True is not supported"),
        ("eole", {"rope_config": {"scaling_type": "dynamic"}}, "rope_config.scaling_type: 'dynamic' is not supported"),
        ("eole", {"rope_config": {"scaling_type": "llama3", "scaling_factor": 0}}, "rope_config: factor"),
        ("eole", {"rope_config": {"trick": 1}}, "rope_config.trick is not an option that is known here"),
        ("eole", {"new_trick": 3}, "model.new_trick: 3 is not an option that is known here"),
        ("eole", {"decoder": {"layers": 2, "twist": 1}}, "decoder.twist: 1 is not an option that is known here"),
        ("eole", {"max_relative_positions": -1}, "model.max_relative_positions: -1 is not supported"),
        ("eole", {"generator_function": "sparsemax"}, "model.generator_function: 'sparsemax' is not supported"),
        ("eole", {"heads_kv": 3}, "4 heads do not share 3 keys"),
        ("eole", {"heads": 3}, "3 heads do not divide the 16 rows"),
        ("eole", {"head_dim": 8}, "head_dim: 8 is not that of"),
        ("eole", {"heads": "four"}, "are not positive whole numbers"),
        ("eole", {"decoder": {"layers": 3}}, "the options say 3 layers of the decoder"),
        ("eole", {"decoder": {"LM_type": "prefix"}}, "decoder.LM_type: 'prefix' is not supported"),
        ("eole", {"encoder": {"layers": 2}}, "config.json describes an encoder"),
        ("opennmt-py", {"max_relative_positions": 4}, "0.self_attn.relative_positions_embeddings.weight is missing"),
        ("opennmt-py", {"max_relative_positions": -3}, "-3 (unknown positions) is not supported"),
        ("opennmt-py", {"position_encoding": True}, "max_relative_positions is -1 and position_encoding True"),
        ("opennmt-py", {"encoder_type": "rnn"}, "encoder_type: 'rnn' is not supported"),
        ("opennmt-py", {"model_task": "seq2seq"}, "model_task: 'seq2seq' is not supported"),
        ("opennmt-py", {"shared_layer_norm": True}, "shared_layer_norm: True is not supported"),
        ("opennmt-py", {"pos_ffn_activation_fn": "gated-gelu"}, "pos_ffn_activation_fn: 'gated-gelu' is not supported"),
        ("opennmt-py", {"multiquery": True}, "multiquery is set and num_kv is 2"),
        ("opennmt-py", {"copy_attn": True}, "copy_attn: True is not supported"),
        ("opennmt-py", {"rotary_dim": 6}, "rotary_dim 6 is more than head_dim 4"),
    ],
)
def test_what_is_not_computed_is_refused_before_anything_is_written(framework, changes, found, tmp_path):
    source = write(tmp_path, framework, "rotary", **changes)
    with pytest.raises(DialectError) as error:
        api.convert(source, tmp_path / "out", "ctranslate2")
    assert found in str(error.value)
    assert not (tmp_path / "out").exists()


def test_everything_that_is_wrong_is_said_at_once(tmp_path):
    source = write(tmp_path, "eole", "table", layer_norm="gemma-rms", query_norm=True, mlp_activation_fn="silu")
    with pytest.raises(DialectError) as error:
        api.convert(source, tmp_path / "out", "ctranslate2")
    for what in ("gemma-rms", "query_norm", "mlp_activation_fn"):
        assert what in str(error.value)


@pytest.mark.parametrize("which", ["tgt_emb.pe.pe", "generator.weight", "decoder.transformer_layers.0.self_attn"])
def test_missing_arrays_are_named(which, tmp_path, monkeypatch):
    whole = models.eole_arrays("table")
    fewer = {n: a for n, a in whole.items() if not n.startswith(which) or n.endswith("linear_keys.bias")}
    monkeypatch.setattr(models, "eole_arrays", lambda kind: fewer)
    with pytest.raises(DialectError, match=which):
        api.convert(write(tmp_path, "eole", "table"), tmp_path / "out", "ctranslate2")
