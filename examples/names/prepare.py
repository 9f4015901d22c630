"""Makes the data of the names example: names of places, languages, scripts and currencies, from English.

The pairs are the translations of the iso-codes project that the package ``pycountry`` brings. The split of a
pair depends on its English side alone, so a name held out in one language is in no language's training set.
"""

from __future__ import annotations

import argparse
import gettext
import hashlib
import re
import unicodedata
from pathlib import Path

import pycountry

from warmstart.storage.atomic import write_bytes

LANGUAGES = {"uk": "Ukrainian", "be": "Belarusian"}
ALPHABETS = {"uk": "абвгґдеєжзиіїйклмнопрстуфхцчшщьюя", "be": "абвгдеёжзійклмнопрстуўфхцчшыьэюя"}
CATALOGUES = ("iso3166-1", "iso3166-2", "iso3166-3", "iso639-3", "iso639-5", "iso4217", "iso15924")
SPLITS = ("train", "validation", "test")
MAX_CHARACTERS = 60


def clean(text: str) -> str:
    """NFC, with spaces collapsed and trimmed."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def usable(english: str, translation: str, alphabet: str) -> bool:
    """Whether both sides are short names and the translation is spelt in its own alphabet: names with Latin
    letters, digits or list marks are codes and leftovers."""
    spelt = re.fullmatch(rf"[{alphabet}’(),\- ]*[{alphabet}][{alphabet}’(),\- ]*", translation.lower())
    return 0 < len(english) <= MAX_CHARACTERS and len(translation) <= MAX_CHARACTERS and spelt is not None


def split_of(english: str) -> str:
    """90 % train, 5 % validation, 5 % test, by a hash of the name in lower case."""
    bucket = int.from_bytes(hashlib.sha256(english.casefold().encode()).digest()[:8], "big") % 100
    return "train" if bucket < 90 else "validation" if bucket < 95 else "test"


def read_pairs(language: str) -> dict[str, list[tuple[str, str]]]:
    """(English, translation) pairs of each split, sorted; the first catalogue that has a name decides."""
    locales = Path(pycountry.LOCALES_DIR) / language / "LC_MESSAGES"
    chosen: dict[str, tuple[str, str]] = {}
    for catalogue in CATALOGUES:
        with (locales / f"{catalogue}.mo").open("rb") as file:
            messages: dict[object, str] = vars(gettext.GNUTranslations(file))["_catalog"]
        # Both apostrophes are in use, one letter in both languages.
        pairs = sorted((clean(k), clean(v).replace("'", "’")) for k, v in messages.items() if isinstance(k, str) and k)
        for english, translation in pairs:
            if usable(english, translation, ALPHABETS[language]):
                chosen.setdefault(english.casefold(), (english, translation))
    result: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    for english, translation in sorted(chosen.values()):
        result[split_of(english)].append((english, translation))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data", help="folder to write to")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    print(f"{'English to':12}" + "".join(f"{split:>12}" for split in SPLITS))
    for language, name in LANGUAGES.items():
        splits = read_pairs(language)
        for split, pairs in splits.items():
            content = "".join(f"{english}\t{translation}\n" for english, translation in pairs)
            write_bytes(out / f"{language}.{split}.tsv", content.encode("utf-8"))
        print(f"{name:12}" + "".join(f"{len(splits[split]):>12}" for split in SPLITS))


if __name__ == "__main__":
    main()
