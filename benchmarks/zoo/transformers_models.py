"""Tiny configurations of the models of transformers, built from their configuration classes, and adapters of peft."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from benchmarks.zoo.specimen import Entry, NoSpecimen, Specimen, against_noise

MOST = 8_000_000  # parameters
FIRST = (
    "gpt2", "bert", "llama", "mixtral", "siglip_vision_model", "wavlm", "funnel", "qwen2_moe", "deepseek_v3",
    "granitemoe", "gpt_oss", "patchtst", "vit", "t5", "mamba", "opt", "bloom", "gemma3_text", "qwen3_moe", "wav2vec2",
    "distilbert", "electra", "deberta-v2", "albert", "roberta", "xlnet", "gpt_neox", "phi3", "olmoe", "jamba", "rwkv",
    "convnextv2", "swinv2", "dinov2", "segformer", "mobilevit", "resnet", "clip", "whisper", "bart", "big_bird",
    "longformer", "reformer", "nystromformer", "fnet", "mpt", "falcon", "mamba2", "qwen3_next", "perceiver",
)  # fmt: skip
WIDTHS = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_decoder_layers", "num_encoder_layers", "depth"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads",), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("intermediate_size", "d_ff", "n_inner", "d_inner", "ffn_dim"), 48),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 24),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_top_k", "num_experts_per_token"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "kv_channels", "d_head", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "attention_head_size"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_source_positions", "max_target_positions"), 128),
    "vocab_size": 99, "image_size": 32, "patch_size": 8, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    "sliding_window": 16, "num_mel_bins": 16, "attention_window": 8, "block_size": 8, "max_seq_len": 128,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "projection_dim": 32, "state_size": 8,
    "use_cache": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip

STAGES = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2]}
DEEPSEEK = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 16,
    "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "use_cache": False,
}  # fmt: skip
WHOLE: dict[str, dict[str, Any]] = {  # where names do not tell enough
    "funnel": {"vocab_size": 99, "block_sizes": [1, 1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48},
    "mamba2": {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 8,
               "state_size": 8, "n_groups": 2, "use_cache": False},
    "reformer": {"vocab_size": 99, "hidden_size": 32, "num_attention_heads": 2, "attention_head_size": 16,
                 "feed_forward_size": 48, "attn_layers": ["local", "lsh"], "axial_pos_shape": [4, 4],
                 "axial_pos_embds_dim": [16, 16], "local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4,
                 "num_buckets": 2, "hash_seed": 0, "is_decoder": False},
    "swin": {"image_size": 32, "patch_size": 4, "window_size": 4, **STAGES},
    "swinv2": {"image_size": 32, "patch_size": 4, "window_size": 4, **STAGES},
    "donut-swin": {"image_size": 32, "patch_size": 4, "window_size": 4, **STAGES},
    "convnext": {"num_stages": 2, "hidden_sizes": [16, 32], "depths": [1, 1], "image_size": 32},
    "convnextv2": {"num_stages": 2, "hidden_sizes": [16, 32], "depths": [1, 1], "image_size": 32},
    "perceiver": {"num_latents": 8, "d_latents": 16, "d_model": 16, "num_blocks": 1, "num_self_attends_per_block": 2,
                  "num_self_attention_heads": 2, "num_cross_attention_heads": 2},
    "deepseek_v3": DEEPSEEK,
    "deepseek_v2": DEEPSEEK,
}  # fmt: skip


def entries() -> Iterator[Entry]:
    """Those that were found to be hard first, then every other one, in an order that mixes the alphabet."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    for kind in (_lora, _ia3, _vera, _prefix, _dora, _adalora):
        yield Entry("peft", kind.__name__[1:], kind)
    names = [n for n in FIRST if n in MODEL_MAPPING_NAMES]
    rest = [n for n in MODEL_MAPPING_NAMES if n not in names]
    for name in names + [n for start in range(7) for n in rest[start::7]]:
        yield Entry("transformers", name, functools.partial(_specimen, name))


def _specimen(name: str) -> Specimen:
    model = _tiny(name)
    reasons = []
    for made in (_text, _seq2seq, _images, _speech, _features, _text_and_images, _series):
        inputs = [made(model, n) for n in (3, 2)]
        try:
            torch.manual_seed(1)
            return against_noise(model, inputs, [3, 2])
        except Exception as error:  # noqa: BLE001 - another kind of input may be meant
            reasons.append(f"{made.__name__}: {error}")
    raise NoSpecimen("; ".join(reasons)[:300])


def _tiny(name: str) -> nn.Module:
    from transformers import AutoModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    torch.manual_seed(0)
    kind = CONFIG_MAPPING[name]
    config = _shrunk(kind)
    chosen = AutoModel._model_mapping[kind]
    config.architectures = [(chosen[0] if isinstance(chosen, tuple) else chosen).__name__]
    with torch.device("meta"):
        count = sum(p.numel() for p in AutoModel.from_config(config).parameters())
    if count > MOST:
        raise NoSpecimen(f"{count:,} parameters")
    return AutoModel.from_config(config).eval()


