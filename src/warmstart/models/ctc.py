"""What speech models with CTC's outputs have in common in ``transformers``: options and the table of characters."""

from __future__ import annotations

import json

from warmstart.errors import VocabularyError
from warmstart.formats.checkpoint import Checkpoint
from warmstart.models.huggingface import folder_of, read_tokenizer
from warmstart.models.pretrained import kept_files
from warmstart.vocabularies.subwords import ROLES, SubwordVocabulary

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
