"""The encoder-decoder Transformer computed by our own forward and search."""

from __future__ import annotations

from collections.abc import Sequence

from warmstart.bundle.model import Model
from warmstart.inference.load import load_module
from warmstart.inference.score import score_ids
from warmstart.inference.scorer import TransformerScorer
from warmstart.inference.search import SearchConfig, translate_ids
from warmstart.inference.sides import Ids, limit_of, narrowest, positions_of
from warmstart.inference.translate import require_vocabularies


class NativeSide:
    """Our own forward and search, in float32."""

    engine = "warmstart"

    def __init__(self, model: Model) -> None:
        self.text = require_vocabularies(model)
        self.tokens = (self.text[0].tokens, self.text[1].tokens)
        self._module = load_module(model)
        self.quantization = narrowest({entry.dtype for entry in model.checkpoint.entries.values()})
        self.positions = positions_of(model)

    def _framed(self, sources: Sequence[Ids]) -> list[list[int]]:
        return [[*source, self.text[0].eos_id] for source in sources]

    def greedy(self, sources: Sequence[Ids]) -> list[tuple[int, ...]]:
        target = self.text[1]
        config = SearchConfig(max_length_factor=3)
        scorer = TransformerScorer(self._module)
        found = translate_ids([scorer], self._framed(sources), config, eos_id=target.eos_id, unk_id=target.unk_id)
        return [best[0].ids[: limit_of(s, self.positions)] for best, s in zip(found, sources, strict=True)]

    def log_probs(self, sources: Sequence[Ids], targets: Sequence[Ids]) -> list[list[float]]:
        return score_ids(self._module, self._framed(sources), [[*target, self.text[1].eos_id] for target in targets])
