"""Mistral 7B. The first version looks back through a sliding window of 4,096 tokens."""

from dataclasses import replace

from easylm.models.transformer import TransformerConfig

_V1 = TransformerConfig(
    vocab_size=32_000,
    dim=4096,
    layers=32,
    heads=32,
    kv_heads=8,
    mlp_dim=14_336,
    max_len=32_768,
    sliding_window=4096,
)

VARIANTS = {
    "7b-v0.1": _V1,
    "7b-v0.2": replace(_V1, sliding_window=None, rope_theta=1_000_000.0),
    "7b-v0.3": replace(
        _V1, vocab_size=32_768, sliding_window=None, rope_theta=1_000_000.0
    ),
    "tiny": TransformerConfig(
        vocab_size=256,
        dim=64,
        layers=2,
        heads=8,
        kv_heads=2,
        mlp_dim=128,
        max_len=512,
        sliding_window=8,
        dtype="float32",
        remat="none",
    ),
}
