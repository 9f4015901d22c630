"""Properties of the Transformer module: names, ties, padding, positions, dropout."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from warmstart.models.layers.dropout import Noise
from warmstart.models.transformer import positions
from warmstart.models.transformer.config import TransformerConfig
from warmstart.models.transformer.module import Transformer, sinusoids
from warmstart.models.transformer.parameters import parameters

SMALL = {
    **{"source_vocab_size": 9, "target_vocab_size": 9, "d_model": 8, "num_heads": 2, "d_ff": 12, "decoder_d_ff": 10},
    **{"encoder_layers": 2, "decoder_layers": 3},
}
VARIANTS = [
    {},
    {"norm": "pre", "activation": "swish"},
    {"norm": "pre", "normalize_keys": False, "tied_embeddings": "all"},
    {"tied_embeddings": "target", "output_bias": False, "activation": "gelu"},
    {"positions": "learned", "max_positions": 4, "scale_embeddings": False},
    {"norm": "pre", "rms_norm": True, "activation": "swish"},
    {"rms_norm": True, "layer_norm_epsilon": 1e-2},
]
SOURCE = torch.tensor([[2, 3, 4, 5, 0], [6, 7, 0, 0, 0]])
LENGTHS = torch.tensor([5, 3])
TARGET = torch.tensor([[3, 4, 5, 6, 7, 0], [8, 2, 0, 0, 0, 0]])


def config(**options: object) -> TransformerConfig:
    return TransformerConfig.model_validate(SMALL | options)


def build(**options: object) -> Transformer:
    torch.manual_seed(1)
    return Transformer(config(**options)).eval()


@pytest.mark.parametrize("options", VARIANTS)
def test_names_and_shapes_are_the_familys(options: dict[str, object]) -> None:
    model = build(**options)
    found = {name: tuple(array.shape) for name, array in model.state_dict().items()}
    assert found == {p.name: p.shape for p in parameters(model.config)}
    assert {array.dtype for array in model.state_dict().values()} == {torch.float32}
    assert not list(model.buffers())


@pytest.mark.parametrize("options", VARIANTS)
def test_padding_has_no_influence(options: dict[str, object]) -> None:
    model = build(**options)
    padded = functional.pad(SOURCE, (0, 4), value=8)
    logits = model(SOURCE, LENGTHS, TARGET)
    torch.testing.assert_close(model(padded, LENGTHS, functional.pad(TARGET, (0, 3)))[:, :6], logits)
    torch.testing.assert_close(model(SOURCE[1:, :3], LENGTHS[1:], TARGET[1:, :3]), logits[1:, :3])


def test_no_position_sees_its_own_or_later_tokens() -> None:
    model = build()
    changed = TARGET.clone()
    changed[:, 3:] = 1
    before, after = model(SOURCE, LENGTHS, TARGET), model(SOURCE, LENGTHS, changed)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert (before[:, 4:] - after[:, 4:]).abs().amax(-1).min() > 1e-3


def test_masked_logits_are_those_of_the_real_positions() -> None:
    model = build()
    mask = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    torch.testing.assert_close(model(SOURCE, LENGTHS, TARGET, mask), model(SOURCE, LENGTHS, TARGET)[mask])


def plainly(model: Transformer, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
    """Logits [B, T, V] by the formulas of the papers, a padded batch all the way, without anything of ours but the
    weights and the table of sinusoids."""
    c, state = model.config, dict(model.named_parameters(remove_duplicate=False))
    scale = math.sqrt(c.d_model) if c.scale_embeddings else 1.0
    activation = {"relu": torch.relu, "swish": functional.silu, "gelu": lambda x: x * torch.sigmoid(1.702 * x)}

    def linear(x: Tensor, name: str) -> Tensor:
        return functional.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(x: Tensor, name: str) -> Tensor:
        if c.rms_norm:
            mean_square = x.square().mean(-1, keepdim=True)
            return x / (mean_square + c.layer_norm_epsilon).sqrt() * state[f"{name}.weight"]
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return functional.layer_norm(x, (c.d_model,), weight, bias, c.layer_norm_epsilon)

    def attend(x: Tensor, seen: Tensor, mask: Tensor, name: str) -> Tensor:
        q, k, v = (
            linear(y, f"{name}.{part}").unflatten(-1, (c.num_heads, -1)).transpose(1, 2)
            for y, part in ((x, "query"), (seen, "key"), (seen, "value"))
        )
        scores = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).masked_fill(~mask, -math.inf)
        return linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), f"{name}.output")

    def block(x: Tensor, name: str, function: Callable[[Tensor], Tensor]) -> Tensor:
        if c.norm == "pre":
            return x + function(norm(x, f"{name}_norm"))
        return norm(x + function(x), f"{name}_norm")

    def layer(x: Tensor, name: str, mask: Tensor, memory: Tensor | None = None) -> Tensor:
        def own(h: Tensor) -> Tensor:
            return attend(h, h if c.normalize_keys else x, mask, f"{name}.self_attention")

        y = block(x, f"{name}.self_attention", own)
        if memory is not None:
            y = block(y, f"{name}.cross_attention", lambda h: attend(h, memory, real, f"{name}.cross_attention"))
        return block(
            y,
            f"{name}.ffn",
            lambda h: linear(activation[c.activation](linear(h, f"{name}.ffn.up")), f"{name}.ffn.down"),
        )

    def embedded(words: Tensor) -> Tensor:
        places = torch.arange(words.shape[1])
        learned = state.get("positions.weight")
        table = sinusoids(len(places), c.d_model) if learned is None else learned[places.clamp(max=len(learned) - 1)]
        return words * scale + table.to(words.dtype)

    real = (torch.arange(source.shape[1]) < lengths[:, None])[:, None, None]
    x = embedded(state["encoder.embedding.weight"][source])
    for i in range(c.encoder_layers):
        x = layer(x, f"encoder.layers.{i}", real)
    memory = norm(x, "encoder.norm") if c.norm == "pre" else x
    words = functional.pad(state["decoder.embedding.weight"][target[:, :-1]], (0, 0, 1, 0))
    y, t = embedded(words), target.shape[1]
    for i in range(c.decoder_layers):
        y = layer(y, f"decoder.layers.{i}", torch.ones(t, t, dtype=torch.bool).tril(), memory)
    return linear(norm(y, "decoder.norm") if c.norm == "pre" else y, "decoder.output")


@pytest.mark.parametrize("options", VARIANTS)
def test_logits_and_gradients_are_those_of_the_plain_formulas(options: dict[str, object]) -> None:
    model = build(**options, dropout=0.0).double().train()
    mask = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    weights = torch.randn(9, 9, dtype=torch.float64)
    logits, gradients = [], []
    for found in (model(SOURCE, LENGTHS, TARGET, mask), plainly(model, SOURCE, LENGTHS, TARGET)[mask]):
        logits.append(found)
        gradients.append(torch.autograd.grad((found * weights).sum(), list(model.parameters())))
    torch.testing.assert_close(*logits)
    for (name, _), ours, plain in zip(model.named_parameters(), *gradients, strict=True):
        torch.testing.assert_close(ours, plain, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("rms_norm", [False, True])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_bfloat16_is_as_near_as_bfloat16_can_be(norm: str, rms_norm: bool) -> None:
    """Logits are bfloat16, gradients float32 of the parameters' shapes, both within a few units of 2⁻⁸."""
    model = build(norm=norm, rms_norm=rms_norm, dropout=0.0).train()
    wide = TARGET.repeat(40, 1), SOURCE.repeat(40, 1), LENGTHS.repeat(40)  # 480 rows: a round number and more
    exact = model(wide[1], wide[2], wide[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        near = model(wide[1], wide[2], wide[0])
    assert near.dtype == torch.bfloat16
    assert (near - exact).abs().max() < 0.04 * exact.abs().max()
    parameters = list(model.parameters())
    ours = torch.autograd.grad(near.float().square().sum(), parameters)
    plain = torch.autograd.grad(exact.square().sum(), parameters)
    assert {gradient.dtype for gradient in ours} == {torch.float32}
    whole = torch.cat([gradient.flatten() for gradient in plain]).norm()  # that of a key's bias is zero
    for (name, _), a, b in zip(model.named_parameters(), ours, plain, strict=True):
        assert (a - b).norm() < 0.05 * b.norm() + 1e-3 * whole, name


@pytest.mark.parametrize("tied", ["none", "target", "all"])
def test_a_model_filled_from_meta_is_the_model_and_stays_tied(tied: str) -> None:
    model = build(tied_embeddings=tied)
    needed = {p.name for p in parameters(model.config) if p.storage == p.name}
    with torch.device("meta"):
        copy = Transformer(model.config).eval()
    copy.load_state_dict({k: v.clone() for k, v in model.state_dict().items() if k in needed}, assign=True)
    assert {name for name, _ in copy.named_parameters()} == {name for name, _ in model.named_parameters()}
    assert (copy.decoder.output.weight is copy.decoder.embedding.weight) == (tied != "none")
    assert (copy.encoder.embedding.weight is copy.decoder.embedding.weight) == (tied == "all")
    assert not any(parameter.is_meta for parameter in copy.parameters())
    assert torch.equal(copy(SOURCE, LENGTHS, TARGET), model(SOURCE, LENGTHS, TARGET))


def test_a_missing_shared_parameter_is_missed() -> None:
    model = build(tied_embeddings="target")
    arrays = {name: array for name, array in model.state_dict().items() if not name.startswith("decoder.embedding")}
    with pytest.raises(RuntimeError, match=r"decoder\.embedding\.weight"):
        model.load_state_dict(arrays)


def test_sinusoids_are_marians() -> None:
    """Marian's frequencies end at exactly 1/10000 (exponent i/(d/2-1)), and sines and cosines stand in blocks."""
    table = sinusoids(50, 8)
    for p in (0, 1, 7, 49):
        angles = [p * 10000.0 ** (-i / 3) for i in range(4)]
        expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        assert table[p].tolist() == pytest.approx(expected, abs=1e-6)


def test_positions_beyond_the_learned_share_the_last() -> None:
    model = build(positions="learned", max_positions=2)
    x = model._embed(torch.zeros(5, 8), torch.arange(5), None)
    assert model.positions is not None
    torch.testing.assert_close(x, model.positions.weight[[0, 1, 1, 1, 1]])


def test_a_table_first_made_in_inference_serves_training() -> None:
    model = build(dropout=0.1)
    with torch.inference_mode():
        model(SOURCE, LENGTHS, TARGET)
    model.train()
    model(SOURCE, LENGTHS, TARGET).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_gelu_is_marians() -> None:
    x = torch.linspace(-3, 3, 7)
    activation = build(activation="gelu").decoder.layers[0].ffn.activation
    torch.testing.assert_close(activation(x), x / (1 + torch.exp(-1.702 * x)))


@pytest.mark.parametrize("rate", ["dropout", "attention_dropout", "ffn_dropout", "source_dropout", "target_dropout"])
def test_each_dropout_acts_in_training_only(rate: str) -> None:
    rates = {"dropout": 0.0, rate: 0.5}
    model, plain = build(**rates), build(dropout=0.0)
    expected = plain(SOURCE, LENGTHS, TARGET)
    assert torch.equal(model(SOURCE, LENGTHS, TARGET), expected)
    model.train()
    assert not torch.allclose(model(SOURCE, LENGTHS, TARGET), expected, atol=1e-3)
    assert torch.equal(plain.train()(SOURCE, LENGTHS, TARGET), expected)


def test_word_dropout_takes_whole_words() -> None:
    model = build(source_dropout=0.5).train()
    words = model.encoder.embedding(torch.arange(9).repeat(50))  # [450, 8]
    x = model._drop_words(words, 0.5, Noise())
    dropped = (x == 0).all(-1)
    assert torch.equal(dropped, (x == 0).any(-1))
    assert 0.3 < dropped.float().mean() < 0.7
    torch.testing.assert_close(x[~dropped], 2 * words[~dropped])


@pytest.mark.parametrize("formula", ["marian", "transformers", "from_one", "fairseq"])
def test_some_elements_of_sinusoids_are_those_of_all(formula):
    table = positions.sinusoids(300, 64, formula)
    places = [0, 1, 31, 32, 63, 64, 4999, table.size - 1, 17]
    assert positions.some_of_sinusoids(places, 64, formula).tobytes() == table.flat[places].tobytes()
