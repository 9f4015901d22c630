"""Configuration of Whisper."""

from __future__ import annotations

from typing import Annotated

from warmstart.checked import Config, Limits

Positive = Annotated[int, Limits(gt=0)]
Row = Annotated[int, Limits(ge=0)]


class WhisperConfig(Config):
    """Whisper (Radford et al. 2022): two convolutions over ``num_mel_bins`` and a pre-norm encoder, positions of which
    are a table of ``max_source_positions``; a pre-norm decoder with learned positions. GELU throughout; keys are
    projected without a bias.

    What a decoder needs to know besides is part of the model: rows that are never written (``suppress_ids``) or not as
    the first (``suppress_ids_begin``), rows of languages (``lang_ids``), and the heads (layer, head) whose attention
    follows the sound (``alignment_heads``).
    """

    vocab_size: Positive
    num_mel_bins: Positive = 80
    d_model: Positive = 384
    encoder_layers: Positive = 4
    encoder_heads: Positive = 6
    encoder_d_ff: Positive = 1536
    decoder_layers: Positive = 4
    decoder_heads: Positive = 6
    decoder_d_ff: Positive = 1536
    max_source_positions: Positive = 1500
    max_target_positions: Positive = 448
    tied_output: bool = True
    suppress_ids: tuple[int, ...] | None = None
    suppress_ids_begin: tuple[int, ...] | None = None
    lang_ids: tuple[Row, ...] = ()
    alignment_heads: tuple[tuple[Row, Row], ...] = ()

    def check(self) -> None:
        for side, heads in (("encoder", self.encoder_heads), ("decoder", self.decoder_heads)):
            if self.d_model % heads:
                raise ValueError(f"d_model {self.d_model} is not a multiple of {side}_heads {heads}")
        for layer, head in self.alignment_heads:
            if layer >= self.decoder_layers or head >= self.decoder_heads:
                raise ValueError(f"alignment_heads: there is no head {head} of layer {layer}")
        rows = (*(self.suppress_ids or ()), *(self.suppress_ids_begin or ()), *self.lang_ids)
        if max(rows, default=0) >= self.vocab_size:
            raise ValueError(f"row {max(rows)} is suppressed or a language, but there are {self.vocab_size} rows")
