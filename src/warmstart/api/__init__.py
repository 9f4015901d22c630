"""The public verbs as functions: what the command line calls and what a program imports."""

from __future__ import annotations

from warmstart.api.answers import evaluate, lm_tune, transcribe, translate
from warmstart.api.checkpoints import contains_model, diff, extract, inspect
from warmstart.api.conversion import convert, verify
from warmstart.api.remote import cache_list, cache_prune, cache_verify, fetch, ls
from warmstart.api.training import curves, dry_run, plan, runs, train

__all__ = [
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
