"""A transformers directory computed by transformers itself, where it is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from warmstart.bundle.model import Model
from warmstart.errors import DialectError
from warmstart.inference.sides import Ids, limit_of
from warmstart.vocabularies.vocabulary import Vocabulary


class TransformersSide:
    """An encoder-decoder of transformers, in float32. Sources end with the end token, as Marian's and BART's fellows
    take them; outputs begin with ``decoder_start_token_id``."""

    engine = "transformers"

    def __init__(self, transformers: Any, folder: Path, model: Model) -> None:
        config = transformers.AutoConfig.from_pretrained(folder)
        if not config.is_encoder_decoder:
            raise DialectError(
                "answers are compared for models that make a text of a text",
                where=folder,
                found=config.model_type,
                todo="compare the arrays instead: `warmstart diff`",
            )
        self._model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
        kind = str(getattr(config, "dtype", None)).removeprefix("torch.")
        self.quantization = kind if kind in ("float16", "bfloat16") else "float32"
        self.text: tuple[Vocabulary, Vocabulary] | None = None
        if model.vocabularies:
            self.text = (model.vocabularies["source"], model.vocabularies["target"])
            self.tokens: tuple[Sequence[str], Sequence[str]] = (self.text[0].tokens, self.text[1].tokens)
        else:
            table = transformers.AutoTokenizer.from_pretrained(folder).get_vocab()
            tokens = [token for token, _ in sorted(table.items(), key=lambda item: item[1])]
            self.tokens = (tokens, tokens)
        self._eos, self._start, self._unk = config.eos_token_id, config.decoder_start_token_id, None
        if "<unk>" in self.tokens[1]:
            self._unk = self.tokens[1].index("<unk>")
        self._pad = config.pad_token_id

    def _logits(self, source: Ids, before: Ids) -> torch.Tensor:
        with torch.inference_mode():
            out = self._model(
                input_ids=torch.tensor([[*source, self._eos]]),
                decoder_input_ids=torch.tensor([[self._start, *before]]),
            )
        scores: torch.Tensor = torch.log_softmax(out.logits[0].float(), -1)
        return scores

    def greedy(self, sources: Sequence[Ids]) -> list[tuple[int, ...]]:
        return [self._greedy(source) for source in sources]

    def _greedy(self, source: Ids) -> tuple[int, ...]:
        found: list[int] = []
        while len(found) < limit_of(source):
            scores = self._logits(source, found)[-1]
            for never in (self._unk, self._pad):
                if never is not None and never != self._eos:
                    scores[never] = -torch.inf
            best = int(scores.argmax())
            if best == self._eos:
                break
            found.append(best)
        return tuple(found)

    def log_probs(self, sources: Sequence[Ids], targets: Sequence[Ids]) -> list[list[float]]:
        out = []
        for source, target in zip(sources, targets, strict=True):
            scores = self._logits(source, target)
            out.append([float(scores[k, token]) for k, token in enumerate([*target, self._eos])])
        return out
