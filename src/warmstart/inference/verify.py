"""Do two models give the same answers? Both are run on the same inputs; what differs is measured and judged.

Of models that write text two things are compared. The log-probabilities of given outputs, token by token: those of A's
own outputs, and for random inputs those of random outputs, which reach all of the vocabulary. And the greedy outputs:
where they part, the two tokens must have been a tie, as far as the tolerance of log-probabilities goes; what follows is
not compared. Of other models the arrays that they give are compared.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from warmstart.bundle.model import Model
from warmstart.errors import ConfigError, DialectError, VerificationError, VocabularyError
from warmstart.inference.compare_arrays import compare_arrays
from warmstart.inference.inputs import COUNT, SOUNDS, Inputs, given_ids, given_texts, random_given, random_texts
from warmstart.inference.sides import ARRAYS, FRAME, Ids, Side, TextSide, engine_of, kind_of, side_of
from warmstart.inference.tolerance import Judge, judge_of

_EXAMPLES = 5


def verify_models(
    a: Model,
    b: Model,
    lines: Sequence[str] | None = None,
    *,
    count: int | None = None,
    seed: int = 0,
    tolerance: float | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """How the answers of ``b`` differ from those of ``a``; ``same`` says whether the tolerance explains it.

    Args:
        count: of random inputs; by default 100 texts or 10 sounds.
        tolerance: of the largest difference of log-probabilities, or of states as a part of their size; the mean must
            be below a tenth of it. Without it :mod:`warmstart.inference.tolerance` says what is explained.

    Raises:
        VocabularyError: their vocabularies differ, or nothing knows how text becomes tokens.
        DialectError, MissingExtra: one cannot be computed here, or the two are of different kinds.
    """
    for model in (a, b):
        engine_of(model)  # said before the first of them is loaded
    kind, other = kind_of(a), kind_of(b)
    if kind != other:
        raise DialectError("the two models are of different kinds", where=b.source, expected=kind, found=other)
    sides = side_of(a), side_of(b)
    require_one_vocabulary((a.source, b.source), sides)
    compare = _arrays if kind in ARRAYS else _texts
    with judge_of((a, b), sides, tolerance, seed) as judge:
        facts = compare(kind, a, sides, lines, count, seed, judge)
    return facts | {
        "a": str(a.source),
        "b": name or str(b.source),
        "tolerance_from": "given" if tolerance is not None else "another rounding" if judge.again else "spread",
    }


def _texts(
    kind: str, a: Model, sides: tuple[Any, Any], lines: Sequence[str] | None, count: int | None, seed: int,
    judge: Judge,
) -> dict[str, Any]:  # fmt: skip
    positions = min((side.positions for side in sides if side.positions is not None), default=None)
    for side in (*sides, *([judge.again] if judge.again else [])):
        side.positions = positions
    made = random_texts(sides[0], positions, count or COUNT, seed)
    longest = None if positions is None else positions - FRAME - 1  # one token of an output
    inputs = made if lines is None else given_texts(sides, lines, longest)
    return compare_sides(sides[0], sides[1], inputs, judge)


def _arrays(
    kind: str, a: Model, sides: tuple[Any, Any], lines: Sequence[str] | None, count: int | None, seed: int,
    judge: Judge,
) -> dict[str, Any]:  # fmt: skip
    _, config, _ = a.require()
    if lines is not None and kind != "encoder":
        raise ConfigError("inputs are lines of text, and this model hears sound", todo="leave out --inputs")
    sounds = COUNT if kind == "encoder" else SOUNDS
    made = random_given(kind, config, sides[0].tokens[0], count or sounds, seed)
    inputs = made if lines is None else given_ids(sides, lines, getattr(config, "max_positions", None))
    answers = compare_arrays(sides[0], sides[1], inputs, judge)
    return array_facts(sides, answers, len(inputs), "random" if lines is None else "given")


def array_facts(sides: tuple[Any, Any], answers: Sequence[dict[str, Any]], inputs: int, kind: str) -> dict[str, Any]:
    """Facts of the comparison of all arrays, with the numbers of the worst one."""
    worst = max(answers, key=lambda facts: facts["largest"] / max(facts["tolerance"], 1e-30))
    return {
        "same": all(facts["same"] for facts in answers), "answers": answers,
        "engines": [side.engine for side in sides], "quantizations": [side.quantization for side in sides],
        "inputs": inputs, "kind": kind,
        **{key: worst[key] for key in ("largest", "mean", "tolerance", "mean_tolerance", "where")},
    }  # fmt: skip


def compare_sides(a: TextSide, b: TextSide, inputs: Inputs, judge: Judge) -> dict[str, Any]:
    """Facts of the comparison: see the module's text."""
    outputs = a.greedy(inputs.sources), b.greedy(inputs.sources)
    sources = [*inputs.sources, *(inputs.sources if inputs.targets else [])]
    targets = [*outputs[0], *inputs.targets]
    scores = a.log_probs(sources, targets), b.log_probs(sources, targets)
    largest, mean, place = _apart(*scores)
    p, q = (side[place[0]][place[1]] if place else 0.0 for side in scores)
    where = {"input": place[0] % len(inputs.sources), "step": place[1], "a": p, "b": q} if place else None
    again = judge.again.log_probs(sources, targets) if judge.again is not None else scores[judge.rounded]
    allowed = judge.allowed(_spread(scores[0]), _apart(scores[judge.rounded], again)[:2])
    parted = [k for k, (x, y) in enumerate(zip(*outputs, strict=True)) if x != y]
    pairs = [(outputs[0][k], outputs[1][k]) for k in parted]
    gaps = _gaps(a, [inputs.sources[k] for k in parted], pairs)
    unexplained = [
        k
        for k, pair, gap in zip(parted, pairs, gaps, strict=True)
        if not gap <= 2 * allowed.largest and not _nameless(a, pair)
    ]
    examples = [
        {"input": _shown(a, inputs.sources[k], 0), "a": _shown(a, outputs[0][k], 1), "b": _shown(a, outputs[1][k], 1),
         "gap": gap}
        for k, gap in sorted(zip(parted, gaps, strict=True), key=lambda pair: -pair[1])[:_EXAMPLES]
    ]  # fmt: skip
    return {
        "same": largest <= allowed.largest and mean <= allowed.mean and not unexplained,
        "engines": [a.engine, b.engine], "quantizations": [a.quantization, b.quantization],
        "inputs": len(inputs.sources), "kind": inputs.kind, "scored_tokens": sum(map(len, scores[0])),
        "tolerance": allowed.largest, "largest": largest, "mean": mean, "mean_tolerance": allowed.mean, "where": where,
        "outputs_that_differ": len(parted), "unexplained": len(unexplained), "examples": examples,
    }  # fmt: skip


