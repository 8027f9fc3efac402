"""Folders of small random models as mlx-lm writes them, of every architecture that draftmill is tried on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from tests.engine import small
from tests.engine.plain.architectures import ARCHITECTURES, configuration, tiny
from tests.engine.small import VOCABULARY

CONTEXT = 4096
"""Tokens of the longest prompt and completion together."""

CHARACTERS = "".join(map(chr, range(ord("!"), ord("~") + 1))) + "가"
"""What the tokens read, but for the first, which ends a text: each is one character, so a text tells its tokens.

For some families transformers makes a tokenizer of bytes of any vocabulary; in those ASCII is as it is, too.
"""

OWN: dict[str, Callable[..., Any]] = {
    "gemma2": small.gemma2_model,
    "gemma3_text": small.gemma3_model,
    "gpt_oss": small.gpt_oss_model,
    "lfm2": small.lfm2_model,
    "lfm2_moe": small.lfm2_moe_model,
    "llama": small.llama_model,
    "mistral": lambda **changes: small.llama_model(**{"model_type": "mistral", **changes}),
    "qwen2": small.qwen2_model,
    "qwen3": small.qwen3_model,
    "qwen3_5": small.qwen3_5_model,
    "qwen3_5_moe": small.qwen3_5_moe_model,
    "qwen3_moe": small.qwen3_moe_model,
    "qwen3_next": small.qwen3_next_model,
    "smollm3": small.smollm3_model,
}
"""Models of the architectures that have an adapter."""

NAMES = sorted({*ARCHITECTURES, *OWN})


def write(name: str, folder: Path) -> None:
    """Makes a model of the architecture called `name`, and saves it in a new folder with its tokenizer."""
    if name in OWN:
        model = OWN[name](max_position_embeddings=CONTEXT)
        config = {"max_position_embeddings": CONTEXT, **asdict(model.args), "model_type": name}
    else:
        model, config = tiny(name, context=CONTEXT), configuration(name, CONTEXT)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    _tokenizer().save_pretrained(folder)


def _tokenizer() -> PreTrainedTokenizerFast:
    end, last = "<|end|>", CHARACTERS[-1]
    assert len(CHARACTERS) == VOCABULARY - 1
    vocabulary = {end: 0} | {character: token for token, character in enumerate(CHARACTERS, 1)}
    tokenizer: Any = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(end, special=True, normalized=False)])
    tokenizer.add_tokens([AddedToken(last, special=False, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end)
