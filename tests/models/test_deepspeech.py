"""DeepSpeech computes what Coqui STT computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from warmstart.models.deepspeech.config import DeepSpeechConfig
from warmstart.models.deepspeech.family import DeepSpeechFamily
from warmstart.models.deepspeech.module import DeepSpeech

FAMILY = DeepSpeechFamily()
SMALL = {"vocab_size": 7, "n_hidden": 6, "n_input": 5, "n_context": 2}

CONFIGS = (DeepSpeechConfig(**SMALL), DeepSpeechConfig(**SMALL, layer_norm=True))


def random_model(**changes: Any) -> DeepSpeech:
    torch.manual_seed(3)
    model = DeepSpeech(DeepSpeechConfig(**{**SMALL, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.5, 0.5)
    return model.eval()


@pytest.mark.parametrize("config", CONFIGS, ids=["plain", "layer_norm"])
def test_the_module_has_the_parameters_that_the_family_declares(config: DeepSpeechConfig) -> None:
    with torch.device("meta"):
        model = FAMILY.build(config)
    found = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert found == {p.name: p.shape for p in FAMILY.parameters(config)}
    assert list(found) == list(model.state_dict())


def reference(model: DeepSpeech, features: np.ndarray) -> np.ndarray:
    """The formulas of Coqui's report, written out in numpy for one utterance [T, F]."""
    c, arrays = model.config, {n: p.detach().double().numpy() for n, p in model.named_parameters()}
    padded = np.pad(features.astype(np.float64), ((c.n_context, c.n_context), (0, 0)))
    x = np.stack([padded[t : t + c.window].ravel() for t in range(len(features))])

    def dense(name: str, x: np.ndarray) -> np.ndarray:
        y = np.clip(x @ arrays[f"{name}.weight"].T + arrays[f"{name}.bias"], 0.0, c.relu_clip)
        if c.layer_norm:
            y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-12)
            y = y * arrays[f"{name}.norm.weight"] + arrays[f"{name}.norm.bias"]
        return y

    for name in ("layer_1", "layer_2", "layer_3"):
        x = dense(name, x)
    h, cell, outputs = np.zeros(c.n_hidden), np.zeros(c.n_hidden), []
    for frame in x:
        gates = arrays["lstm.weight"] @ np.concatenate([frame, h]) + arrays["lstm.bias"]
        i, f, g, o = np.split(gates, 4)
        cell = cell / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h = np.tanh(cell) / (1 + np.exp(-o))
        outputs.append(h)
    return dense("layer_5", np.stack(outputs)) @ arrays["layer_6.weight"].T + arrays["layer_6.bias"]


@pytest.mark.parametrize("changes", [{}, {"layer_norm": True}, {"n_context": 0}, {"relu_clip": 0.3}], ids=str)
def test_logits_are_those_of_the_formulas(changes: dict[str, Any]) -> None:
    model = random_model(**changes)
    rng = np.random.default_rng(1)
    lengths = [9, 1, 4]
    clips = [rng.normal(size=(length, 5)).astype(np.float32) for length in lengths]
    features = torch.full((3, 9, 5), float("nan"))  # what stands behind the end does not matter
    for row, clip in enumerate(clips):
        features[row, : len(clip)] = torch.from_numpy(clip)
    with torch.inference_mode():
        logits = model(features, torch.tensor(lengths))
    for row, clip in enumerate(clips):
        np.testing.assert_allclose(logits[row, : len(clip)], reference(model, clip), atol=2e-5)


def test_behind_the_end_the_lstm_says_zero() -> None:
    model = random_model()
    with torch.inference_mode():
        logits = model(torch.ones(2, 6, 5), torch.tensor([6, 3]))
        silence = model.layer_6(model.layer_5.activate(torch.zeros(1, 6), None))
    torch.testing.assert_close(logits[1, 3:], silence.expand(3, -1))


@pytest.mark.parametrize("size", [1, 2, 5, 11])
def test_steps_give_the_logits_of_the_whole(size: int) -> None:
    model = random_model()
    features = torch.randn(2, 11, 5)
    windows = torch.nn.functional.pad(features, (0, 0, 2, 2)).unfold(1, 5, 1).transpose(2, 3)
    state, steps = model.initial_state(2), []
    with torch.inference_mode():
        for start in range(0, 11, size):
            logits, state = model.step(windows[:, start : start + size], state)
            steps.append(logits)
        torch.testing.assert_close(torch.cat(steps, 1), model(features, torch.tensor([11, 11])))


def test_training_drops_where_coqui_drops_and_gives_gradients_everywhere() -> None:
    model = random_model(dropout_1=0.0, dropout_2=0.0, dropout_3=0.0, dropout_5=0.0)
    features, lengths = torch.randn(2, 6, 5), torch.tensor([6, 4])
    plain = model(features, lengths)
    torch.testing.assert_close(model.train()(features, lengths), plain)
    plain[0].sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())
    for rates in ({"dropout_1": 0.5}, {"dropout_2": 0.5}, {"dropout_3": 0.5}, {"dropout_5": 0.5}):
        dropped = random_model(**{f"dropout_{n}": 0.0 for n in (1, 2, 3, 5)} | rates).train()
        assert not torch.allclose(dropped(features, lengths), plain)


def test_gradients_are_those_of_finite_differences() -> None:
    model = random_model().double()
    features, lengths = torch.randn(2, 4, 5, dtype=torch.float64), torch.tensor([4, 2])
    weights = torch.randn(2, 4, 7, dtype=torch.float64)

    def loss() -> torch.Tensor:
        return (model(features, lengths)[0] * weights[0]).sum()

    loss().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        flat = parameter.data.view(-1)
        place = int(parameter.grad.abs().argmax())
        before = float(flat[place])
        values = []
        for step in (1e-3, -1e-3):
            flat[place] = before + step
            values.append(float(loss().detach()))
        flat[place] = before
        assert float(parameter.grad.view(-1)[place]) == pytest.approx((values[0] - values[1]) / 2e-3, rel=2e-2)


def test_windows_that_are_no_whole_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="win_ms 32 and step_ms 20: not a whole number of samples at 22030 Hz"):
        DeepSpeechConfig(vocab_size=29, sample_rate=22_030)
    for rate in (8_000, 16_000, 48_000):
        DeepSpeechConfig(vocab_size=29, sample_rate=rate)
