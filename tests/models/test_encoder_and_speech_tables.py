"""Rule tables of encoders and speech models return what they wrote, whatever the shapes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pretrained_models import small_engine
from rule_tables import assert_returns
from warmstart.checked import Invalid
from warmstart.models.deepspeech.family import DeepSpeechFamily
from warmstart.models.encoder.family import EncoderFamily
from warmstart.models.registry import FAMILIES
from warmstart.models.wav2vec2.family import Wav2Vec2Family
from warmstart.models.wav2vec2_bert.family import Wav2Vec2BertFamily
from warmstart.models.whisper.family import WhisperFamily

small, layers, width = st.integers(1, 5), st.integers(1, 11), st.sampled_from([2, 4, 6])
SHAPES: dict[Any, dict[str, st.SearchStrategy[Any]]] = {
    EncoderFamily(): {
        "architecture": st.sampled_from(["bert", "distilbert", "roberta", "xlm-roberta", "camembert"]),
        "vocab_size": small, "d_model": width, "num_heads": st.sampled_from([1, 2]), "num_layers": layers,
        "d_ff": small, "max_positions": small, "position_offset": st.sampled_from([0, 2]),
        "token_types": st.integers(0, 2), "pooler": st.booleans(),
    },
    WhisperFamily(): {
        "vocab_size": small, "num_mel_bins": small, "d_model": width, "encoder_layers": layers,
        "encoder_heads": st.sampled_from([1, 2]), "encoder_d_ff": small, "decoder_layers": layers,
        "decoder_heads": st.sampled_from([1, 2]), "decoder_d_ff": small, "max_source_positions": small,
        "max_target_positions": small, "tied_output": st.booleans(),
    },
    Wav2Vec2Family(): {
        "vocab_size": small, "d_model": st.sampled_from([16, 32]), "num_heads": st.sampled_from([1, 2]),
        "num_layers": layers, "d_ff": small, "conv_dim": st.tuples(small, small, small),
        "conv_kernel": st.tuples(small, small, small), "head": st.booleans(),
    },
    Wav2Vec2BertFamily(): {
        "vocab_size": small, "input_size": small, "d_model": width, "num_heads": st.sampled_from([1, 2]),
        "num_layers": layers, "d_ff": small, "conv_kernel": small, "left_positions": st.integers(0, 3),
        "right_positions": st.integers(0, 3), "num_adapter_layers": small, "adapter_kernel": small,
        "head": st.booleans(),
    },
    DeepSpeechFamily(): {
        "vocab_size": st.integers(2, 6), "n_hidden": small, "layer_norm": st.booleans(),
    },
}  # fmt: skip
CASES = [(family, dialect) for family in SHAPES for dialect in family.dialects()]


@settings(max_examples=15, deadline=None)
@given(st.data())
@pytest.mark.parametrize(("family", "dialect"), CASES, ids=[f"{f.name}-{d.name}" for f, d in CASES])
def test_tables_return(family, dialect, data):
    try:
        config = family.config_type(**{key: data.draw(values, key) for key, values in SHAPES[family].items()})
    except Invalid:
        assume(False)
    lossy = {"positions.scale", "positions.direction"} if family.name == "wav2vec2" else set()
    with pytest.MonkeyPatch.context() as patch:
        small_engine(patch)
        assert_returns(family, config, dialect, lossy=frozenset(lossy if dialect.name == "ctranslate2" else ()))


def test_every_family_is_tried_with_random_shapes():
    """Here, or in ``test_transformer_tables.py``, ``test_t5_tables.py`` and ``test_spec_decoder_tables.py``."""
    assert {family.name for family in FAMILIES} == {family.name for family in SHAPES} | {"transformer", "t5", "decoder"}
