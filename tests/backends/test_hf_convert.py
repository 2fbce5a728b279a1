import re

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

from tokenizers.pre_tokenizers import ByteLevel  # noqa: E402  (as below)

from branchwise.backends import models  # noqa: E402  (after the check that torch is there)

SIZE, HEADS, KEY_HEADS, INNER = 32, 4, 2, 64
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture
def file(tmp_path):
    """A llama of one layer and a byte-level vocabulary, as llama.cpp would write it."""
    numbers = torch.Generator().manual_seed(0)
    letters = sorted(ByteLevel.alphabet())
    vocabulary = [*SPECIALS, *letters, "ab"]
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(SIZE)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3] * 3 + [1] * 257)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages[0].content }}")
    keys = KEY_HEADS * SIZE // HEADS
    shapes = {
        "token_embd": (len(vocabulary), SIZE),
        "output_norm": (SIZE,),
        "blk.0.attn_norm": (SIZE,),
        "blk.0.attn_q": (SIZE, SIZE),
        "blk.0.attn_k": (keys, SIZE),
        "blk.0.attn_v": (keys, SIZE),
        "blk.0.attn_output": (SIZE, SIZE),
        "blk.0.ffn_norm": (SIZE,),
        "blk.0.ffn_gate": (INNER, SIZE),
        "blk.0.ffn_up": (INNER, SIZE),
        "blk.0.ffn_down": (SIZE, INNER),
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", 0.2 * torch.randn(shape, generator=numbers).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gguf_file_becomes_a_plain_folder(file, tmp_path, monkeypatch, capfd, dtype):
    monkeypatch.setenv("BRANCHWISE_CACHE", str(tmp_path / "cache"))
    folder = models.folder(str(file), dtype)
    assert re.fullmatch(rf".*: converting to {dtype}, once .*\n", capfd.readouterr().err)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert model.dtype == getattr(torch, dtype)
    assert not hasattr(model.config, "quantization_config")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer.encode("ab é")) == "ab é"
    assert tokenizer.chat_template == "{{ messages[0].content }}"
    assert model.generation_config.eos_token_id == [0, 2]  # both ends, though the file names one
    original = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    tokens = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        difference = model(tokens).logits.float() - original(tokens).logits
    assert difference.abs().max() < (1e-5 if dtype == "float32" else 0.05)
