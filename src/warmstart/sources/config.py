"""The piece of a configuration that says where sources are looked for."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, PlainSerializer, field_validator

from warmstart.keys import Adjustable
from warmstart.redact import redact
from warmstart.sources.policy import is_url

Source = Annotated[str, PlainSerializer(redact, return_type=str, when_used="json")]
"""A path or URL; in what is stored it is without its secrets."""


class SourcesConfig(BaseModel):
    """``mirrors`` redirects prefixes of URLs: ``{gs://t5-data: /mnt/t5-data}``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mirrors: Adjustable[dict[str, str]] = {}

    @field_validator("mirrors")
    @classmethod
    def _prefixes_of_urls(cls, value: dict[str, str]) -> dict[str, str]:
        for prefix, place in value.items():
            if not is_url(prefix):
                raise ValueError(f"{prefix!r} is not the beginning of a URL, as gs://t5-data")
            if not place.strip():
                raise ValueError(f"{prefix} leads nowhere")
        return value
