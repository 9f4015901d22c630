"""The public surface: a name added to or removed from ``warmstart.api`` is a decision, made here too."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re

from warmstart import api

PUBLIC = [
    "cache_list",
    "cache_prune",
    "cache_verify",
    "contains_model",
    "convert",
    "curves",
    "diff",
    "dry_run",
    "evaluate",
    "extract",
    "fetch",
    "inspect",
    "lm_tune",
    "ls",
    "plan",
    "runs",
    "train",
    "transcribe",
    "translate",
    "verify",
]


def test_the_public_verbs_are_the_pinned_ones() -> None:
    assert sorted(api.__all__) == PUBLIC


def test_every_public_verb_is_a_documented_and_typed_function() -> None:
    for name in PUBLIC:
        verb = getattr(api, name)
        assert inspect.isfunction(verb), name
        signature, words = inspect.signature(verb), set(re.findall(r"\w+", inspect.getdoc(verb) or ""))
        assert set(signature.parameters) <= words, f"{name}: the docstring leaves out parameters"
        untyped = [p.name for p in signature.parameters.values() if p.annotation is inspect.Parameter.empty]
        assert not untyped, f"{name}: no type for {untyped}"
        assert signature.return_annotation is not inspect.Signature.empty, f"{name}: no return type"


def test_no_other_function_of_api_looks_public() -> None:
    own = [
        name
        for module in pkgutil.iter_modules(api.__path__)
        for name, value in vars(importlib.import_module(f"{api.__name__}.{module.name}")).items()
        if not name.startswith("_") and inspect.isfunction(value) and value.__module__.startswith(api.__name__)
    ]
    assert sorted(own) == PUBLIC
