"""Five classes of ``transformers`` that are one layout, told apart by norms, positions and how the decoder starts."""

from __future__ import annotations

from collections.abc import Mapping

from warmstart.errors import DialectError, Problem
from warmstart.lean import dataclass
from warmstart.models.transformer.config import TransformerConfig

EPSILON = 1e-5  # of every layer norm of these classes; no key of config.json says another


@dataclass(frozen=True)
class Kind:
    """One class of ``transformers``: what of the family's configuration it fixes, and what else it is.

    Attributes:
        offset: rows before the first position in a table of learned positions.
        pad_row: a row for ``<pad>`` behind the vocabulary, as Marian's models get.
        writes_positions: computed positions are saved, too.
        special: what the class's tokenizer calls by which name, where no file says it.
    """

    architecture: str
    tokenizer: str
    norm: str
    layernorm_embedding: bool
    sinusoids: str | None
    offset: int = 0
    pad_row: bool = False
    bias: bool = True
    writes_positions: bool = False
    special: Mapping[str, str] | None = None


_USUAL = {
    "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>", "pad_token": "<pad>",
    "cls_token": "<s>", "mask_token": "<mask>",
}  # fmt: skip
_FEW = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}

KINDS = {
    "marian": Kind(
        "MarianMTModel", "MarianTokenizer", "post", False, "transformers", pad_row=True, special=_FEW
    ),
    "bart": Kind(
        "BartForConditionalGeneration", "BartTokenizer", "post", True, None, offset=2, special=_USUAL
    ),
    "mbart": Kind(
        "MBartForConditionalGeneration", "MBartTokenizer", "pre", True, None, offset=2, special=_USUAL
    ),
    "pegasus": Kind(
        "PegasusForConditionalGeneration", "PegasusTokenizer", "pre", False, "transformers", writes_positions=True,
        special={**_FEW, "mask_token": "<mask_2>"},
    ),
    "m2m_100": Kind(
        "M2M100ForConditionalGeneration", "NllbTokenizer", "pre", False, "fairseq", bias=False, special=_USUAL
    ),
}  # fmt: skip


def kind_of(config: TransformerConfig) -> str:
    """The class (``model_type``) that computes what ``config`` says.

    Raises:
        DialectError: none does; what keeps the nearest from it is named.
    """
    faults = {name: _faults(config, name) for name in KINDS}
    best = min(faults, key=lambda name: len(faults[name]))
    if faults[best]:
        raise DialectError(
            "no class of transformers computes this model",
            problems=[Problem(f"{KINDS[best].architecture}: {fault}") for fault in faults[best]],
        )
    return best


def _faults(c: TransformerConfig, name: str) -> list[str]:
    kind, faults = KINDS[name], []

    def need(holds: bool, fault: str) -> None:
        if not holds:
            faults.append(fault)

    need(c.norm == kind.norm, f"it is {kind.norm}-norm")
    need(c.layernorm_embedding == kind.layernorm_embedding, "embeddings are normalised in one, not in the other")
    need(c.normalize_keys, "it normalises keys and values")
    need((c.decoder_start == "zero") == kind.pad_row, "its decoder starts from another embedding")
    need(c.decoder_max_positions is None, "both sides have tables of positions of one length")
    if kind.sinusoids is None or c.positions == "learned":
        need(c.positions == "learned", "its positions are learned")
        need(kind.pad_row or kind.writes_positions or kind.sinusoids is None, "it computes positions")
    else:
        known = (kind.sinusoids, "marian") if kind.pad_row else (kind.sinusoids,)
        need(c.sinusoids in known, f"its positions are of the formula {kind.sinusoids}, not {c.sinusoids}")
    need(not c.gated, "its feed-forward layers are not gated")
    need(not c.rms_norm, "its norms subtract the mean and have biases, they are not RMS norms")
    need(c.max_relative_positions is None, "its positions are not relative")
    need(not c.features, "its source has no features")
    need(c.attention_bias and c.ffn_bias, "its linear layers have biases")
    need(kind.bias or not c.output_bias, "it has no bias of the output")
    need(c.layer_norm_epsilon == EPSILON or (kind.pad_row and c.layer_norm_epsilon == 1e-6), "epsilon is 1e-5")
    need(c.tied_embeddings != "target" or kind.pad_row, "its decoder shares a table with all sides or with none")
    # The row behind each vocabulary is <pad>, which has one number (MarianModel, padding_idx of both tables).
    need(c.source_vocab_size == c.target_vocab_size, "both vocabularies are of one size")
    return faults


def positions_of(c: TransformerConfig) -> int:
    """``max_position_embeddings``; Marian's own models say none, and get what OPUS-MT's are published with."""
    return c.max_positions or 512
