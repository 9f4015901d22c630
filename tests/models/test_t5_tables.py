"""T5's tables: arrays return from every dialect bit for bit, configurations from what lies beside them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from rule_tables import InMemory, assert_returns, written
from warmstart.errors import DialectError
from warmstart.formats.checkpoint import SlotEntry
from warmstart.models.registry import dialect, family
from warmstart.models.t5.config import T5Config
from warmstart.models.t5.family import DIALECTS
from warmstart.models.t5.gin import read_gin
from warmstart.spec.mapping import expand, read_through

T5 = family("t5")
SIZES = {
    "vocab_size": 30,
    "d_model": 8,
    "d_kv": 3,
    "num_heads": 2,
    "d_ff": 12,
    "encoder_layers": 3,
    "decoder_layers": 2,
}
CONFIGS = [
    T5Config(**SIZES, gated=gated, tied_output=tied, scale_outputs=scaled, position_bias=bias)
    for gated, (tied, scaled), bias in itertools.product(
        (False, True), ((True, True), (True, False), (False, False), (False, True)), ("shared", "per_layer")
    )
]
RNG = np.random.default_rng(5)


@pytest.mark.parametrize(
    "config", CONFIGS, ids=lambda c: f"{c.gated}-{c.tied_output}-{c.scale_outputs}-{c.position_bias}"
)
@pytest.mark.parametrize("spoken", DIALECTS, ids=lambda d: d.name)
def test_tables_return(config, spoken):
    assert_returns(T5, config, spoken)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("spoken", DIALECTS, ids=lambda d: d.name)
def test_tables_return_with_random_shapes(seed, spoken):
    rng = np.random.default_rng(seed)
    sizes = {key: int(rng.integers(1, 9)) for key in SIZES}
    flags = {key: bool(rng.integers(2)) for key in ("gated", "tied_output", "scale_outputs")}
    config = T5Config(**sizes, **flags, position_bias=("shared", "per_layer")[rng.integers(2)])
    assert_returns(T5, config, spoken)


def test_parameters_of_published_models():
    """Sizes computed from T5X's gin files (reference/t5x.md, 3.4)."""

    def count(**options: object) -> int:
        shapes = {p.storage: p.size for p in T5.parameters(T5Config(**options))}
        return sum(shapes.values())

    small = {"d_model": 512, "d_kv": 64, "vocab_size": 32128}
    assert count(**small, num_heads=8, d_ff=2048, encoder_layers=6, decoder_layers=6) == 60_506_624
    newer = {"gated": True, "tied_output": False, "scale_outputs": False, "activation": "gelu_tanh"}
    v11 = {**small, **newer, "num_heads": 6, "d_ff": 1024, "encoder_layers": 8, "decoder_layers": 8}
    assert count(**v11) == 76_961_152
    assert len(T5.parameters(T5Config(**v11))) == 190
    assert count(**{**v11, "vocab_size": 250112}) == 300_176_768
    byt5 = {**newer, "vocab_size": 384, "d_model": 1472, "d_ff": 3584, "d_kv": 64, "num_heads": 6}
    assert count(**byt5, encoder_layers=12, decoder_layers=4) == 299_637_760


def test_layers_are_stacked_along_the_second_axis_and_heads_are_apart():
    config = CONFIGS[-1]
    arrays = {p.storage: RNG.normal(size=p.shape).astype("f4") for p in T5.parameters(config)}
    scanned = written(T5, config, dialect(T5, "t5x-scanned"), arrays)
    query = scanned["target/encoder/encoder/attention/query/kernel"]
    assert query.shape == (8, 3, 2, 3)  # width, layers, heads, width of a head
    first = arrays["encoder.layers.1.self_attention.query.weight"]
    assert (query[:, 1].reshape(8, 6) == first.T).all()
    out = scanned["target/decoder/decoder/encoder_decoder_attention/out/kernel"]
    assert out.shape == (2, 2, 3, 8)  # heads, layers, width of a head, width
    assert (out[:, 1].reshape(6, 8) == arrays["decoder.layers.1.cross_attention.output.weight"].T).all()
    bias = scanned["target/encoder/encoder/relpos_bias/rel_embedding"]
    assert (bias[:, 2] == arrays["encoder.layers.2.self_attention.position_bias.weight"].T).all()
    assert scanned["target/decoder/decoder/pre_mlp_layer_norm/scale"].shape == (8, 2)


@pytest.mark.parametrize("name", ["t5x", "t5x-scanned", "t5x-split", "t5x-scanned-joined", "mesh-tensorflow"])
@pytest.mark.parametrize("tied", [False, True])
def test_shapes_say_the_configuration(name, tied):
    spoken = dialect(T5, name)
    config = T5Config(**SIZES, gated=True, activation="gelu_tanh", tied_output=tied, scale_outputs=tied,
                      position_bias="per_layer")  # fmt: skip
    arrays = {p.storage: RNG.normal(size=p.shape).astype("f4") for p in T5.parameters(config)}
    there = InMemory(written(T5, config, spoken, arrays))
    there.format = "tensorflow" if name == "mesh-tensorflow" else "t5x"
    assert [d.name for d in DIALECTS if d.recognise(there)] == [name]
    assert spoken.read_config(there) == config


