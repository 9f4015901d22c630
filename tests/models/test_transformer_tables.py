"""The Transformer's rule tables return what they wrote."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from rule_tables import assert_returns
from warmstart.checked import Invalid
from warmstart.errors import DialectError
from warmstart.models.transformer.config import TransformerConfig
from warmstart.models.transformer.family import TransformerFamily
from warmstart.testing import FamilyContract

FAMILY = TransformerFamily()
RELATIVE = {"positions": "relative", "max_relative_positions": 2}
SIZES = {"source_vocab_size": 5, "target_vocab_size": 5, "d_model": 4, "num_heads": 2, "d_ff": 3}


class TestContract(FamilyContract):
    family = FAMILY
    configs = (
        TransformerConfig(**SIZES),
        TransformerConfig(**SIZES, norm="pre", tied_embeddings="all", decoder_d_ff=2, output_bias=False),
        TransformerConfig(**SIZES, positions="learned", max_positions=7, layernorm_embedding=True),
        # OpenNMT-py and EOLE: a table of positions, gates, no biases; and vectors of distances with features
        TransformerConfig(
            **SIZES, norm="pre", positions="learned", max_positions=7, gated=True, attention_bias=False, ffn_bias=False
        ),
        TransformerConfig(
            **SIZES, **RELATIVE, norm="pre", relative_tables="one", scale_embeddings=False, features=((3, 1), (2, 2))
        ),
        TransformerConfig(
            **SIZES, norm="pre", positions="learned", max_positions=7, features=((3, 4),), feature_merge="sum"
        ),
        TransformerConfig(
            **SIZES, **RELATIVE, norm="pre", relative_tables="one", relative_scaled=False, scale_embeddings=False
        ),
        TransformerConfig(
            **SIZES, norm="pre", positions="learned", max_positions=7, rms_norm=True, attention_bias=False
        ),
        # inputs in parallel: tables of their own, one for all inputs, one for everything
        TransformerConfig(**SIZES, sinusoids="from_one", features=((3, 1), (2, 2))),
        TransformerConfig(**SIZES, sinusoids="from_one", features=((5, 4),), feature_merge="sum", tied_features=True),
        TransformerConfig(
            **SIZES, sinusoids="from_one", features=((5, 4),), feature_merge="sum", tied_features=True,
            tied_embeddings="all",
        ),
        # OpenNMT-tf: positions are computed, learned, or vectors of distances
        TransformerConfig(**SIZES, sinusoids="from_one", tied_embeddings="inputs", attention_bias=False),
        TransformerConfig(**SIZES, **RELATIVE, norm="pre"),
        TransformerConfig(
            **SIZES, positions="learned", positions_per_side=True, max_positions=7, decoder_max_positions=6
        ),
        # fairseq, with and without special tokens
        TransformerConfig(**SIZES, sinusoids="fairseq", max_positions=8, output_bias=False, tied_embeddings="target"),
        TransformerConfig(
            **SIZES, positions="learned", positions_per_side=True, max_positions=7, output_bias=False, norm="pre",
            tied_embeddings="all", layernorm_embedding=True,
        ),
    )  # fmt: skip

    def test_every_flag_of_a_framework_is_tried(self) -> None:
        """Each dialect can say at least one of the configurations, and none says what it does not know."""
        said = {
            dialect.name: [k for k, config in enumerate(self.configs) if _says(dialect, config)]
            for dialect in self.family.dialects()
        }
        assert all(said.values()), said
        new = {k for k, c in enumerate(self.configs) if c.gated or c.positions == "relative" or c.features}
        rms = {k for k, c in enumerate(self.configs) if c.rms_norm}
        knows = {name for name, found in said.items() if new & set(found)}
        assert knows == {"opennmt-py", "eole", "opennmt-tf", "ctranslate2"}
        assert {name for name, found in said.items() if rms & set(found)} == {"opennmt-py", "eole", "ctranslate2"}


WITHOUT_RMS = [d for d in FAMILY.dialects() if d.name not in ("opennmt-py", "eole", "ctranslate2")]


@pytest.mark.parametrize("dialect", WITHOUT_RMS, ids=lambda d: d.name)
def test_rms_norms_are_refused_by_name(dialect):
    with pytest.raises(DialectError, match=r"rms_norm: True|not RMS norms"):
        dialect.rules(TransformerConfig(**SIZES, rms_norm=True))


def _says(dialect, config):
    try:
        dialect.rules(config)
    except DialectError:
        return False
    return True


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
        "gated": st.just(False),
    }
)


# What a framework fixes of the configuration; where it knows several kinds of models, each of them.
_START = {"normalize_keys": True, "layer_norm_epsilon": 1e-5}
_TABLES = {"positions": "learned", "max_positions": 5, "positions_per_side": True}
_SINES = {"positions": "sinusoidal", "positions_per_side": False}
_RELATIVE = {
    "positions": "relative", "max_relative_positions": 2, "max_positions": None, "layernorm_embedding": False,
}  # fmt: skip
_UNSCALED = {**_RELATIVE, "relative_tables": "one", "relative_scaled": False}
_FEATURES = {"features": ((3, 1), (2, 1)), "d_model": 6, "tied_embeddings": "target"}
_HF = {**_START, "decoder_start": "eos", "tied_embeddings": "all"}
_SHARED = {
    "features": ((5, 4), (5, 4)), "feature_merge": "sum", "tied_features": True, "source_vocab_size": 5, "d_model": 4,
    "tied_embeddings": "all", "target_vocab_size": 5,
}  # fmt: skip
FIXED = {
    "marian": [{"sinusoids": "marian", "activation": "swish"}],
    "transformers": [
        {**_START, "norm": "post", "layernorm_embedding": False, **_SINES, "sinusoids": "transformers"},
        {**_START, "norm": "post", "layernorm_embedding": False, **_TABLES},
        {**_HF, "norm": "post", "layernorm_embedding": True, **_TABLES},
        {**_HF, "norm": "pre", "layernorm_embedding": True, **_TABLES, "tied_embeddings": "inputs"},
        {**_HF, "norm": "pre", "layernorm_embedding": False, **_SINES, "sinusoids": "transformers"},
        {
            **_HF, "norm": "pre", "layernorm_embedding": False, **_SINES, "sinusoids": "fairseq",
            "output_bias": False,
        },
    ],
    "opennmt-py": [
        {**_START, **_TABLES, "positions_per_side": False, "norm": "pre", "layernorm_embedding": False,
         "attention_bias": bias, "ffn_bias": not bias, "gated": bias, "rms_norm": bias}
        for bias in (True, False)
    ] + [
        {**_START, **_RELATIVE, "relative_tables": "one", "scale_embeddings": False, "norm": "pre"},
        {**_START, **_TABLES, "positions_per_side": False, "norm": "pre", "layernorm_embedding": False, **_FEATURES},
    ],
    "eole": [
        {**_START, **_TABLES, "positions_per_side": False, "norm": "pre", "layernorm_embedding": False,
         "attention_bias": bias, "ffn_bias": not bias, "gated": not bias, "rms_norm": not bias}
        for bias in (True, False)
    ] + [{**_START, **_UNSCALED, "scale_embeddings": False, "norm": "pre"}],
    "opennmt-tf": [
        {**_START, **_TABLES, "layernorm_embedding": False, "attention_bias": False},
        {**_START, "positions": "sinusoidal", "sinusoids": "from_one", "layernorm_embedding": False},
        {**_START, "positions": "sinusoidal", "sinusoids": "from_one", "layernorm_embedding": False, **_FEATURES},
        {**_START, "positions": "sinusoidal", "sinusoids": "from_one", "layernorm_embedding": False, **_SHARED},
        {**_START, **_RELATIVE},
    ],
    "fairseq": [
        {**_START, "output_bias": False, **_TABLES, "decoder_max_positions": 4},
        {**_START, "output_bias": False, **_SINES, "sinusoids": "fairseq"},
    ],
    "ctranslate2": [
        {**_START},
        {**_START, **_TABLES, "decoder_max_positions": 6, "attention_bias": False},
        {**_START, **_SINES, "sinusoids": "fairseq", "decoder_max_positions": 6, "ffn_bias": False},
        {**_START, **_SINES, "gated": True},
        {**_START, "rms_norm": True},
        {**_START, **_RELATIVE, "relative_tables": "one"},
        {**_START, **_UNSCALED},
        {**_START, **_RELATIVE, **_FEATURES, "gated": True},
        {**_START, **_SHARED},
    ],
}  # fmt: skip


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(configs, st.data())
@pytest.mark.parametrize("dialect", FAMILY.dialects(), ids=lambda d: d.name)
def test_tables_return(dialect, values, data):
    fixed = data.draw(st.sampled_from(FIXED[dialect.name.removesuffix("-plain")]))
    if fixed.get("tied_embeddings") in ("all", "inputs"):
        values = {**values, "target_vocab_size": values["source_vocab_size"]}
    try:
        config = TransformerConfig(**{**values, **fixed})
        dialect.rules(config)
    except (Invalid, DialectError):
        assume(False)
    assert_returns(FAMILY, config, dialect)
