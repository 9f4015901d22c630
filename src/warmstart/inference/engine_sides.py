"""Models in CTranslate2's engine on the CPU: 8-bit products where weights are 8-bit, else float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from warmstart.bundle.model import Model
from warmstart.errors import VocabularyError
from warmstart.formats.ctranslate2 import CTranslate2Checkpoint
from warmstart.formats.detect import open_checkpoint
from warmstart.inference.engine import Engine
from warmstart.inference.sides import Answer, Given, Ids, first_rows, limit_of, log_softmax, narrowest, positions_of
from warmstart.models.model_bin import Upgraded
from warmstart.models.model_bin_beside import SINCE

_POSITIONS = "/position_encodings/encodings"
_BATCH: dict[str, Any] = {"max_input_length": 0, "max_batch_size": 32}


class EngineSide:
    """What all of the engine's models have in common. ``roles``: whose vocabularies the model has."""

    engine = "ctranslate2"
    roles: tuple[str, ...] = ("text",)

    def __init__(self, model: Model) -> None:
        self.path = model.path if model.path.is_dir() else model.path.parent
        checkpoint = open_checkpoint(model.path)
        assert isinstance(checkpoint, CTranslate2Checkpoint)
        self.entries = checkpoint.entries
        self.quantization = narrowest({entry.dtype for entry in checkpoint.entries.values() if entry.shape})
        self.compute_type = "int8_float32" if self.quantization == "int8" else "float32"
        tables = [e.shape[0] for n, e in checkpoint.entries.items() if n.endswith(_POSITIONS) and e.shape]
        known = positions_of(model)
        self.positions = min([*tables, *([] if known is None else [known])], default=None)
        there = checkpoint.metadata.get("vocabularies", {})
        keys = [next((k for k in (role, "shared", "vocabulary") if k in there), None) for role in self.roles]
        if None in keys:
            raise VocabularyError("the model's vocabularies are not beside it", where=model.path)
        self.tokens: tuple[Sequence[str], ...] = tuple(checkpoint.vocabulary(str(key)) for key in keys)
        kept = list(model.vocabularies.values())
        self.text = (kept[0], kept[-1]) if kept else None
        upgraded = Upgraded(checkpoint)
        self.said = {**upgraded.moved, **(checkpoint.metadata.get("config") or {})}

    def made(self, kind: str) -> Engine:
        """The engine's object of a kind, with the model loaded."""
        return Engine(self.path, kind, self.compute_type)


class TranslatorSide(EngineSide):
    """Encoder-decoders, T5 among them. A source ends with the end token, whether the engine adds it or not."""

    roles = ("source", "target")

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self._rows = first_rows(self.tokens[1])
        eos = self.said.get("eos_token", "</s>")
        adds = self.said.get("add_source_eos", self.said.get("with_source_eos", False))
        self._end = [] if adds or eos not in self.tokens[0] else [eos]
        since = model.checkpoint.metadata["binary_version"] >= SINCE
        given = self.said.get("user_decoder_start_tokens") or (since and self.said.get("decoder_start_token") is None)
        self._start = [eos] if given else []  # where the user says how outputs begin
        self._translator = self.made("Translator")

    def _sources(self, ids: Sequence[Ids]) -> list[list[str]]:
        return [[*(self.tokens[0][i] for i in line), *self._end] for line in ids]

    def greedy(self, sources: Sequence[Ids]) -> list[tuple[int, ...]]:
        if not sources:
            return []
        limits = [limit_of(source, self.positions) for source in sources]
        results = self._translator.ask(
            "translate_batch", "hypotheses", source=self._sources(sources),
            target_prefix=[self._start for _ in sources] if self._start else None,
            beam_size=1, disable_unk=True, min_decoding_length=0, max_decoding_length=max(limits), **_BATCH,
        )  # fmt: skip
        found = [tuple(self._rows[token] for token in hypotheses[0]) for hypotheses in results]
        return [ids[:limit] for ids, limit in zip(found, limits, strict=True)]

    def log_probs(self, sources: Sequence[Ids], targets: Sequence[Ids]) -> list[list[float]]:
        spelt = [[*self._start, *(self.tokens[1][i] for i in line)] for line in targets]
        return self._translator.ask("score_batch", "log_probs", source=self._sources(sources), target=spelt, **_BATCH)


