"""Every table of the decoder-only family returns every bit, whatever the sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_spec_ops import Memory

from warmstart.errors import DialectError
from warmstart.models.decoder.config import DecoderConfig
from warmstart.models.decoder.dialects import (
    CTranslate2Dialect,
    EoleDialect,
    OpenAIDialect,
    OpenNMTPyDialect,
    OpenNMTTFDialect,
    TransformersDialect,
)
from warmstart.models.decoder.dialects.architectures import ARCHITECTURES
from warmstart.models.decoder.dialects.transformers import read
from warmstart.models.decoder.family import DecoderFamily
from warmstart.models.family import Dialect
from warmstart.spec.mapping import expand, read_through, write_through


@st.composite
def configs(draw, architecture):
    heads = draw(st.sampled_from([2, 4]))
    shared = draw(st.sampled_from([1, 2])) if architecture.name not in ("gpt2", "gptj", "codegen", "mpt", "opt") else 1
    d_model = heads * 2 * draw(st.integers(1, 3)) * (2 if architecture.name == "codegen" else 1)
    kv = 1 if architecture.name == "gpt_bigcode" else heads // shared
    head_dim = d_model // heads
    default = read(architecture, {"model_type": architecture.name})
    partly = default.rotary_dim is not None and default.rotary_dim < default.head_dim
    layers = draw(st.integers(1, 3))
    d_ff = 4 * d_model if architecture.name in ("bloom", "mpt") else draw(st.integers(1, 9))
    changes = {
        "vocab_size": draw(st.integers(2, 9)), "d_model": d_model, "num_heads": heads, "num_kv_heads": kv,
        "head_dim": head_dim, "num_layers": layers, "d_ff": d_ff, "max_positions": 7,
        "rotary_dim": None if default.rotary_dim is None else 2 if partly else head_dim, "original": {},
        "tied_output": draw(st.booleans()), "sliding_layers": None, "parallel": default.parallel,
    }  # fmt: skip
    return DecoderConfig.model_validate({**default.model_dump(), **changes})


PACKS = [architecture for architecture in ARCHITECTURES if architecture.packs]


@pytest.mark.parametrize("architecture", PACKS, ids=lambda a: a.name)
@settings(max_examples=8, deadline=None)
@given(data=st.data(), layout=st.sampled_from(["gemm", "gemv"]), width=st.integers(1, 2), layers=st.integers(1, 3))
def test_tables_of_packed_weights_return_every_bit(architecture, data, layout, width, layers):
    config = data.draw(configs(architecture))
    changes = {
        "num_heads": 2, "num_kv_heads": 2, "d_model": 64 * width, "head_dim": 32 * width, "d_ff": 64,
        "num_layers": layers, "packing": {"layout": layout, "group_size": 32},
        "rotary_dim": config.rotary_dim and 32 * width,
    }  # fmt: skip
    packed = DecoderConfig.model_validate({**config.model_dump(), **changes})
    round_trip(CTranslate2Dialect(), packed)
    round_trip(TransformersDialect(), packed)


def round_trip(dialect: Dialect, config: DecoderConfig) -> None:
    links = [link for link in expand(dialect.rules(config)) if link.canonical]
    random = np.random.default_rng(0)
    parameters = DecoderFamily().parameters(config)
    storages = {p.name: p.storage for p in parameters}
    arrays = {p.storage: random.standard_normal(p.shape) for p in parameters}
    written = write_through(links, lambda name: arrays[storages[name]], storages)
    reading = read_through(Memory({name: compute() for name, compute in written}), links)
    reading.tie(storages)
    assert not reading.unknown
    for name, expected in arrays.items():
        np.testing.assert_array_equal(reading.read(name), expected, name)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_every_table_returns_every_bit(architecture, data):
    config = data.draw(configs(architecture))
    round_trip(CTranslate2Dialect(), config)
    if architecture.name == "gpt2" and config.tied_output:
        round_trip(OpenAIDialect(), config)
    try:
        rules = TransformersDialect()
        rules.rules(config)
    except DialectError:
        return  # sizes that this architecture does not choose freely
    round_trip(rules, config)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_tables_of_opennmt_tf_return_every_bit(data):
    """Every model that it can express, which is written as ``model.bin``, too."""
    heads, pre = data.draw(st.sampled_from([1, 2, 4])), data.draw(st.booleans())
    width, bias = data.draw(st.integers(1, 3)), data.draw(st.booleans())
    positions = data.draw(st.sampled_from(["learned", "sinusoidal"]))
    config = DecoderConfig(
        vocab_size=data.draw(st.integers(2, 9)), d_model=heads * width, num_layers=data.draw(st.integers(1, 11)),
        num_heads=heads, num_kv_heads=heads, head_dim=width, d_ff=data.draw(st.integers(1, 9)),
        activation=data.draw(st.sampled_from(["relu", "gelu_tanh", "swish"])), norm_place="pre" if pre else "post",
        final_norm=pre, norm_epsilon=1e-3, attention_bias=bias, attention_output_bias=bias,
        ffn_bias=data.draw(st.booleans()), output_bias=data.draw(st.booleans()), tied_output=data.draw(st.booleans()),
        scale_embeddings=True, positions=positions,
        max_positions=data.draw(st.integers(1, 9)) if positions == "learned" else None,
    )  # fmt: skip
    round_trip(OpenNMTTFDialect(), config)
    round_trip(CTranslate2Dialect(), config)


@st.composite
def configs_of_onmt(draw, architecture):
    """What EOLE and OpenNMT-py compute."""
    positions = draw(st.sampled_from(["learned", "rotary", "alibi", "relative"]))
    kv_heads, norm = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from(["layer", "rms"]))
    head_dim = 2 * draw(st.integers(1, 3))
    rotary, relative = positions == "rotary", {}
    if positions == "relative":
        scaled = architecture == "opennmt-py"
        relative = {
            "max_relative_positions": draw(st.integers(1, 3)),
            "relative_tables": "one",
            "relative_scaled": scaled,
        }
    biases = ("attention_bias", "attention_output_bias", "ffn_bias", "output_bias", "gated", "tied_output")
    return DecoderConfig(
        architecture=architecture, vocab_size=draw(st.integers(2, 9)), d_model=4 * head_dim, num_heads=4,
        num_kv_heads=kv_heads, head_dim=head_dim, num_layers=draw(st.integers(1, 3)), d_ff=draw(st.integers(1, 9)),
        norm=norm, norm_bias=norm == "layer", positions=positions, max_positions=7 if positions == "learned" else None,
        rotary_dim=draw(st.sampled_from([2, head_dim])) if rotary else None,
        rotary_pairs=rotary and draw(st.booleans()),
        scale_embeddings=positions == "learned", sliding_window=draw(st.sampled_from([None, 3])),
        **{key: draw(st.booleans()) for key in biases}, **relative,
    )  # fmt: skip


@pytest.mark.parametrize("dialect", [EoleDialect(), OpenNMTPyDialect()], ids=lambda d: d.name)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_tables_of_eole_and_opennmt_py_return_every_bit(dialect, data):
    config = data.draw(configs_of_onmt(dialect.name))
    round_trip(dialect, config)
    round_trip(CTranslate2Dialect(), config)
    if config.positions == "relative":
        two = config.model_copy(update={"relative_tables": "two", "relative_scaled": True})
        round_trip(CTranslate2Dialect(), two)
        with pytest.raises(DialectError, match="relative_tables: 'two' is not what"):
            dialect.rules(two)


@pytest.mark.parametrize("dialect", [EoleDialect(), OpenNMTPyDialect()], ids=lambda d: d.name)
def test_eole_and_opennmt_py_refuse_what_they_do_not_compute(dialect):
    config = read(next(a for a in ARCHITECTURES if a.name == "gemma2"), {"model_type": "gemma2"})
    with pytest.raises(DialectError) as error:
        dialect.rules(config)
    for key in ("norm_place", "norm_offset", "attention_softcap", "scale_embeddings"):
        assert f"{key}: " in str(error.value)


def test_every_dialect_is_tried_with_random_shapes():
    tried = {CTranslate2Dialect, EoleDialect, OpenAIDialect, OpenNMTPyDialect, OpenNMTTFDialect, TransformersDialect}
    assert {type(dialect) for dialect in DecoderFamily().dialects()} == tried
