"""Every preset has the size and the settings that were published for it."""

import json
from dataclasses import replace

import pytest

from easylm.models import base, hf, transformer
from easylm.models.transformer import RopeScaling

# Parameters of the published checkpoints (tied embeddings counted once), then
# longest row, rotary base and epsilon of their config.json.
PUBLISHED = {
    "llama:1-7b": (6_738_415_616, 2048, 1e4, 1e-6),
    "llama:1-13b": (13_015_864_320, 2048, 1e4, 1e-6),
    "llama:1-30b": (32_528_943_616, 2048, 1e4, 1e-6),
    "llama:1-65b": (65_285_660_672, 2048, 1e4, 1e-5),
    "llama:2-7b": (6_738_415_616, 4096, 1e4, 1e-5),
    "llama:2-13b": (13_015_864_320, 4096, 1e4, 1e-5),
    "llama:2-70b": (68_976_648_192, 4096, 1e4, 1e-5),
    "llama:3-8b": (8_030_261_248, 8192, 5e5, 1e-5),
    "llama:3-70b": (70_553_706_496, 8192, 5e5, 1e-5),
    "llama:3.1-8b": (8_030_261_248, 131_072, 5e5, 1e-5),
    "llama:3.1-70b": (70_553_706_496, 131_072, 5e5, 1e-5),
    "llama:3.1-405b": (405_853_388_800, 131_072, 5e5, 1e-5),
    "llama:3.2-1b": (1_235_814_400, 131_072, 5e5, 1e-5),
    "llama:3.2-3b": (3_212_749_824, 131_072, 5e5, 1e-5),
    "llama:3.3-70b": (70_553_706_496, 131_072, 5e5, 1e-5),
    "llama:code-7b": (6_738_546_688, 16_384, 1e6, 1e-5),
    "llama:code-13b": (13_016_028_160, 16_384, 1e6, 1e-5),
    "llama:code-34b": (33_743_970_304, 16_384, 1e6, 1e-5),
    "llama:code-70b": (68_976_910_336, 16_384, 1e6, 1e-5),
    "llama:code-70b-instruct": (68_976_910_336, 4096, 1e4, 1e-5),
    "llama:yi-6b": (6_061_035_520, 4096, 5e6, 1e-5),
    "llama:yi-34b": (34_388_917_248, 4096, 5e6, 1e-5),
    "mistral:7b-v0.1": (7_241_732_096, 32_768, 1e4, 1e-5),
    "mistral:7b-v0.2": (7_241_732_096, 32_768, 1e6, 1e-5),
    "mistral:7b-v0.3": (7_248_023_552, 32_768, 1e6, 1e-5),
    "qwen2:2-0.5b": (494_032_768, 131_072, 1e6, 1e-6),
    "qwen2:2-1.5b": (1_543_714_304, 131_072, 1e6, 1e-6),
    "qwen2:2-7b": (7_615_616_512, 131_072, 1e6, 1e-6),
    "qwen2:2-72b": (72_706_203_648, 131_072, 1e6, 1e-5),
    "qwen2:2.5-0.5b": (494_032_768, 32_768, 1e6, 1e-6),
    "qwen2:2.5-1.5b": (1_543_714_304, 131_072, 1e6, 1e-6),
    "qwen2:2.5-3b": (3_085_938_688, 32_768, 1e6, 1e-6),
    "qwen2:2.5-7b": (7_615_616_512, 131_072, 1e6, 1e-6),
    "qwen2:2.5-14b": (14_770_033_664, 131_072, 1e6, 1e-5),
    "qwen2:2.5-32b": (32_763_876_352, 131_072, 1e6, 1e-5),
    "qwen2:2.5-72b": (72_706_203_648, 131_072, 1e6, 1e-5),
    "qwen3:0.6b": (596_049_920, 40_960, 1e6, 1e-6),
    "qwen3:1.7b": (1_720_574_976, 40_960, 1e6, 1e-6),
    "qwen3:4b": (4_022_468_096, 40_960, 1e6, 1e-6),
    "qwen3:8b": (8_190_735_360, 40_960, 1e6, 1e-6),
    "qwen3:14b": (14_768_307_200, 40_960, 1e6, 1e-6),
    "qwen3:32b": (32_762_123_264, 40_960, 1e6, 1e-6),
    "olmo2:1b": (1_484_916_736, 4096, 5e5, 1e-6),
    "olmo2:7b": (7_298_617_344, 4096, 5e5, 1e-6),
    "olmo2:13b": (13_716_198_400, 4096, 5e5, 1e-6),
    "olmo2:32b": (32_234_279_936, 4096, 5e5, 1e-6),
}
TIED = {
    *("llama:3.2-1b", "llama:3.2-3b", "qwen2:2-0.5b", "qwen2:2-1.5b"),
    *("qwen2:2.5-0.5b", "qwen2:2.5-1.5b", "qwen2:2.5-3b"),
    *("qwen3:0.6b", "qwen3:1.7b", "qwen3:4b"),
}
TINY = {f"{family}:tiny" for family in ("llama", "mistral", "qwen2", "qwen3", "olmo2")}
OWN = TINY | {"llama:1m"}  # made here, published nowhere


def test_every_preset_is_in_the_table_and_every_family_has_a_tiny_one():
    assert base.variants().keys() == PUBLISHED.keys() | OWN


@pytest.mark.parametrize("name", PUBLISHED)
def test_preset_is_the_published_model(name):
    config = base.config_for(name)
    size = base.count(transformer.make(config).spec)
    assert PUBLISHED[name] == (size, config.max_len, config.rope_theta, config.norm_eps)
    assert config.tied == (name in TIED)


def test_presets_differ_where_the_families_do():
    for name, config in base.variants().items():
        family, _, size = name.partition(":")
        assert config.qkv_bias == (family == "qwen2")
        assert config.qk_norm == {"qwen3": "head", "olmo2": "full"}.get(family, "")
        assert config.post_norm == (family == "olmo2")
        if name not in OWN:
            stretched = {"3.1": 8.0, "3.2": 32.0, "3.3": 8.0}.get(size[:3])
            scaling = RopeScaling("llama3", stretched, 1.0, 4.0, 8192)
            is_new = family == "llama" and stretched
            assert config.rope_scaling == (scaling if is_new else None)
            assert config.sliding_window == (4096 if size == "7b-v0.1" else None)


@pytest.mark.parametrize("name", [*PUBLISHED, *sorted(OWN)])
def test_preset_survives_its_config_json(name, tmp_path):
    config = base.config_for(name)
    (tmp_path / "config.json").write_text(json.dumps(hf.config_to_hf(config)))
    how = dict(dtype=config.dtype, remat=config.remat)
    assert replace(hf.config_from_hf(tmp_path), **how) == config