class GeneratorSide(EngineSide):
    """Decoder-only models. Of those that attend within a window, the engine takes no more than it at once, and no
    texts of different lengths together."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        window = getattr(model.config, "sliding_window", None)
        self._batch = {**_BATCH, "max_batch_size": _BATCH["max_batch_size"] if window is None else 1}
        if window is not None:
            self.positions = min(window, self.positions or window)
        self.tokens = (self.tokens[0], self.tokens[0])
        eos = self.said.get("eos_token", "</s>")
        self._end = [eos] if eos in self.tokens[0] else []
        self._generator = self.made("Generator")

    def _spelt(self, ids: Ids) -> list[str]:
        return [self.tokens[0][i] for i in ids]

    def greedy(self, sources: Sequence[Ids]) -> list[tuple[int, ...]]:
        return [self._continued(source, limit_of(source, self.positions)) for source in sources]

    def _continued(self, source: Ids, most: int) -> tuple[int, ...]:
        """One by one: in a batch, what a prompt has more than the shortest would count as output."""
        found = self._generator.ask(
            "generate_batch", "sequences_ids", start_tokens=[self._spelt(source)], max_length=most, sampling_topk=1,
            include_prompt_in_result=False, end_token=self._end,
        )  # fmt: skip
        return tuple(found[0][0])

    def log_probs(self, sources: Sequence[Ids], targets: Sequence[Ids]) -> list[list[float]]:
        pairs = list(zip(sources, targets, strict=True))
        whole = [[*self._spelt(source), *self._spelt(target), *self._end] for source, target in pairs]
        results = self._generator.ask("score_batch", "log_probs", tokens=whole, **self._batch)
        return [found[len(source) - 1 :] for found, (source, _) in zip(results, pairs, strict=True)]


class EncoderSide(EngineSide):
    """Encoder-only models: the last layer's states and, where there is one, the pooler's."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self._encoder = self.made("Encoder")
        self._pooled = "pooler_dense/weight" in self.entries

    def answers(self, given: Given) -> dict[str, Answer]:
        fields = {"states": "last_hidden_state"} | ({"pooled": "pooler_output"} if self._pooled else {})
        found = self._encoder.compute("forward_batch", *fields.values(), inputs=[given["ids"].tolist()])
        return {name: Answer(batch[0], "states") for name, batch in zip(fields, found, strict=True)}


class WhisperSide(EngineSide):
    """Whisper: the encoder's states, and what follows each token of a text."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self._whisper = self.made("models.Whisper")

    def answers(self, given: Given) -> dict[str, Answer]:
        features, prompt = given["features"], given["prompt"].tolist()
        (logits,) = self._whisper.compute(
            "generate", "logits", given=features, prompts=[prompt], beam_size=1, return_logits_vocab=True,
            suppress_blank=False, suppress_tokens=[],
            max_length=2 * (len(prompt) - 1),  # of which the engine generates half
        )  # fmt: skip
        (states,) = self._whisper.compute("encode", given=features)
        logits_SV = logits.reshape(logits.shape[1], -1)[: len(prompt) - 1, : len(self.tokens[0])]
        return {"encoder": Answer(states[0], "states"), "tokens": log_softmax(logits_SV)}


class Wav2Vec2Side(EngineSide):
    """wav2vec 2.0 and wav2vec2-BERT: CTC's log-probabilities, or states where the model has no such outputs."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        bert = model.checkpoint.metadata["specification"] == "Wav2Vec2BertSpec"
        self._model = self.made("models.Wav2Vec2Bert" if bert else "models.Wav2Vec2")
        self._head = "encoder/lm_head/weight" in self.entries

    def answers(self, given: Given) -> dict[str, Answer]:
        sound = given["samples"][None] if "samples" in given else given["features"]
        (found,) = self._model.compute("encode", given=sound)
        return {"letters": log_softmax(found[0])} if self._head else {"states": Answer(found[0], "states")}


ENGINE_SIDES = {
    "transformer": TranslatorSide, "t5": TranslatorSide, "decoder": GeneratorSide, "encoder": EncoderSide,
    "whisper": WhisperSide, "wav2vec2": Wav2Vec2Side, "wav2vec2_bert": Wav2Vec2Side,
}  # fmt: skip