def require_same(facts: dict[str, Any]) -> dict[str, Any]:
    """``facts`` of :func:`verify_models`, if they say that the answers are the same.

    Raises:
        VerificationError: they are not.
    """
    if facts["same"]:
        return facts
    what, outputs = "log-probabilities", ""
    if "answers" in facts:
        what = ", ".join(f"{answer['name']} ({answer['unit']})" for answer in facts["answers"] if not answer["same"])
    else:
        outputs = f"; {facts['outputs_that_differ']} of {facts['inputs']} outputs differ, "
        outputs += f"{facts['unexplained']} where it was no tie"
    raise VerificationError(
        "the converted model does not give the answers of its source",
        where=facts["b"],
        expected=f"{what} within {facts['tolerance']:.3g}, {facts['mean_tolerance']:.3g} in the mean",
        found=f"{facts['largest']:.3g}, {facts['mean']:.3g} in the mean{outputs}",
        todo="nothing was written; without --verify it is, and `warmstart verify` shows examples",
    )


def _apart(left: Sequence[Sequence[float]], right: Sequence[Sequence[float]]) -> tuple[float, float, Any]:
    """Largest and mean difference of log-probabilities, and where the largest is: (text, token), None if there is no
    token."""
    largest, place, total, tokens = -1.0, None, 0.0, 0
    for k, pair in enumerate(zip(left, right, strict=True)):
        for step, (p, q) in enumerate(zip(*pair, strict=True)):
            difference = abs(p - q) if math.isfinite(p) and math.isfinite(q) else (0.0 if p == q else math.inf)
            total, tokens = total + difference, tokens + 1
            if difference > largest:
                largest, place = difference, (k, step)
    return max(0.0, largest), total / max(1, tokens), place


def _spread(scores: Sequence[Sequence[float]]) -> float:
    """The standard deviation of log-probabilities, those of impossible tokens left out."""
    values = [value for line in scores for value in line if math.isfinite(value)]
    return statistics.pstdev(values) if values else 0.0


def _gaps(a: TextSide, sources: Sequence[Ids], pairs: Sequence[tuple[Ids, Ids]]) -> list[float]:
    """By how much A prefers its own token where two outputs part; an output's end is a token too."""
    places = [_parting(pair) for pair in pairs]
    scored = [a.log_probs(sources, [pair[side] for pair in pairs]) if pairs else [] for side in (0, 1)]
    return [x[place] - y[place] for x, y, place in zip(scored[0], scored[1], places, strict=True)]


def _parting(pair: tuple[Ids, Ids]) -> int:
    """Where two outputs part: at the end of the shorter, if it is the longer's beginning."""
    return next((k for k, (x, y) in enumerate(zip(*pair, strict=False)) if x != y), min(map(len, pair)))


def _nameless(a: TextSide, pair: tuple[Ids, Ids]) -> bool:
    """Whether one of the tokens where two outputs part names several rows (T5's ``<extra_id_0>``): which of them the
    engine meant, its tokens do not say, so that nothing can be said of a tie."""
    place, tokens = _parting(pair), a.tokens[-1]
    parted = [tokens[ids[place]] for ids in pair if place < len(ids)]
    return any(sum(token == other for other in tokens) > 1 for token in parted)


def _shown(side: Side, ids: Ids, which: int) -> str:
    if side.text is not None:
        return side.text[which].decode(ids)
    return " ".join(side.tokens[which][i] for i in ids)


def require_one_vocabulary(models: tuple[str, str], sides: tuple[Side, Side]) -> None:
    """That rows mean the same tokens on both sides, whose ``models`` are called so.

    Raises:
        VocabularyError: they do not.
    """
    names = ("source", "target") if len(sides[0].tokens) == 2 else ("text",)
    for name, *tables in zip(names, sides[0].tokens, sides[1].tokens, strict=True):
        left, right = map(list, tables)
        if left in (right, [*right, "<unk>"]) or right == [*left, "<unk>"]:
            continue
        row = next((k for k, (x, y) in enumerate(zip(left, right, strict=False)) if x != y), None)
        raise VocabularyError(
            f"the two models have different {name} vocabularies, so their rows mean different tokens",
            where=models[1],
            expected=f"{len(left)} tokens" if row is None else f"{left[row]!r} in row {row}, as {models[0]} says",
            found=f"{len(right)} tokens" if row is None else repr(right[row]),
        )
