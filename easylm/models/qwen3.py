"""Qwen 3 (dense): a norm on each query and key head, no biases, free head_dim."""

from dataclasses import replace

from easylm.models.transformer import TransformerConfig

_BASE = TransformerConfig(
    vocab_size=151_936,
    dim=4096,
    layers=36,
    heads=32,
    kv_heads=8,
    mlp_dim=12_288,
    head_dim=128,
    max_len=40_960,
    rope_theta=1_000_000.0,
    norm_eps=1e-6,
    qk_norm="head",
)

VARIANTS = {
    "0.6b": replace(_BASE, dim=1024, layers=28, heads=16, mlp_dim=3072, tied=True),
    "1.7b": replace(_BASE, dim=2048, layers=28, heads=16, mlp_dim=6144, tied=True),
    "4b": replace(_BASE, dim=2560, layers=36, heads=32, mlp_dim=9728, tied=True),
    "8b": _BASE,
    "14b": replace(_BASE, dim=5120, layers=40, heads=40, mlp_dim=17_408),
    "32b": replace(_BASE, dim=5120, layers=64, heads=64, mlp_dim=25_600),
    "tiny": TransformerConfig(
        vocab_size=256,
        dim=64,
        layers=2,
        heads=8,
        kv_heads=2,
        mlp_dim=128,
        head_dim=16,
        max_len=512,
        rope_theta=1_000_000.0,
        norm_eps=1e-6,
        qk_norm="head",
        tied=True,
        dtype="float32",
        remat="none",
    ),
}
