"""What speech models with CTC's outputs have in common in ``transformers``: options and the table of characters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from warmstart.checked import Config
from warmstart.errors import VocabularyError
from warmstart.formats.checkpoint import Checkpoint
from warmstart.models.family import Facts
from warmstart.models.huggingface import CONFIG, Options, folder_of
from warmstart.models.huggingface_tokenizer import read_tokenizer
from warmstart.models.pretrained import (
    SIDE,
    PretrainedDialect,
    beside,
    dtype_key,
    ignore,
    kept_files,
    object_of,
    updated,
    validated,
)
from warmstart.vocabularies.subwords import ROLES, SubwordVocabulary
from warmstart.vocabularies.vocabulary import Vocabulary

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}

IGNORED = {
    "*_token_id": "of the tokenizer",
    "*dropout*": "training",
    "layerdrop": "training",
    "apply_spec_augment": "training",
    "mask_*": "training",
    "ctc_*": "training",
    "*codevector*": "of pretraining",
    "contrastive_logits_temperature": "of pretraining",
    "num_negatives": "of pretraining",
    "diversity_loss_weight": "of pretraining",
    "tdnn_*": "of a classifier",
    "xvector_output_dim": "of a classifier",
    "use_weighted_layer_sum": "of a classifier",
    "tie_word_embeddings": "there are none",
    "processor_class": "read with the tokenizer",
    "feature_extractor_type": "read with the tokenizer",
}


Kind = TypeVar("Kind", bound=Config)


class CtcDialect(PretrainedDialect):
    """A speech model with or without the layer of CTC's outputs (``head`` of its configuration).

    Attributes:
        prefix: what the bare model's arrays begin with.
        top: what those of its heads begin with, CTC's first.
        architecture: the class with CTC's outputs.
        others: what the other heads are for.
    """

    prefix: str
    top: tuple[str, ...]
    architecture: str
    others: str = "of a classifier"

    def today(self, name: str) -> str:
        return name if name.startswith((f"{self.prefix}.", *self.top)) else f"{self.prefix}.{name}"

    def left_behind(self, config: Any) -> Mapping[str, str]:
        left = {f"{name}**": self.others for name in self.top[1:]}
        left[f"{self.prefix}.masked_spec_embed"] = "what stands for masked sound in training"
        return left if config.head else {**left, "lm_head.**": "config.json says return_hidden"}

    def vocabulary(self, loaded: Checkpoint) -> SubwordVocabulary:
        return ctc_vocabulary(loaded)

    def read_values(self, kind: type[Kind], values: Mapping[str, Any], options: Options, loaded: Checkpoint) -> Kind:
        """The configuration of ``values`` and of what all these models say."""
        options.expect("output_hidden_size", values["d_model"], None)
        head = not options.get("return_hidden", False) and "lm_head.weight" in loaded.entries
        ignore(options, IGNORED)
        return validated(kind, {**values, "head": head}, options, self.architecture)

    def files_of(
        self,
        config: Any,
        vocabularies: Mapping[str, Vocabulary],
        facts: Facts,
        values: Mapping[str, Any],
        implied: Mapping[str, Any],
        fresh: Mapping[str, Any],
    ) -> dict[str, bytes]:
        """config.json and what lies beside it: of ``values`` those that it said already or that differ from what the
        library takes (``implied``); ``fresh`` ones too where there was none."""
        vocabulary = vocabularies[SIDE]
        kept = object_of(vocabulary, CONFIG)
        if kept:
            said = {k: v for k, v in values.items() if k in kept or implied[k] != v}
        else:
            said = {**values, "model_type": self.types[0], "architectures": [self.architecture], **fresh}
            said |= {} if config.head else {"return_hidden": True}
        files = {CONFIG: updated(vocabulary, CONFIG, {**said, **dtype_key(kept, facts)})}
        return {**files, **beside(vocabulary, (CONFIG,))}


def ctc_vocabulary(loaded: Checkpoint) -> SubwordVocabulary:
    """The characters (or pieces) that the head's rows stand for, in the order of the rows.

    Raises:
        VocabularyError: there is no table, or one for each of several languages.
    """
    files = loaded.metadata["tokenizer"]
    try:
        table = json.loads(files.get("vocab.json", b"{}"))
    except ValueError:
        table = {}  # read_tokenizer says so
    if isinstance(table, dict) and any(isinstance(row, dict) for row in table.values()):
        raise VocabularyError(
            "vocab.json holds a table for each of several languages",
            where=folder_of(loaded),
            found=", ".join(list(table)[:5]),
            todo="give the table of the language that this model's head is for with --vocab",
        )
    tokenizer = read_tokenizer(files, folder_of(loaded), SPECIAL, ("vocab.json",))
    special = {role: tokenizer.special.get(f"{role}_token") for role in ROLES}
    return SubwordVocabulary(tokenizer.tokens, special, kept_files(loaded))
