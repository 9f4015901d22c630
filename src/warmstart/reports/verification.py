"""Whether two models give the same answers, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from warmstart.reports.text import counted, printable

_UNITS = {"log-probabilities": "of log-probabilities", "states": "as a part of the states' size"}
_FROM = {
    "given": "as given",
    "another rounding": "by what another rounding of the weights does, docs/decisions/0069",
    "spread": "by the spread of the answers, docs/decisions/0069",
}


def verification_text(facts: Mapping[str, Any]) -> str:
    """What was run, the largest difference beside what is allowed, and outputs that differ."""
    kinds = [f"{e}, {q}" for e, q in zip(facts["engines"], facts["quantizations"], strict=True)]
    tolerance = _FROM[facts["tolerance_from"]]
    same = "the same answers" if facts["same"] else "NOT the same answers"
    lines = [
        f"A: {printable(facts['a'])} ({kinds[0]})",
        f"B: {printable(facts['b'])} ({kinds[1]})",
        f"{same}: {counted(facts['inputs'], 'input')} ({facts['kind']})",
        *(_arrays(facts) if "answers" in facts else _texts(facts, tolerance)),
    ]
    if "answers" in facts:
        lines.append(f"  allowed {tolerance}")
    return "\n".join(lines) + "\n"


def _arrays(facts: Mapping[str, Any]) -> list[str]:
    lines = []
    for answer in facts["answers"]:
        where = f"at input {answer['where']['input'] + 1}, {answer['where']['index']}"
        lines += [
            f"  {answer['name']}: {answer['values']:,} values, {'the same' if answer['same'] else 'NOT the same'}",
            f"    largest difference {_UNITS[answer['unit']]}: {answer['largest']:.3g}, allowed"
            f" {answer['tolerance']:.3g} ({where})",
            f"    mean difference: {answer['mean']:.3g}, allowed {answer['mean_tolerance']:.3g}",
        ]
    return lines


def _texts(facts: Mapping[str, Any], tolerance: str) -> list[str]:
    where = facts["where"] or {"input": 0, "step": 0, "a": 0.0, "b": 0.0}
    differ, unexplained = facts["outputs_that_differ"], facts["unexplained"]
    outputs = f"{differ:,} of {facts['inputs']:,} differ"
    if differ:
        outputs += f", {unexplained:,} of them where it was no tie" if unexplained else ", all where it was a tie"
    lines = [
        f"  log-probabilities of {facts['scored_tokens']:,} tokens",
        f"  largest difference: {facts['largest']:.3g}, allowed {facts['tolerance']:.3g} ({tolerance})",
        f"    at input {where['input'] + 1}, token {where['step'] + 1}: {where['a']:.6f} in A, {where['b']:.6f} in B",
        f"  mean difference: {facts['mean']:.3g}, allowed {facts['mean_tolerance']:.3g}",
        f"  greedy outputs: {outputs}",
    ]
    for example in facts["examples"]:
        lines += [f"    {printable(example['input'])}"]
        lines += [f"      {side.upper()}: {printable(example[side])}" for side in "ab"]
        lines += [f"      where they part, A prefers its own token by {example['gap']:.3g}"]
    return lines
