"""OLMo 2: norms after attention and MLP, and one norm over all query or key heads."""

from dataclasses import replace

from easylm.models.transformer import TransformerConfig

_BASE = TransformerConfig(
    vocab_size=100_352,
    dim=4096,
    layers=32,
    heads=32,
    kv_heads=32,
    mlp_dim=11_008,
    max_len=4096,
    rope_theta=500_000.0,
    norm_eps=1e-6,
    qk_norm="full",
    post_norm=True,
)

VARIANTS = {
    "1b": replace(_BASE, dim=2048, layers=16, heads=16, kv_heads=16, mlp_dim=8192),
    "7b": _BASE,
    "13b": replace(_BASE, dim=5120, layers=40, heads=40, kv_heads=40, mlp_dim=13_824),
    "32b": replace(_BASE, dim=5120, layers=64, heads=40, kv_heads=8, mlp_dim=27_648),
    "tiny": TransformerConfig(
        vocab_size=256,
        dim=64,
        layers=2,
        heads=8,
        kv_heads=4,
        mlp_dim=128,
        max_len=512,
        rope_theta=500_000.0,
        norm_eps=1e-6,
        qk_norm="full",
        post_norm=True,
        dtype="float32",
        remat="none",
    ),
}