def _shrunk(kind: type) -> Any:
    """The configuration with everything small that can be told by its name."""
    given = kind()
    known = {key: value for key, value in WIDTHS.items() if _settable(given, key)}
    lists = {}
    for key, value in given.to_dict().items():  # widths and depths of stages
        if isinstance(value, (list, tuple)) and value and all(isinstance(v, int) for v in value) and "layer" not in key:
            if key in ("depths", "num_blocks"):
                lists[key] = [1] * len(value)
            elif key in ("hidden_sizes", "embed_dims", "encoder_hidden_size", "conv_dim"):
                lists[key] = [16 * (i + 1) for i in range(len(value))] if key != "conv_dim" else [16] * len(value)
    chosen = WHOLE.get(given.model_type) or _accepted(kind, {**known, **lists})
    for sub in getattr(kind, "sub_configs", {}):
        part = getattr(given, sub, None)
        if part is not None:
            chosen = {**chosen, **_accepted(kind, {sub: _shrunk(type(part)).to_dict()}, chosen)}
    return kind(**chosen)


def _accepted(kind: type, wanted: dict[str, Any], given: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the configuration takes of it; twice, as some is taken only beside the rest."""
    chosen: dict[str, Any] = {}
    for key, value in [*wanted.items()] * 2:
        with contextlib.suppress(Exception):
            kind(**{**(given or {}), **chosen, key: value})
            chosen[key] = value
    return chosen


def _settable(config: Any, key: str) -> bool:
    with contextlib.suppress(Exception):
        return getattr(config, key, None) is not None
    return False


def _tokens(n: int, length: int = 16) -> torch.Tensor:
    return torch.randint(3, 90, (n, length), generator=torch.Generator().manual_seed(n))


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(shape[0]))


def _text(model: nn.Module, n: int) -> dict[str, Any]:
    return {"input_ids": _tokens(n), "attention_mask": torch.ones(n, 16, dtype=torch.long)}


def _seq2seq(model: nn.Module, n: int) -> dict[str, Any]:
    return {"input_ids": _tokens(n), "decoder_input_ids": _tokens(n, 8)}


def _side(model: nn.Module) -> int:
    size = getattr(model.config, "image_size", 64)
    return size if isinstance(size, int) else 64


def _images(model: nn.Module, n: int) -> dict[str, Any]:
    side = _side(model)
    return {"pixel_values": _noise(n, getattr(model.config, "num_channels", 3) or 3, side, side)}


def _text_and_images(model: nn.Module, n: int) -> dict[str, Any]:
    vision = getattr(model.config, "vision_config", model.config)
    side = getattr(vision, "image_size", 32)
    return {"input_ids": _tokens(n), "pixel_values": _noise(n, 3, side, side)}


def _speech(model: nn.Module, n: int) -> dict[str, Any]:
    return {"input_values": _noise(n, 1600)}


def _features(model: nn.Module, n: int) -> dict[str, Any]:
    bins = getattr(model.config, "num_mel_bins", 16)
    length = 2 * (getattr(model.config, "max_source_positions", None) or 32)
    inputs: dict[str, Any] = {"input_features": _noise(n, bins, length)}
    if getattr(model.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = _tokens(n, 8)
    return inputs


def _series(model: nn.Module, n: int) -> dict[str, Any]:
    config = model.config
    return {"past_values": _noise(n, getattr(config, "context_length", 32), getattr(config, "num_input_channels", 1))}


# ---- peft


def _adapted(name: str, config: Callable[[Any], Any], **options: Any) -> Specimen:
    import peft
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    llama = LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=99, max_position_embeddings=64, use_cache=False)
    model = peft.get_peft_model(AutoModelForCausalLM.from_config(llama), config(peft)).eval()
    return against_noise(model, [_text(model, n) for n in (3, 2)], [3, 2])


TARGETS = ["q_proj", "v_proj", "down_proj"]


def _lora() -> Specimen:
    return _adapted("lora", lambda p: p.LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM"))


def _dora() -> Specimen:
    return _adapted("dora", lambda p: p.LoraConfig(r=4, target_modules=TARGETS, use_dora=True, task_type="CAUSAL_LM"))


def _adalora() -> Specimen:
    return _adapted("adalora", lambda p: p.AdaLoraConfig(target_modules=TARGETS, total_step=9, task_type="CAUSAL_LM"))


def _ia3() -> Specimen:
    chosen = {"target_modules": TARGETS, "feedforward_modules": ["down_proj"]}
    return _adapted("ia3", lambda p: p.IA3Config(**chosen, task_type="CAUSAL_LM"))


def _vera() -> Specimen:
    return _adapted("vera", lambda p: p.VeraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))


def _prefix() -> Specimen:
    return _adapted("prefix", lambda p: p.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"))
