"""Do two models give the same answers? Both are run on the same inputs; what differs is measured and judged.

Two things are compared. The log-probabilities of given outputs, token by token: those of A's own outputs, and for
random inputs those of random outputs, which reach all of the vocabulary. And the greedy outputs: where they part, the
two tokens must have been a tie, as far as the tolerance of log-probabilities goes; what follows is not compared.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from warmstart.bundle.model import Model
from warmstart.errors import ConfigError, VerificationError, VocabularyError
from warmstart.inference.sides import Ids, Side, side_of

TOLERANCES = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1.5e-1, "int16": 6e-2, "int8": 7.5e-1}
"""The largest difference of a log-probability (natural logarithm) that storing weights in such numbers explains.

Measured, not proved: on fixtures/marian-ar-en-translit (2 + 2 layers, 256 random inputs and outputs) CTranslate2 4.8.5
differs from the float32 model by at most 0.000006, 0.0070, 0.051, 0.021 and 0.24; these are three times as much, and
for float32, where only the order of sums differs, what deeper models may need. The mean must be below a tenth of it
(measured: 0.0000006, 0.0006, 0.005, 0.002, 0.017), which finds what is a little wrong everywhere.
"""
_MEAN = 0.1  # of the tolerance
_SHORTEST, _LONGEST = 1, 24  # tokens of random inputs
_SPECIAL = {"<s>", "</s>", "<unk>", "<pad>", "<blank>", "<mask>"}
_EXAMPLES = 5


@dataclass(frozen=True)
class Inputs:
    """What both sides are given: sources and outputs to score, in rows of the vocabularies."""

    sources: list[tuple[int, ...]]
    targets: list[tuple[int, ...]] = field(default_factory=list)
    kind: str = "random"


def verify_models(
    a: Model,
    b: Model,
    lines: Sequence[str] | None = None,
    *,
    count: int = 100,
    seed: int = 0,
    tolerance: float | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """How the answers of ``b`` differ from those of ``a``; ``same`` says whether the tolerance explains it.

    Raises:
        VocabularyError: their vocabularies differ, or nothing knows how text becomes tokens.
        DialectError, MissingExtra: one cannot be computed here.
    """
    sides = side_of(a), side_of(b)
    _require_one_vocabulary(a, b, sides)
    inputs = _given(sides, lines) if lines is not None else _random(sides[0].tokens, count, seed)
    allowed = max(TOLERANCES[side.quantization] for side in sides) if tolerance is None else tolerance
    facts = compare_sides(sides[0], sides[1], inputs, allowed)
    return facts | {
        "a": str(a.source),
        "b": name or str(b.source),
        "tolerance_from": "given" if tolerance is not None else "quantization",
    }


def compare_sides(a: Side, b: Side, inputs: Inputs, tolerance: float) -> dict[str, Any]:
    """Facts of the comparison: see the module's text."""
    outputs = a.greedy(inputs.sources), b.greedy(inputs.sources)
    sources = [*inputs.sources, *(inputs.sources if inputs.targets else [])]
    targets = [*outputs[0], *inputs.targets]
    largest, where, total, tokens = 0.0, None, 0.0, 0
    scores = a.log_probs(sources, targets), b.log_probs(sources, targets)
    for k, (left, right) in enumerate(zip(*scores, strict=True)):
        for step, (p, q) in enumerate(zip(left, right, strict=True)):
            difference = abs(p - q) if math.isfinite(p) and math.isfinite(q) else (0.0 if p == q else math.inf)
            total, tokens = total + difference, tokens + 1
            if where is None or difference > largest:
                largest, where = difference, {"input": k % len(inputs.sources), "step": step, "a": p, "b": q}
    mean = total / max(1, tokens)
    parted = [k for k, (x, y) in enumerate(zip(*outputs, strict=True)) if x != y]
    gaps = _gaps(a, [inputs.sources[k] for k in parted], [(outputs[0][k], outputs[1][k]) for k in parted])
    unexplained = [k for k, gap in zip(parted, gaps, strict=True) if not gap <= 2 * tolerance]
    examples = [
        {"input": _shown(a, inputs.sources[k], 0), "a": _shown(a, outputs[0][k], 1), "b": _shown(a, outputs[1][k], 1),
         "gap": gap}
        for k, gap in sorted(zip(parted, gaps, strict=True), key=lambda pair: -pair[1])[:_EXAMPLES]
    ]  # fmt: skip
    return {
        "same": largest <= tolerance and mean <= _MEAN * tolerance and not unexplained,
        "engines": [a.engine, b.engine], "quantizations": [a.quantization, b.quantization],
        "inputs": len(inputs.sources), "kind": inputs.kind, "scored_tokens": tokens, "tolerance": tolerance,
        "largest": largest, "mean": mean, "mean_tolerance": _MEAN * tolerance, "where": where,
        "outputs_that_differ": len(parted), "unexplained": len(unexplained), "examples": examples,
    }  # fmt: skip


