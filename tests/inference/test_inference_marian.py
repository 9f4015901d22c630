"""Outputs and scores of Marian itself: module, search and scoring against three of its models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from warmstart.bundle.model import open_model
from warmstart.export.convert import convert_model
from warmstart.inference.score import score_ids
from warmstart.inference.scorer import TransformerScorer
from warmstart.inference.search import Hypothesis, SearchConfig, translate_ids
from warmstart.inference.translate import CTranslate2Model
from warmstart.models.transformer.config import TransformerConfig
from warmstart.models.transformer.module import Transformer

ATTENTION = {"query": "q", "key": "k", "value": "v", "output": "o"}
BASE = {"d_model": 96, "num_heads": 4, "d_ff": 384, "encoder_layers": 2, "decoder_layers": 2}


def marian(path: Path, **options: object) -> Transformer:
    """The model of a Marian .npz, by a name map that is this test's own."""
    with np.load(path) as archive:
        arrays = {name: torch.from_numpy(archive[name]) for name in archive.files if not name.startswith("special")}
    joint = arrays.get("Wemb")
    tables = {
        "encoder.embedding.weight": arrays.get("encoder_Wemb", joint),
        "decoder.embedding.weight": arrays.get("decoder_Wemb", joint),
    }
    tables["decoder.output.weight"] = arrays.get("decoder_ff_logit_out_Wt", tables["decoder.embedding.weight"])
    tables["decoder.output.bias"] = arrays["decoder_ff_logit_out_b"][0]
    sizes = {
        "source_vocab_size": len(tables["encoder.embedding.weight"]),
        "target_vocab_size": len(tables["decoder.embedding.weight"]),
    }
    with torch.device("meta"):
        model = Transformer(TransformerConfig.model_validate(BASE | sizes | options))
    suffix = "_pre" if model.config.norm == "pre" else ""

    def array(name: str) -> torch.Tensor:
        if name in tables:
            return tables[name]
        side, *inner, part, kind = name.split(".")
        if not inner and part == "norm":
            return arrays[f"{side}_top_ln_{'scale' if kind == 'weight' else 'bias'}"][0]
        layer = f"{side}_l{int(inner[1]) + 1}"
        if part.endswith("_norm"):
            stem = {"self_attention_norm": "self_Wo", "cross_attention_norm": "context_Wo", "ffn_norm": "ffn_ffn"}[part]
            return arrays[f"{layer}_{stem}_ln_{'scale' if kind == 'weight' else 'bias'}{suffix}"][0]
        block = {"self_attention": "self", "cross_attention": "context", "ffn": "ffn"}[inner[2]]
        letter = ATTENTION.get(part) or {"up": "1", "down": "2"}[part]
        value = arrays[f"{layer}_{block}_{'W' if kind == 'weight' else 'b'}{letter}"]
        return value.T.contiguous() if kind == "weight" else value[0]

    model.load_state_dict({name: array(name) for name in model.state_dict()}, assign=True)
    return model


def ids(vocabulary: dict[str, int], text: str) -> list[list[int]]:
    return [[vocabulary.get(token, 1) for token in line.split()] + [0] for line in text.splitlines()]


class Model:
    """A fixture's model with its vocabularies and source."""

    def __init__(self, folder: Path, source: str, target: str, **options: object) -> None:
        self.folder = folder
        self.network = marian(folder / "model.npz", **options)
        self.source_ids = yaml.safe_load((folder / f"vocab.{source}.yml").read_text("utf-8"))
        self.target_ids = yaml.safe_load((folder / f"vocab.{target}.yml").read_text("utf-8"))
        self.tokens = {row: str(token) for token, row in self.target_ids.items()}
        self.source_ids = {str(token): row for token, row in self.source_ids.items()}
        self.sources = ids(self.source_ids, self.lines(f"test.{source}"))

    def lines(self, name: str) -> str:
        return (self.folder / name).read_text("utf-8")

    def translate(self, **settings: object) -> list[list[Hypothesis]]:
        config = SearchConfig.model_validate(settings)
        return translate_ids([TransformerScorer(self.network)], self.sources, config)

    def text(self, hypothesis: Hypothesis) -> str:
        return " ".join(self.tokens[row] for row in hypothesis.ids)


@pytest.fixture(scope="module")
def translit(fixtures: Path) -> Model:
    folder = fixtures / "fixtures/marian-ar-en-translit"
    return Model(folder, "ar", "en", activation="swish", tied_embeddings="target")


@pytest.fixture(scope="module")
def names(fixtures: Path) -> Model:
    return Model(fixtures / "fixtures/marian-en-ru-names", "en", "ru", activation="swish")


def test_greedy_of_all_1590_transliterations_is_marians(translit: Model) -> None:
    outputs = [translit.text(nbest[0]) for nbest in translit.translate()]
    assert len(outputs) == 1590
    assert outputs == translit.lines("test.greedy.out").splitlines()


def test_beam_of_four_of_all_1590_transliterations_is_marians(translit: Model) -> None:
    """The fixture does not say with which ``--normalize`` its file was made, and its decoder.yml (beam 12,
    normalize 0) is not it: 1,523 lines agree at 0 and 1,541 at 1. All agree at 0.6, at beam 4 as at 6 and 12,
    and fewer at 0.55 (1,587) and 0.65 (1,585). So the 0.6 was found from the file, not known beforehand; where
    Marian's settings are on record is the names fixture below."""
    outputs = [translit.text(nbest[0]) for nbest in translit.translate(beam_size=4, normalize=0.6)]
    assert outputs == translit.lines("test.beam4.out").splitlines()


