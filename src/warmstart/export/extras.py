"""Files that travel with a model: copies of what lies beside its source, and a vocabulary map."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path

from warmstart.errors import ConfigError, Problem, SourceError, VocabularyError
from warmstart.lean import dataclass

VMAP = "vmap.txt"


@dataclass(frozen=True)
class Extras:
    """By name in the output, where they are."""

    files: Mapping[str, Path] = field(default_factory=dict)

    @staticmethod
    def of(source: Path, copy: Sequence[str], vmap: str | Path | None) -> Extras:
        """``copy`` are names beside the source; ``vmap`` becomes ``vmap.txt``.

        Raises:
            ConfigError: two of them would have one name in the output.
            SourceError: some are not files; all are named.
            VocabularyError: ``vmap`` is no vocabulary map.
        """
        folder = source if source.is_dir() else source.parent
        names = [Path(name).name for name in dict.fromkeys(copy)] + ([VMAP] if vmap is not None else [])
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        if twice:
            raise ConfigError(
                f"several files would be called {', '.join(twice)} beside the model",
                todo="leave all but one out of --copy-files" + ("; --vmap is one of them" if VMAP in twice else ""),
            )
        files = {Path(name).name: folder / name for name in copy}
        if vmap is not None:
            files[VMAP] = Path(vmap)
        missing = [str(path) for path in files.values() if not path.is_file()]
        if missing:
            raise SourceError("there is no such file to put beside the model", where=", ".join(missing))
        if vmap is not None:
            _require_map(Path(vmap))
        return Extras(files)

    def refuse(self, taken: set[str]) -> None:
        """
        Raises:
            ConfigError: some have the names of files that are ``taken`` by the model itself.
        """
        collision = sorted(taken & set(self.files))
        if collision:
            raise ConfigError(
                f"{', '.join(collision)} is a file of the model itself", todo="leave it out of --copy-files"
            )


def _require_map(path: Path) -> None:
    """Each line must be a source n-gram, a tab, and target tokens between spaces: a line without a tab the engine would
    take for tokens that are always allowed (``src/vocabulary_map.cc`` of CTranslate2).

    Raises:
        VocabularyError: some are not; the first five are named.
    """
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise VocabularyError("the vocabulary map cannot be read", where=path, found=error) from None
    wrong = [(number, line) for number, line in enumerate(lines, 1) if line and line.count("\t") != 1]
    if wrong:
        problems = [Problem(f"line {number}", found=repr(line[:80])) for number, line in wrong[:5]]
        raise VocabularyError(
            "this is no vocabulary map", where=path, problems=problems,
            expected="in each line a source token or several, a tab, target tokens; spaces between tokens",
        )  # fmt: skip
