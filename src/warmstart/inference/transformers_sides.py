"""Directories of transformers computed by transformers itself, where it is installed, in float32.

Of its outputs those are taken that a token stands for: MarianMT's last row, ``<pad>``, is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from warmstart.bundle.model import Model
from warmstart.errors import DialectError
from warmstart.inference.sides import Answer, Given, Ids, first_rows, limit_of, log_softmax, narrowest, positions_of


class TransformersSide:
    """What all of them have in common. ``loader`` is the class that opens the directory."""

    engine = "transformers"
    loader = "AutoModel"

    def __init__(self, folder: Path, model: Model) -> None:
        self.library = transformers = import_module("transformers")
        model.require()
        self.source = model.source
        with self.own_errors():
            self.config = transformers.AutoConfig.from_pretrained(folder)
        self.quantization = narrowest({entry.dtype for entry in model.checkpoint.entries.values()})
        self.positions = positions_of(model)
        kept = list(model.vocabularies.values())
        self.text = (kept[0], kept[-1])
        self.tokens: tuple[Sequence[str], ...] = tuple(vocabulary.tokens for vocabulary in kept)
        name = self.class_of(model)
        with self.own_errors():
            self.model = getattr(transformers, name).from_pretrained(folder, dtype=torch.float32).eval()

    def class_of(self, model: Model) -> str:
        return self.loader

    @contextmanager
    def own_errors(self) -> Iterator[None]:
        """What the library raises, whatever it is, is said of the model that it was asked for.

        Raises ``DialectError``.
        """
        try:
            yield
        except Exception as error:
            raise DialectError(
                "transformers itself cannot open or compute this model",
                where=self.source,
                found=f"{type(error).__name__}: {error}",
                todo="compare two exports of it (ctranslate2), or try another version of transformers",
            ) from error

    def run(self, **inputs: Any) -> Any:
        """The model's outputs for batches of one; arrays become tensors."""
        tensors = {name: torch.as_tensor(value)[None] for name, value in inputs.items()}
        with torch.inference_mode(), self.own_errors():
            return self.model(**tensors)

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [T, V] of the rows that have tokens."""
        found: torch.Tensor = torch.log_softmax(logits[0, :, : len(self.tokens[-1])].float(), -1)
        return found

    def generate(self, source: Ids, most: int, never: Sequence[int], **more: Any) -> tuple[int, ...]:
        """The greedy output with what the decoder was fed first, and its end token."""
        ids = torch.tensor([source])
        with self.own_errors():
            settings = self.library.GenerationConfig(
                max_new_tokens=most, do_sample=False, num_beams=1, suppress_tokens=list(never) or None,
                eos_token_id=self.eos, pad_token_id=0 if self.eos is None else self.eos, **more,
            )  # fmt: skip
            self.model.generation_config = settings  # whatever the directory says of beams and penalties
            out = self.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        return tuple(out[0].tolist())

    @property
    def eos(self) -> int | None:
        """The row of the end token."""
        row = self.text[1].eos_id
        return None if row < 0 else row

    def before_end(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        return ids[: ids.index(self.eos)] if self.eos in ids else ids


class SequenceToSequenceSide(TransformersSide):
    """Encoder-decoders. Sources end with the end token; outputs begin with ``decoder_start_token_id``, or the end
    token where the user says how they begin."""

    loader = "AutoModelForSeq2SeqLM"

    def __init__(self, folder: Path, model: Model) -> None:
        super().__init__(folder, model)
        if len(self.tokens) == 1:
            self.tokens = (self.tokens[0], self.tokens[0])
        given = getattr(model.config, "decoder_start", None) == "given"
        start = self.eos if given else self.config.decoder_start_token_id
        self._start = self.eos if start is None else start
        rows, outputs = len(self.tokens[1]), self.model.get_output_embeddings().weight.shape[0]
        self._never = [*([] if self.text[1].unk_id is None else [self.text[1].unk_id]), *range(rows, outputs)]

    def _source(self, source: Ids) -> list[int]:
        return [*source, self.text[0].eos_id]

    def greedy(self, sources: Sequence[Ids]) -> list[tuple[int, ...]]:
        found, rows = [], first_rows(self.tokens[1])
        for source in sources:
            most = limit_of(source, self.positions)
            whole = self.generate(self._source(source), most, self._never, decoder_start_token_id=self._start)
            found.append(tuple(rows[self.tokens[1][row]] for row in self.before_end(whole[1:])))
        return found

    def log_probs(self, sources: Sequence[Ids], targets: Sequence[Ids]) -> list[list[float]]:
        found = []
        for source, target in zip(sources, targets, strict=True):
            out = self.run(input_ids=self._source(source), decoder_input_ids=[self._start, *target])
            scores, ends = self.scores(out.logits), [] if self.eos is None else [self.eos]
            found.append([float(scores[k, token]) for k, token in enumerate([*target, *ends])])
        return found


class DecoderSide(TransformersSide):
    """Decoder-only models."""

    loader = "AutoModelForCausalLM"

    def __init__(self, folder: Path, model: Model) -> None:
        super().__init__(folder, model)
        self.tokens = (self.tokens[0], self.tokens[0])

    def greedy(self, sources: Sequence[Ids]) -> list[tuple[int, ...]]:
        found = []
        for source in sources:
            whole = self.generate(source, limit_of(source, self.positions), ())
            found.append(self.before_end(whole[len(source) :]))
        return found

    def log_probs(self, sources: Sequence[Ids], targets: Sequence[Ids]) -> list[list[float]]:
        found, ends = [], [] if self.eos is None else [self.eos]
        for source, target in zip(sources, targets, strict=True):
            scores = self.scores(self.run(input_ids=[*source, *target]).logits)[len(source) - 1 :]
            found.append([float(scores[k, token]) for k, token in enumerate([*target, *ends])])
        return found


class EncoderSide(TransformersSide):
    """Encoder-only models: the last layer's states and, where the model brings one, the pooler's."""

    def answers(self, given: Given) -> dict[str, Answer]:
        out = self.run(input_ids=given["ids"])
        answers = {"states": Answer(out.last_hidden_state[0].numpy(), "states")}
        if self.pooled:
            answers["pooled"] = Answer(out.pooler_output[0].numpy(), "states")
        return answers

    def class_of(self, model: Model) -> str:
        self.pooled = bool(getattr(model.config, "pooler", False))
        return self.loader


class WhisperSide(TransformersSide):
    """Whisper: the encoder's states, and what follows each token of a text."""

    loader = "WhisperForConditionalGeneration"

    def answers(self, given: Given) -> dict[str, Answer]:
        out = self.run(input_features=given["features"], decoder_input_ids=given["prompt"])
        return {
            "encoder": Answer(out.encoder_last_hidden_state[0].numpy(), "states"),
            "tokens": log_softmax(out.logits[0, 1:, : len(self.tokens[0])].numpy()),
        }


class Wav2Vec2Side(TransformersSide):
    """wav2vec 2.0 and wav2vec2-BERT: CTC's log-probabilities, or states where the model has no such outputs."""

    def class_of(self, model: Model) -> str:
        self._head = bool(getattr(model.config, "head", False))
        bert = "Bert" if model.family is not None and model.family.name == "wav2vec2_bert" else ""
        return f"Wav2Vec2{bert}{'ForCTC' if self._head else 'Model'}"

    def answers(self, given: Given) -> dict[str, Answer]:
        out = self.run(**{"input_values" if n == "samples" else "input_features": v for n, v in given.items()})
        if self._head:
            return {"letters": log_softmax(out.logits[0].numpy())}
        return {"states": Answer(out.last_hidden_state[0].numpy(), "states")}


TRANSFORMERS_SIDES = {
    "transformer": SequenceToSequenceSide, "t5": SequenceToSequenceSide, "decoder": DecoderSide,
    "encoder": EncoderSide, "whisper": WhisperSide, "wav2vec2": Wav2Vec2Side, "wav2vec2_bert": Wav2Vec2Side,
}  # fmt: skip
