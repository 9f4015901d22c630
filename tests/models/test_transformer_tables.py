"""The Transformer's rule tables return what they wrote."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rule_tables import assert_returns
from warmstart.errors import DialectError
from warmstart.models.transformer.config import TransformerConfig
from warmstart.models.transformer.family import TransformerFamily

FAMILY = TransformerFamily()

configs = st.fixed_dictionaries(
    {
        "source_vocab_size": st.integers(1, 7),
        "target_vocab_size": st.integers(1, 7),
        "d_model": st.sampled_from([2, 4, 6]),
        "num_heads": st.sampled_from([1, 2]),
        "d_ff": st.integers(1, 5),
        "decoder_d_ff": st.sampled_from([None, 3]),
        "encoder_layers": st.integers(1, 12),
        "decoder_layers": st.integers(1, 3),
        "norm": st.sampled_from(["pre", "post"]),
        "normalize_keys": st.booleans(),
        "tied_embeddings": st.sampled_from(["none", "target", "all"]),
        "output_bias": st.booleans(),
        "positions": st.sampled_from(["sinusoidal", "learned"]),
        "max_positions": st.sampled_from([None, 5]),
        "layernorm_embedding": st.booleans(),
        "sinusoids": st.sampled_from(["marian", "transformers", "from_one"]),
        "activation": st.sampled_from(["relu", "swish", "gelu", "gelu_tanh", "gelu_erf"]),
    }
)


@settings(max_examples=40, deadline=None)
@given(configs)
@pytest.mark.parametrize("dialect", FAMILY.dialects(), ids=lambda d: d.name)
def test_tables_return(dialect, values):
    try:
        config = TransformerConfig(**values)
        dialect.rules(config)
    except (ValidationError, DialectError):
        assume(False)
    assert_returns(FAMILY, config, dialect)
