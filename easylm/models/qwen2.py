"""Qwen 2 and 2.5: Llama with biases on the query, key and value projections."""

from dataclasses import replace

from easylm.models.transformer import TransformerConfig

_BASE = TransformerConfig(
    vocab_size=152_064,
    dim=3584,
    layers=28,
    heads=28,
    kv_heads=4,
    mlp_dim=18_944,
    max_len=131_072,
    rope_theta=1_000_000.0,
    norm_eps=1e-6,
    qkv_bias=True,
)
_SMALL = replace(_BASE, vocab_size=151_936, max_len=32_768, tied=True)
_05B = dict(dim=896, layers=24, heads=14, kv_heads=2, mlp_dim=4864, head_dim=64)
_15B = dict(dim=1536, layers=28, heads=12, kv_heads=2, mlp_dim=8960)
_3B = dict(dim=2048, layers=36, heads=16, kv_heads=2, mlp_dim=11_008)
_14B = dict(dim=5120, layers=48, heads=40, kv_heads=8, mlp_dim=13_824, norm_eps=1e-5)
_32B = dict(dim=5120, layers=64, heads=40, kv_heads=8, mlp_dim=27_648, norm_eps=1e-5)
_72B = dict(dim=8192, layers=80, heads=64, kv_heads=8, mlp_dim=29_568, norm_eps=1e-5)

VARIANTS = {
    "2-0.5b": replace(_SMALL, max_len=131_072, **_05B),
    "2-1.5b": replace(_SMALL, max_len=131_072, **_15B),
    "2-7b": _BASE,
    "2-72b": replace(_BASE, **_72B),
    "2.5-0.5b": replace(_SMALL, **_05B),
    "2.5-1.5b": replace(_SMALL, max_len=131_072, **_15B),
    "2.5-3b": replace(_SMALL, **_3B),
    "2.5-7b": _BASE,
    "2.5-14b": replace(_BASE, **_14B),
    "2.5-32b": replace(_BASE, **_32B),
    "2.5-72b": replace(_BASE, **_72B),
    "tiny": TransformerConfig(
        vocab_size=256,
        dim=64,
        layers=2,
        heads=8,
        kv_heads=2,
        mlp_dim=128,
        max_len=512,
        rope_theta=1_000_000.0,
        norm_eps=1e-6,
        qkv_bias=True,
        tied=True,
        dtype="float32",
        remat="none",
    ),
}
