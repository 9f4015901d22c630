"""Whether two models give the same answers, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from warmstart.reports.text import counted, printable

_FROM = {"given": "as given", "quantization": "for weights in {}, measured on fixtures/marian-ar-en-translit"}


def verification_text(facts: Mapping[str, Any]) -> str:
    """What was run, the largest difference beside what is allowed, and outputs that differ."""
    kinds = [f"{e}, {q}" for e, q in zip(facts["engines"], facts["quantizations"], strict=True)]
    where = facts["where"] or {"input": 0, "step": 0, "a": 0.0, "b": 0.0}
    narrow = next((q for q in reversed(facts["quantizations"]) if q != "float32"), "float32")
    tolerance = _FROM[facts["tolerance_from"]].format(narrow)
    differ, unexplained = facts["outputs_that_differ"], facts["unexplained"]
    outputs = f"{differ:,} of {facts['inputs']:,} differ"
    if differ:
        outputs += f", {unexplained:,} of them where it was no tie" if unexplained else ", all where it was a tie"
    lines = [
        f"A: {printable(facts['a'])} ({kinds[0]})",
        f"B: {printable(facts['b'])} ({kinds[1]})",
        f"{'the same answers' if facts['same'] else 'NOT the same answers'}: {counted(facts['inputs'], 'input')}"
        f" ({facts['kind']}), log-probabilities of {facts['scored_tokens']:,} tokens",
        f"  largest difference: {facts['largest']:.3g}, allowed {facts['tolerance']:.3g} ({tolerance})",
        f"    at input {where['input'] + 1}, token {where['step'] + 1}: {where['a']:.6f} in A, {where['b']:.6f} in B",
        f"  mean difference: {facts['mean']:.3g}, allowed {facts['mean_tolerance']:.3g}",
        f"  greedy outputs: {outputs}",
    ]
    for example in facts["examples"]:
        lines += [f"    {printable(example['input'])}"]
        lines += [f"      {side.upper()}: {printable(example[side])}" for side in "ab"]
        lines += [f"      where they part, A prefers its own token by {example['gap']:.3g}"]
    return "\n".join(lines) + "\n"
