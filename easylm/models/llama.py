"""Llama 1, 2, 3, 3.1, 3.2 and CodeLlama and Yi, which differ in numbers only.

Shapes are those of the published config.json files.
"""

from dataclasses import replace

from easylm.models.transformer import RopeScaling, TransformerConfig

_LLAMA_1 = TransformerConfig(
    vocab_size=32_000,
    dim=4096,
    layers=32,
    heads=32,
    kv_heads=32,
    mlp_dim=11_008,
    max_len=2048,
    norm_eps=1e-6,
)
_LLAMA_2 = replace(_LLAMA_1, max_len=4096, norm_eps=1e-5)
_LLAMA_3 = replace(
    _LLAMA_2,
    vocab_size=128_256,
    kv_heads=8,
    mlp_dim=14_336,
    max_len=8192,
    rope_theta=500_000.0,
)
_LLAMA_31 = replace(_LLAMA_3, max_len=131_072, rope_scaling=RopeScaling(factor=8.0))
_LLAMA_32 = replace(_LLAMA_31, rope_scaling=RopeScaling(factor=32.0), tied=True)
_CODE = replace(_LLAMA_2, vocab_size=32_016, max_len=16_384, rope_theta=1_000_000.0)

_13B = dict(dim=5120, layers=40, heads=40, kv_heads=40, mlp_dim=13_824)
_34B = dict(dim=8192, layers=48, heads=64, kv_heads=8, mlp_dim=22_016)
_70B = dict(dim=8192, layers=80, heads=64, kv_heads=8, mlp_dim=28_672)

VARIANTS = {
    "1-7b": _LLAMA_1,
    "1-13b": replace(_LLAMA_1, **_13B),
    "1-30b": replace(
        _LLAMA_1, dim=6656, layers=60, heads=52, kv_heads=52, mlp_dim=17_920
    ),
    "1-65b": replace(
        _LLAMA_1,
        dim=8192,
        layers=80,
        heads=64,
        kv_heads=64,
        mlp_dim=22_016,
        norm_eps=1e-5,
    ),
    "2-7b": _LLAMA_2,
    "2-13b": replace(_LLAMA_2, **_13B),
    "2-70b": replace(_LLAMA_2, **_70B),
    "3-8b": _LLAMA_3,
    "3-70b": replace(_LLAMA_3, **_70B),
    "3.1-8b": _LLAMA_31,
    "3.1-70b": replace(_LLAMA_31, **_70B),
    "3.1-405b": replace(
        _LLAMA_31, dim=16_384, layers=126, heads=128, kv_heads=8, mlp_dim=53_248
    ),
    "3.2-1b": replace(
        _LLAMA_32, dim=2048, layers=16, heads=32, mlp_dim=8192, head_dim=64
    ),
    "3.2-3b": replace(
        _LLAMA_32, dim=3072, layers=28, heads=24, mlp_dim=8192, head_dim=128
    ),
    "3.3-70b": replace(_LLAMA_31, **_70B),
    "code-7b": _CODE,
    "code-13b": replace(_CODE, **_13B),
    "code-34b": replace(_CODE, vocab_size=32_000, **_34B),
    "code-70b": replace(_CODE, **_70B),
    # Instruct and Python 70B had no long-context training.
    "code-70b-instruct": replace(_CODE, max_len=4096, rope_theta=10_000.0, **_70B),
    "yi-6b": replace(
        _LLAMA_2, vocab_size=64_000, kv_heads=4, rope_theta=5_000_000.0, norm_eps=1e-5
    ),
    "yi-34b": replace(
        _LLAMA_2,
        vocab_size=64_000,
        dim=7168,
        layers=60,
        heads=56,
        kv_heads=8,
        mlp_dim=20_480,
        rope_theta=5_000_000.0,
    ),
    # Learns to talk from scratch on a laptop: see configs/study/world.py.
    "1m": TransformerConfig(
        vocab_size=768,
        dim=128,
        layers=4,
        heads=4,
        kv_heads=4,
        mlp_dim=352,
        max_len=512,
        dtype="float32",
        remat="none",
    ),
    "tiny": TransformerConfig(
        vocab_size=256,
        dim=64,
        layers=2,
        heads=8,
        kv_heads=4,
        mlp_dim=128,
        max_len=512,
        rope_theta=500_000.0,
        rope_scaling=RopeScaling(original_len=64),
        dtype="float32",
        remat="none",
    ),
}
