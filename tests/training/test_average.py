"""The moving average against Marian's and a replay; and the watch over a metric."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from warmstart.errors import TrainingError
from warmstart.training.average import MovingAverage
from warmstart.training.config import Average, Patience, Plateau
from warmstart.training.patience import Watch, plateau_factor


def test_the_average_is_marians() -> None:
    """Three updates of Marian with ``--exponential-smoothing 0.001``; see ``golden/README.md``."""
    with np.load(Path(__file__).parents[1] / "golden/optimizer-steps/marian.npz", allow_pickle=False) as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files if key.startswith("fresh/")}
    model = nn.Module()
    model.register_parameter("w", nn.Parameter(arrays["fresh/0|weights"].clone()))
    average = MovingAverage(model, Average(decay=0.999))
    for n in (1, 2, 3):
        model.w.data.copy_(arrays[f"fresh/{n}|weights"])
        average.update(n)
        torch.testing.assert_close(
            torch.from_numpy(average.dump()["w"]), arrays[f"fresh/{n}|average"], rtol=0, atol=2e-7
        )
        apart = (arrays[f"fresh/{n}|average"] - arrays[f"fresh/{n}|weights"]).abs().max()
        assert apart > 1e-5


@pytest.mark.parametrize("warmup", [True, False])
def test_the_average_equals_a_replay(build, warmup: bool) -> None:  # type: ignore[no-untyped-def]
    model = build()
    average = MovingAverage(model, Average(decay=0.9, warmup=warmup))
    replay = {n: p.detach().numpy().astype(np.float64) for n, p in model.named_parameters()}
    random = np.random.default_rng(0)
    for t in range(120):
        d = min(0.9, (t + 1) / (t + 10)) if warmup else 0.9
        for name, parameter in model.named_parameters():
            parameter.data += torch.from_numpy(random.standard_normal(tuple(parameter.shape)).astype(np.float32))
            replay[name] = d * replay[name] + (1 - d) * parameter.detach().numpy()
        average.update(t + 1)
    found = average.dump()
    assert found.keys() == replay.keys()
    for name, array in found.items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, replay[name], rtol=1e-4, atol=1e-5)


def test_the_average_is_lent_to_the_model_and_taken_back_bit_for_bit(build) -> None:  # type: ignore[no-untyped-def]
    model = build()
    average = MovingAverage(model, Average(warmup=False, decay=0.5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1 / 3)
    own = {n: p.detach().clone() for n, p in model.named_parameters()}
    places = {n: p.data_ptr() for n, p in model.named_parameters()}
    average.update(1)
    with pytest.raises(KeyboardInterrupt), average.applied():
        lent = average.dump()
        for name, parameter in model.named_parameters():
            assert np.array_equal(parameter.detach().numpy(), lent[name])
            assert not torch.equal(parameter, own[name])
        assert model.decoder.output.weight is model.encoder.embedding.weight
        raise KeyboardInterrupt
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, own[name])
        assert parameter.data_ptr() == places[name]
        assert parameter.requires_grad


def test_the_average_is_restored_bit_for_bit(build) -> None:  # type: ignore[no-untyped-def]
    model, copy = build(seed=1), build(seed=1)
    average = MovingAverage(model, Average())
    other = MovingAverage(copy, Average())
    model.encoder.embedding.weight.data += 1.0
    average.update(1)
    other.load({name: array.copy() for name, array in average.dump().items()})
    copy.load_state_dict(model.state_dict())
    for _ in range(2):
        assert all(np.array_equal(a, b) for a, b in zip(average.dump().values(), other.dump().values(), strict=True))
        average.update(2)
        other.update(2)
    with pytest.raises(TrainingError) as caught:
        other.load({"encoder.embedding.weight": np.zeros((2, 2)), "nowhere": np.zeros(1)})
    problems = {p.where: (p.expected, p.found) for p in caught.value.problems}
    assert problems["encoder.embedding.weight"] == ("(11, 8)", "(2, 2)")
    assert problems["nowhere"] == ("none", "(1,)")
    assert problems["encoder.layers.0.ffn.up.bias"] == ("(16,)", "none")


# --- patience -------------------------------------------------------------------------------------------------------


def watched(values: list[float | None], rule: Patience) -> tuple[str, Watch]:
    """For each value ``+`` for an improvement, ``P`` for a plateau or ``.``; through JSON each time."""
    watch, text = Watch.from_dict({}), ""
    for value in values:
        watch, improved, plateau = watch.observe(value, rule)
        watch = Watch.from_dict(json.loads(json.dumps(watch.to_dict())))
        assert not (improved and plateau)
        text += "+" if improved else "P" if plateau else "."
    return text, watch


@pytest.mark.parametrize(
    ("rule", "values", "expected"),
    [
        ({"patience": 2}, [3.0, 2.0, 2.0, 2.1, 1.9, 2.0, 2.0, 2.0, 2.0], "++.P+.P.P"),
        ({"patience": 1}, [1.0, 1.0, 2.0, 0.5], "+PP+"),
        ({"patience": 2, "mode": "max"}, [1.0, 2.0, 2.0, 1.0, 2.5], "++.P+"),
        ({"patience": 3, "min_change": 0.5}, [3.0, 2.75, 2.5, 2.25, 2.0], "+.+.+"),
        ({"patience": 3, "min_change": 0.5, "mode": "max"}, [1.0, 1.25, 1.0, 1.25, 1.5], "+..P+"),
        ({"patience": 2}, [None, math.nan, 2.0, math.nan, -math.inf, 1.0], ".P+.P+"),
        ({"patience": 2, "mode": "max"}, [math.inf, 1.0, math.inf, None], ".+.P"),
    ],
)
def test_a_watch_sees_improvements_and_plateaus(
    rule: dict[str, Any], values: list[float | None], expected: str
) -> None:
    text, watch = watched(values, Patience(**rule))
    assert text == expected
    assert watch.plateaus == expected.count("P")


def test_patience_may_be_lengthened_on_the_way() -> None:
    _, watch = watched([1.0, 2.0, 2.0, 2.0], Patience(patience=3))
    assert watch.out_of_patience(Patience(patience=3))
    assert not watch.out_of_patience(Patience(patience=5))
    assert watch.observe(2.0, Patience(patience=5)).watch.since_best == 4
    assert not watch.observe(0.5, Patience(patience=3)).watch.out_of_patience(Patience(patience=3))


def test_plateaus_lower_the_rate_up_to_their_limit() -> None:
    assert plateau_factor(None, 7) == 1.0
    assert [plateau_factor(Plateau(patience=1, factor=0.5), n) for n in (0, 1, 3)] == [1.0, 0.5, 0.125]
    assert [plateau_factor(Plateau(patience=1, factor=0.5, limit=2), n) for n in (1, 2, 3)] == [0.5, 0.25, 0.25]
