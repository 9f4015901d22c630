"""The family as others meet it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from warmstart.checked import Config
from warmstart.errors import DialectError, Problem
from warmstart.lean import dataclass
from warmstart.models.family import Dialect, Parameter
from warmstart.models.lazily import Later, Lazily
from warmstart.models.transformer.config import TransformerConfig
from warmstart.models.transformer.parameters import STAGES, parameters

_BEHAVIOUR = (
    *("num_heads", "activation", "norm", "normalize_keys", "positions", "sinusoids", "scale_embeddings"),
    *(
        "max_relative_positions",
        "relative_scaled",
        "feature_merge",
        "positions_per_side",
        "layernorm_embedding",
        "decoder_start",
    ),
    *("source_bos", "source_eos", "rms_norm"),
)
_COMPUTED = {
    "positions_per_side": False, "layernorm_embedding": False, "decoder_start": "zero",
    "source_bos": False, "source_eos": True, "attention_bias": True, "ffn_bias": True, "gated": False,
    "max_relative_positions": None, "features": (),
}  # fmt: skip

_HERE = "warmstart.models.transformer.dialects"
DIALECTS: Lazily[Dialect] = Lazily(
    Later("marian", f"{_HERE}.marian", "MarianDialect", ("marian",)),
    Later("transformers", f"{_HERE}.transformers", "TransformersDialect"),
    Later("opennmt-py", f"{_HERE}.opennmt_py", "OpenNMTPyDialect", ("torch",)),
    Later("fairseq", f"{_HERE}.fairseq", "FairseqDialect", ("torch",)),
    Later(
        "fairseq-plain", f"{_HERE}.fairseq", "FairseqDialect", ("torch",),
        {"name": "fairseq-plain", "special_tokens": False},
    ),
    Later("opennmt-tf", f"{_HERE}.opennmt_tf", "OpenNMTTFDialect", ("tensorflow",)),
    Later("eole", f"{_HERE}.eole", "EoleDialect", ("safetensors",)),
    Later("ctranslate2", f"{_HERE}.ctranslate2", "CTranslate2Dialect", ("ctranslate2",)),
)  # fmt: skip


@dataclass(frozen=True)
class TransformerFamily:
    """Encoder-decoder Transformer. Its stages have names but no order: encoder and decoder are two roads."""

    name: str = "transformer"
    # 2: of other frameworks: sinusoids, positions_per_side, decoder_start, *_bias, ...; 3: gated, relative, features;
    # 4: relative_scaled, tied_features; 5: rms_norm
    revision: int = 5
    config_type: type[Config] = TransformerConfig
    stages: tuple[str, ...] = STAGES
    order: tuple[str, ...] | None = None

    @property
    def vocabulary_sizes(self) -> Mapping[str, str]:
        return {"source": "source_vocab_size", "target": "target_vocab_size"}

    def parameters(self, config: TransformerConfig) -> tuple[Parameter, ...]:
        return parameters(config)

    def behaviour(self, config: TransformerConfig) -> dict[str, object]:
        return {key: getattr(config, key) for key in _BEHAVIOUR}

    def dialects(self) -> Sequence[Dialect]:
        return DIALECTS

    def require_computed(self, config: TransformerConfig) -> None:
        """
        Raises:
            DialectError: :meth:`build` has no module for ``config``; every reason is named.
        """
        problems = [
            Problem(f"{key}: {getattr(config, key)!r} is converted, but not computed here", expected=repr(value))
            for key, value in _COMPUTED.items()
            if getattr(config, key) != value
        ]
        if problems:
            raise DialectError(
                "this model can be converted, but not run or trained by the native engine",
                problems=problems,
                todo="convert it to the framework that it is for (`warmstart convert ... --to ctranslate2`)",
            )

    def build(self, config: TransformerConfig) -> Any:
        self.require_computed(config)
        from warmstart.models.transformer.module import Transformer

        return Transformer(config)
