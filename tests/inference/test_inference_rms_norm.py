"""A model with RMS norms is computed here as CTranslate2's engine computes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from warmstart import api
from warmstart.bundle.layout import storages, write_bundle
from warmstart.bundle.model import open_model
from warmstart.formats.detect import open_checkpoint
from warmstart.models.registry import family
from warmstart.models.transformer.config import TransformerConfig
from warmstart.models.transformer.module import Transformer
from warmstart.vocabularies.characters import CharacterVocabulary

LETTERS = CharacterVocabulary.train(["abcdefghi"])
ROWS = len(LETTERS.tokens)
SIZES = {
    **{"source_vocab_size": ROWS, "target_vocab_size": ROWS, "d_model": 16, "num_heads": 4, "d_ff": 24},
    **{"encoder_layers": 2, "decoder_layers": 2, "activation": "swish", "rms_norm": True},
}
# So small that the norms' epsilon decides what they make of it.
TINY = {"norm": "pre", "positions": "learned", "max_positions": 8, "scale_embeddings": False}
SOURCE, TARGET = [5, 2, 9, 3], [3, 3, 7]


@pytest.fixture
def ctranslate2():
    return pytest.importorskip("ctranslate2")


def written(path: Path, spread: float = 0.3, **options: object) -> tuple[Path, Transformer]:
    torch.manual_seed(2)
    model = Transformer(TransformerConfig.model_validate(SIZES | options)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            small = "embedding" in name or "positions" in name
            parameter.add_(0.3 * torch.randn_like(parameter)).mul_(spread if small else 1.0)
    state, of = model.state_dict(), family("transformer")
    arrays = (state[entry.name].numpy() for entry in storages(of, model.config))
    write_bundle(path, of, model.config, arrays, {"source": LETTERS, "target": LETTERS}, {})
    return path, model


def ours(model: Transformer) -> list[float]:
    target = torch.tensor([[*TARGET, LETTERS.eos_id]])
    with torch.no_grad():
        logits = model(torch.tensor([[*SOURCE, LETTERS.eos_id]]), torch.tensor([len(SOURCE) + 1]), target)
    return logits[0].log_softmax(-1)[torch.arange(target.shape[1]), target[0]].tolist()


def theirs(ctranslate2, path: Path) -> list[float]:
    engine = ctranslate2.Translator(str(path), compute_type="float32", intra_threads=1)
    words = ([[LETTERS.tokens[i] for i in ids]] for ids in (SOURCE, TARGET))
    return engine.score_batch(*words)[0].log_probs


@pytest.mark.parametrize(
    "options",
    [
        {"norm": "pre"},
        {"norm": "post"},
        {"norm": "post", "layer_norm_epsilon": 0.1, "tied_embeddings": "all"},
        *({**TINY, "layer_norm_epsilon": epsilon} for epsilon in (1e-6, 1e-5)),
    ],
    ids=str,
)
def test_the_engine_scores_alike(options, ctranslate2, tmp_path):
    bundle, model = written(tmp_path / "bundle", 1e-3 if "positions" in options else 1.0, **options)
    api.convert(bundle, tmp_path / "ct2", "ctranslate2")
    assert theirs(ctranslate2, tmp_path / "ct2") == pytest.approx(ours(model), abs=2e-5)
    facts = api.verify(bundle, tmp_path / "ct2", count=20)
    assert (facts["same"], facts["engines"], facts["outputs_that_differ"]) == (True, ["warmstart", "ctranslate2"], 0)
    assert facts["largest"] < 1e-4


def test_without_an_epsilon_it_is_the_engines(ctranslate2, tmp_path):
    """1e-6 where norms have no bias; 1e-5 would be another model."""
    bundle, model = written(tmp_path / "bundle", 1e-3, **TINY)
    api.convert(bundle, tmp_path / "ct2", "ctranslate2")
    path = tmp_path / "ct2/config.json"
    content = json.loads(path.read_text())
    assert content["layer_norm_epsilon"] == 1e-6
    path.write_text(json.dumps({**content, "layer_norm_epsilon": None}))
    (tmp_path / "ct2/warmstart.json").unlink()
    assert theirs(ctranslate2, tmp_path / "ct2") == pytest.approx(ours(model), abs=2e-5)
    assert open_model(tmp_path / "ct2").config.layer_norm_epsilon == 1e-6
    path.write_text(json.dumps({**content, "layer_norm_epsilon": 1e-5}))
    assert theirs(ctranslate2, tmp_path / "ct2") != pytest.approx(ours(model), abs=1e-2)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_it_returns_from_a_model_bin_bit_for_bit(norm, tmp_path):
    bundle, model = written(tmp_path / "bundle", norm=norm, layer_norm_epsilon=1e-5)
    api.convert(bundle, tmp_path / "ct2", "ctranslate2")
    assert not [name for name in open_checkpoint(tmp_path / "ct2").entries if name.endswith("/beta")]
    (tmp_path / "ct2/warmstart.json").unlink()  # so that model.bin itself must say it
    api.convert(tmp_path / "ct2", tmp_path / "back", "warmstart")
    assert open_model(tmp_path / "back").config == model.config
    api.convert(tmp_path / "back", tmp_path / "again", "ctranslate2")
    for name in ("model.bin", "config.json", "source_vocabulary.json", "target_vocabulary.json"):
        if (tmp_path / "ct2" / name).is_file():
            assert (tmp_path / "ct2" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
