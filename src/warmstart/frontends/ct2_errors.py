"""Errors in the words of the command that was called: advised are its flags, or it is said whose flags they are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import replace

from warmstart.errors import Problem

_FLAG = re.compile(r"(?<![\w`-])--[a-z][\w-]*")
_ELSEWHERE = ("`", "pip ")  # an advice that names its command
_COMMON = {r"--quantize": "--quantization", r"--vmap": "--vocab_mapping"}
_PAIR = r"--vocab (SOURCE_\w+) --vocab (TARGET_\w+)"
_SPELT: Mapping[str, Mapping[str, str]] = {
    "ct2-marian-converter": {_PAIR: r"--vocab_paths \1 \2"},
    "ct2-transformers-converter": {"--copy-files": "--copy_files"},
    "ct2-opennmt-tf-converter": {
        _PAIR: r"--src_vocab \1 --tgt_vocab \2", "--vocab (TEXT_FILE)": r"--src_vocab \1",
        "--from opennmt-tf:NAME,start,end,auto, of which any may be left out": "--model_type NAME",
        "--from opennmt-tf:NAME": "--model_type NAME",
    },
    "ct2-fairseq-converter": {
        _PAIR: "--data_dir DIRECTORY", r"--from fairseq(?:-plain)?:(\w+),(\w+)": r"--source_lang \1 --target_lang \2",
    },
}  # fmt: skip


def in_words_of(command: str, flags: Set[str], source: str, problem: Problem) -> Problem:
    """``problem`` with the ``flags`` of ``command``; an advice that names others says whose they are."""

    def spelt(text: str | None) -> str | None:
        for ours, theirs in {**_COMMON, **_SPELT.get(command, {})}.items():
            text = re.sub(ours + r"(?![\w-])", theirs, text) if text else text
        return text

    todo = spelt(problem.todo)
    if todo and not any(sign in todo for sign in _ELSEWHERE) and not {*_FLAG.findall(todo)} <= flags:
        todo += f", in `warmstart convert {source} OUTPUT --to ctranslate2`"
    return replace(problem, what=spelt(problem.what) or "", expected=spelt(problem.expected), todo=todo)
