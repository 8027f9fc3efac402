"""SmolLM3: Llama, of which every few layers do not rotate."""

from __future__ import annotations

from typing import Any

from .llama import Llama


class SmolLM3(Llama):
    """Adapter over `mlx_lm.models.smollm3`. Layers without positions have a rope that turns nothing."""

    def rope_kind(self, attn: Any) -> str:
        return type(attn.rope).__name__