def require_same(facts: dict[str, Any]) -> dict[str, Any]:
    """``facts`` of :func:`verify_models`, if they say that the answers are the same.

    Raises:
        VerificationError: they are not.
    """
    if facts["same"]:
        return facts
    raise VerificationError(
        "the converted model does not give the answers of its source",
        where=facts["b"],
        expected=f"log-probabilities within {facts['tolerance']:.3g}, {facts['mean_tolerance']:.3g} in the mean",
        found=f"{facts['largest']:.3g}, {facts['mean']:.3g} in the mean; {facts['outputs_that_differ']} of "
        f"{facts['inputs']} outputs differ, {facts['unexplained']} where it was no tie",
        todo="nothing was written; without --verify it is, and `warmstart verify` shows examples",
    )


def _gaps(a: Side, sources: Sequence[Ids], pairs: Sequence[tuple[Ids, Ids]]) -> list[float]:
    """By how much A prefers its own token where two outputs part; an output's end is a token too."""
    steps = [next((k for k, (x, y) in enumerate(zip(*pair, strict=False)) if x != y), None) for pair in pairs]
    places = [min(map(len, pair)) if step is None else step for step, pair in zip(steps, pairs, strict=True)]
    scored = [a.log_probs(sources, [pair[side] for pair in pairs]) if pairs else [] for side in (0, 1)]
    return [x[place] - y[place] for x, y, place in zip(scored[0], scored[1], places, strict=True)]


def _shown(side: Side, ids: Ids, which: int) -> str:
    if side.text is not None:
        return side.text[which].decode(ids)
    return " ".join(side.tokens[which][i] for i in ids)


def _require_one_vocabulary(a: Model, b: Model, sides: tuple[Side, Side]) -> None:
    for which, name in enumerate(("source", "target")):
        left, right = (list(side.tokens[which]) for side in sides)
        if left in (right, [*right, "<unk>"]) or right == [*left, "<unk>"]:
            continue
        row = next((k for k, (x, y) in enumerate(zip(left, right, strict=False)) if x != y), None)
        raise VocabularyError(
            f"the two models have different {name} vocabularies, so their rows mean different tokens",
            where=b.source,
            expected=f"{len(left)} tokens" if row is None else f"{left[row]!r} in row {row}, as {a.source} says",
            found=f"{len(right)} tokens" if row is None else repr(right[row]),
        )


def _given(sides: tuple[Side, Side], lines: Sequence[str]) -> Inputs:
    text = next((side.text for side in sides if side.text is not None), None)
    if text is None:
        raise VocabularyError("nothing knows how text becomes tokens", todo="give --vocab, or leave out --inputs")
    sources = [tuple(text[0].encode(line)) for line in lines]
    spoken = [source for source in sources if source]
    if not spoken:
        raise ConfigError("the inputs hold no text")
    return Inputs(spoken, [], "given")


def _random(tokens: tuple[Sequence[str], Sequence[str]], count: int, seed: int) -> Inputs:
    """``count`` pairs of random rows, the same for the same vocabularies and ``seed``."""
    generator = random.Random(seed)
    rows = [[row for row, token in enumerate(table) if token not in _SPECIAL] for table in tokens]

    def some(choices: list[int]) -> tuple[int, ...]:
        return tuple(generator.choice(choices) for _ in range(generator.randint(_SHORTEST, _LONGEST)))

    pairs = [(some(rows[0]), some(rows[1])) for _ in range(count)]
    return Inputs([source for source, _ in pairs], [target for _, target in pairs])