KERNELS = {
    "t5x": ("target/encoder/layers_0/attention/query/kernel", 2),
    "mesh-tensorflow": ("encoder/block_000/layer_000/SelfAttention/q", 2),
    "t5x-scanned-joined": ("target/encoder/encoder/attention/query/kernel", 3),
    "t5x-scanned": ("target/encoder/encoder/attention/query/kernel", 4),
}
FOLLOWS = {
    "t5x": {0: 1, 1: 0},
    "mesh-tensorflow": {0: 1, 1: 0},
    "t5x-scanned-joined": {0: 1, 2: 0},  # axis 1 is the layers'
    "t5x-scanned": {},  # no mean has a place once heads are joined
}


@pytest.mark.parametrize("name", KERNELS)
def test_slots_of_adafactor_follow_where_their_axis_does(name):
    """A mean over axis 0 of a kernel [in, out] is one over axis 1 of a weight [out, in]."""
    config = CONFIGS[0]
    arrays = {p.storage: RNG.normal(size=p.shape).astype("f4") for p in T5.parameters(config)}
    kernel, rank = KERNELS[name]
    canonical = "encoder.layers.0.self_attention.query.weight"
    followed = {}
    for axis in range(rank):
        there = InMemory(written(T5, config, dialect(T5, name), arrays))
        mean = there.read(kernel).mean(axis)
        there.slots = {(kernel, "v_row"): SlotEntry(kernel, "v_row", mean.shape, "float32", axis)}
        there.read_slot = lambda parameter, slot, mean=mean: mean
        reading = read_through(there, expand(dialect(T5, name).rules(config)))
        for (slot, over), source in reading.slot_axes(canonical).items():
            assert (slot, source) == ("v", ("v_row", axis))
            assert np.allclose(reading.read_slot(canonical, "v_row"), arrays[canonical].mean(over))
            followed[axis] = over
        assert (axis in followed) != bool(reading.lost_slots(canonical))
    assert followed == FOLLOWS[name]


def test_what_google_does_not_compute_is_refused_at_once():
    config = T5Config(**SIZES, activation="gelu_erf", max_distance=64, tied_output=False, layer_norm_epsilon=1e-5)
    for name in ("t5x", "mesh-tensorflow"):
        with pytest.raises(DialectError) as error:
            dialect(T5, name).files(config, {}, None)  # type: ignore[arg-type]
        text = str(error.value)
        assert all(key in text for key in ("activation", "max_distance", "scale_outputs", "layer_norm_epsilon"))


def test_the_native_engine_does_not_compute_t5_yet():
    with pytest.raises(DialectError, match="can be converted, but not run or trained"):
        T5.build(CONFIGS[0])


def test_gin_files_say_what_shapes_cannot(tmp_path):
    path = tmp_path / "config.gin"
    path.write_text(
        "from t5x.examples.t5 import network\nRATE = 0.25\n"
        "network.T5Config.dropout_rate = %RATE\n"
        "network.T5Config.mlp_activations = (\n    'swish',\n    'linear')\n"
        "train/network.T5Config.emb_dim = \\\n    8\n"
        "network.T5Config.dtype = @jnp.bfloat16\nnetwork.T5Config.odd = 1 +\n"
    )
    assert read_gin(path) == {
        "RATE": 0.25, "T5Config.dropout_rate": 0.25, "T5Config.mlp_activations": ("swish", "linear"),
        "T5Config.emb_dim": 8, "T5Config.odd": "1 +",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("mlp_activations = ('swish', 'linear')", None),
        ("mlp_activations = ('mish', 'linear')", "('mish', 'linear') are not supported"),
        ("mlp_activations = ('relu',)", "('relu',) are not supported"),
        ("emb_dim = 9", "emb_dim is 9, but the arrays say 8"),
        ("num_heads = 4", "num_heads is 4, but the arrays say 2"),
        ("relu_gate = True", "relu_gate: True is not an option that is known here"),
    ],
)
def test_what_gin_says_fits_the_arrays_or_is_refused(text, found, tmp_path):
    config = CONFIGS[-1].model_copy(update={"scale_outputs": False, "activation": "swish"})
    arrays = {p.storage: RNG.normal(size=p.shape).astype("f4") for p in T5.parameters(config)}
    there = InMemory(written(T5, config, dialect(T5, "t5x"), arrays))
    there.path, there.format = tmp_path / "checkpoint", "t5x"
    (tmp_path / "config.gin").write_text(f"network.T5Config.{text}\n")
    if found is None:
        assert dialect(T5, "t5x").read_config(there) == config
    else:
        with pytest.raises(DialectError) as error:
            dialect(T5, "t5x").read_config(there)
        assert found in str(error.value)
