"""Models of random weights, small enough to be computed twice."""

import torch
import transformers

FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 24},
    "mistral": {"sliding_window": None, "head_dim": 16},
    "mistral-windowed": {"sliding_window": 7, "head_dim": 16},
    "gemma": {"head_dim": 24},
    "gemma2": {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 16},
    "gemma3_text": {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 16},
    "smollm3": {"no_rope_layer_interval": 2},
    "olmo2": {},
    "phi3": {"pad_token_id": 0},
    "granite": {"logits_scaling": 2.0, "initializer_range": 0.2},
    "gpt2": {},
}
SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
TOKENS = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "initializer_range")
SMALL = {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 128, "n_inner": 80}


def config(family, **more):
    sizes = {key: SIZES[key] for key in TOKENS} | SMALL if family == "gpt2" else SIZES
    sizes = sizes | FAMILIES.get(family, {}) | more
    return transformers.AutoConfig.for_model(family.removesuffix("-windowed"), **sizes)


def twins(family, **more):
    """The same model twice: with transformers' own attention, and with ours."""
    torch.manual_seed(1)
    auto = transformers.AutoModelForCausalLM
    plain = auto.from_config(config(family, **more), attn_implementation="eager").eval()
    ours = auto.from_config(config(family, **more), attn_implementation="branchwise").eval()
    ours.load_state_dict(plain.state_dict())
    return plain, ours