def test_greedy_of_500_names_is_marians_with_its_scores(names: Model) -> None:
    outputs = [nbest[0] for nbest in names.translate()]
    assert [names.text(output) for output in outputs] == names.lines("expected/greedy.out").splitlines()
    for output, line in zip(outputs, names.lines("expected/greedy.scores").splitlines(), strict=True):
        scores = line.split("WordScores= ")[1].split(" |||")[0].split()
        assert output.token_log_probs == pytest.approx([float(score) for score in scores], abs=1e-4)
        assert output.log_prob == pytest.approx(float(line.split("F0= ")[1].split()[0]), abs=2e-4)


def test_beam_of_four_without_normalisation_is_marians(names: Model) -> None:
    outputs = [names.text(nbest[0]) for nbest in names.translate(beam_size=4)]
    assert outputs == names.lines("expected/beam4.out").splitlines()


def test_nbest_lists_are_marians_to_the_last_entry(names: Model) -> None:
    found = names.translate(beam_size=4, nbest=4, normalize=0.6)
    expected: list[list[tuple[str, float]]] = [[] for _ in found]
    for line in names.lines("expected/beam4.norm0.6.nbest").splitlines():
        number, text, _, _, score = line.split(" |||")
        expected[int(number)].append((text.strip(), float(score)))
    for ours, theirs in zip(found, expected, strict=True):
        assert [names.text(hypothesis) for hypothesis in ours] == [text for text, _ in theirs]
        assert [hypothesis.score for hypothesis in ours] == pytest.approx([score for _, score in theirs], abs=1e-4)


def assert_scores(scores: list[list[float]], lines: list[str]) -> None:
    assert len(scores) == len(lines)
    for found, line in zip(scores, lines, strict=True):
        assert found == pytest.approx([float(score) for score in line.split("WordScores= ")[1].split()], abs=1e-4)


def test_log_probabilities_of_500_references_are_marians(names: Model) -> None:
    scores = score_ids(names.network, names.sources, ids(names.target_ids, names.lines("test.ru")))
    assert_scores(scores, names.lines("expected/ref.logprob").splitlines())


def test_an_ensemble_adds_log_probabilities(names: Model) -> None:
    scorer, config = TransformerScorer(names.network), SearchConfig(beam_size=3, nbest=3)
    sources = names.sources[:50]
    one = translate_ids([scorer], sources, config)
    two = translate_ids([scorer, scorer], sources, config)
    for single, double in zip(one, two, strict=True):
        assert [h.ids for h in single] == [h.ids for h in double]
        assert [2 * h.score for h in single] == pytest.approx([h.score for h in double], abs=1e-5)


def test_what_else_is_in_a_batch_changes_no_output(names: Model) -> None:
    scorer, config = TransformerScorer(names.network), SearchConfig(beam_size=4, nbest=4, normalize=0.6)
    sources = names.sources[:40]
    together = translate_ids([scorer], sources, config, batch_tokens=100_000)
    alone = [translate_ids([scorer], [source], config)[0] for source in sources]
    for a, b in zip(together, alone, strict=True):
        assert [h.ids for h in a] == [h.ids for h in b]
        assert [h.score for h in a] == pytest.approx([h.score for h in b], abs=1e-5)


class SentencePieceModel:
    """The pre-norm model; its right answers are those of ``marian score`` (see the fixture's README)."""

    def __init__(self, folder: Path) -> None:
        import sentencepiece

        self.folder = folder
        self.processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "vocab.spm"))
        self.options = {"norm": "pre", "tied_embeddings": "all"}
        self.network = marian(folder / "model.npz", **self.options)
        self.sources = self.encode("test.en")

    def lines(self, name: str) -> list[str]:
        return (self.folder / name).read_text("utf-8").splitlines()

    def encode(self, name: str) -> list[list[int]]:
        return [[*self.processor.encode(line), 0] for line in self.lines(name)]


@pytest.fixture(scope="module")
def captions(fixtures: Path) -> SentencePieceModel:
    return SentencePieceModel(fixtures / "fixtures/marian-en-de-spm")


@pytest.mark.parametrize("name", ["beam4.norm1", "greedy.consistent"])
def test_prenorm_log_probabilities_are_marians(captions: SentencePieceModel, name: str) -> None:
    targets = captions.encode(f"expected/{name}.out")
    scores = score_ids(captions.network, captions.sources, targets)
    assert_scores(scores, captions.lines(f"expected/{name}.logprob"))


def test_prenorm_greedy_follows_the_scored_model(captions: SentencePieceModel) -> None:
    outputs = translate_ids([TransformerScorer(captions.network)], captions.sources)
    texts = [captions.processor.decode(list(nbest[0].ids)) for nbest in outputs]
    assert texts == captions.lines("expected/greedy.consistent.out")


def test_a_model_tied_everywhere_decodes_the_same_when_exported(captions: SentencePieceModel, tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2")
    convert_model(open_model(captions.folder), tmp_path / "model", "ctranslate2")
    exported = CTranslate2Model(tmp_path / "model").translate(captions.lines("test.en"), SearchConfig())
    texts = [best[0].text for best in exported]
    assert sum(a == b for a, b in zip(texts, captions.lines("expected/greedy.consistent.out"), strict=True)) >= 98


def test_unnormalised_keys_are_another_model(captions: SentencePieceModel) -> None:
    old = marian(captions.folder / "model.npz", **captions.options, normalize_keys=False)
    targets = captions.encode("expected/beam4.norm1.out")[:5]
    new_scores = score_ids(captions.network, captions.sources[:5], targets)
    old_scores = score_ids(old, captions.sources[:5], targets)
    assert all(max(np.abs(np.subtract(a, b))) > 0.1 for a, b in zip(new_scores, old_scores, strict=True))
