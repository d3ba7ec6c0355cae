"""Weights in and out of Hugging Face directories, compared with `transformers`."""

import json
import os
import resource
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from fsspec.implementations.local import LocalFileSystem

from easylm.data import tokenizer as tokenizers
from easylm.errors import UserError
from easylm.models import base, hf, lora, safetensors, transformer
from easylm.sharding import make_layout
from tests.conftest import FAST
from tests.several import free_port

# Tiny, but with every axis of its own length, GQA, and more layers than one.
_SIZES = dict(
    vocab_size=160,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
    initializer_range=0.2,
)
_LLAMA3_ROPE = dict(
    rope_type="llama3",
    rope_theta=100.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
_LINEAR_ROPE = dict(rope_type="linear", rope_theta=100.0, factor=4.0)
CASES = {
    "llama": ("Llama", dict(rms_norm_eps=1e-5)),
    "llama3-tied": (
        "Llama",
        dict(rope_parameters=_LLAMA3_ROPE, tie_word_embeddings=True, head_dim=16),
    ),
    "llama-linear": ("Llama", dict(rope_parameters=_LINEAR_ROPE)),
    "mistral": ("Mistral", dict(sliding_window=5)),
    "mistral-whole": ("Mistral", dict(sliding_window=None, head_dim=10)),
    "qwen2-tied": ("Qwen2", dict(tie_word_embeddings=True)),
    "qwen2-window": (
        "Qwen2",
        dict(use_sliding_window=True, sliding_window=4, max_window_layers=1),
    ),
    "qwen3": ("Qwen3", dict(head_dim=16)),
    "olmo2": ("Olmo2", {}),
}
ROWS = np.random.default_rng(0).integers(0, 160, (2, 24)).astype(np.int32)
CUT = 10  # the second row holds two documents: [:CUT] and [CUT:]


@pytest.fixture(scope="module")
def checkpoint(torch, transformers, tmp_path_factory):
    """case -> the directory of a random checkpoint, written by transformers."""
    folder, made = tmp_path_factory.mktemp("checkpoints"), {}

    def make(case: str) -> Path:
        if case not in made:
            family, options = CASES[case]
            config = getattr(transformers, f"{family}Config")(**_SIZES | options)
            torch.manual_seed(0)
            theirs = getattr(transformers, f"{family}ForCausalLM")(config)
            for name, x in theirs.named_parameters():
                if x.ndim == 1:  # norms start at one and biases at zero
                    torch.nn.init.normal_(x.data, 1.0 if "norm" in name else 0.0, 0.3)
            theirs.save_pretrained(folder / case)
            made[case] = folder / case
        return made[case]

    return make


@pytest.fixture(scope="module")
def loaded(checkpoint):
    """case -> (model, parameters)."""
    made = {}

    def load(case: str):
        if case not in made:
            model = model_of(checkpoint(case))
            made[case] = model, hf.load(checkpoint(case), model)
        return made[case]

    return load


@pytest.fixture
def copy(checkpoint, tmp_path):
    """A copy of the plain Llama that a test may damage."""
    return Path(shutil.copytree(checkpoint("llama"), tmp_path / "copy"))


def model_of(path, **options):
    config = hf.config_from_hf(path)
    return transformer.make(replace(config, dtype="float32", remat="none", **options))


def our_logits(model, params):
    """[2, 24, V] with the second row packed."""
    segments, positions = np.ones_like(ROWS), np.tile(np.arange(24), (2, 1))
    segments[1, CUT:] = 2
    positions[1, CUT:] -= CUT

    @jax.jit
    def logits(params):
        hidden, _ = model.forward(params, ROWS, positions, segments)
        return hidden @ model.unembed(params)

    return np.asarray(logits(params))


def their_logits(torch, theirs):
    """The same from transformers, which sees each document by itself."""
    run = lambda ids: theirs(torch.tensor(ids[None]).long()).logits[0].numpy()
    with torch.no_grad():
        second = np.concatenate([run(ROWS[1, :CUT]), run(ROWS[1, CUT:])])
        return np.stack([run(ROWS[0]), second])


def read(torch, transformers, path):
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def tensors(path) -> dict[str, np.ndarray]:
    fs = fsspec.filesystem("file")
    files = sorted(str(f) for f in Path(path).glob("*.safetensors"))
    found = {k: t for f in files for k, t in safetensors.tensors(fs, f).items()}
    return {name: safetensors.read(t) for name, t in found.items()}


def same_bits(one: dict, other: dict):
    assert one.keys() == other.keys()
    for name, x in one.items():
        y = np.asarray(other[name])
        assert x.dtype == y.dtype, name
        assert np.asarray(x).tobytes() == y.tobytes(), name


def write_tensors(path, arrays: dict[str, np.ndarray]):
    from safetensors.numpy import save_file

    save_file(arrays, path, metadata={"format": "pt"})


def edit_config(path: Path, **fields):
    raw = json.loads((path / "config.json").read_text()) | fields
    (path / "config.json").write_text(json.dumps(raw))


def flat(params):
    return flatten_dict(params, sep="/")


# Parity.


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers_in_and_out(
    case, checkpoint, loaded, torch, transformers, tmp_path
):
    path, (model, params) = checkpoint(case), loaded(case)
    theirs = their_logits(torch, read(torch, transformers, path))
    ours = our_logits(model, params)
    assert np.ptp(theirs) > 1  # not a comparison of zeros
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)

    hf.save(tmp_path / "out", params, model.config, dtype="float32")
    same_bits(tensors(path), tensors(tmp_path / "out"))
    again = their_logits(torch, read(torch, transformers, tmp_path / "out"))
    np.testing.assert_array_equal(again, theirs)
    assert hf.config_from_hf(tmp_path / "out") == hf.config_from_hf(path)


@pytest.mark.parametrize("case", ["qwen2-tied", "olmo2"])
def test_bfloat16_goes_in_and_out_without_a_change(case, loaded, tmp_path):
    model, params = loaded(case)
    hf.save(tmp_path / "one", params, model.config)
    hf.save(
        tmp_path / "two",
        hf.load(tmp_path / "one", model),
        model.config,
        dtype="bfloat16",
    )
    one = tensors(tmp_path / "one")
    assert {str(x.dtype) for x in one.values()} == {"bfloat16"}
    same_bits(one, tensors(tmp_path / "two"))
    half = model._replace(spec=base.cast(model.spec, "bfloat16"))
    kept = flat(hf.load(tmp_path / "two", half))
    assert {str(x.dtype) for x in kept.values()} == {"bfloat16"}


def test_float16_checkpoints_are_read(copy, loaded):
    small = {k: x.astype(np.float16) for k, x in tensors(copy).items()}
    write_tensors(copy / "model.safetensors", small)
    model, exact = loaded("llama")
    for name, x in flat(hf.load(copy, model)).items():
        rounded = np.asarray(flat(exact)[name]).astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(x, rounded)


# The mesh.


class Counting(LocalFileSystem):
    """Local files under counting://, noting each range that is read."""

    protocol = "counting"
    cachable = True
    reads: tuple = []

    @classmethod
    def _strip_protocol(cls, path):
        return LocalFileSystem._strip_protocol(path.removeprefix("counting://"))

    def cat_file(self, path, start=None, end=None, **kwargs):
        self.reads.append((path, start, end))
        return super().cat_file(path, start, end, **kwargs)


fsspec.register_implementation("counting", Counting, clobber=True)


def data_reads(run) -> list[int]:
    """Sizes of the ranges of weights that `run` reads."""
    Counting.reads = []
    run()
    ranges = [r for r in Counting.reads if r[0].endswith(".safetensors")]
    headers = {
        f: 8 + struct.unpack("<Q", Path(f).read_bytes()[:8])[0] for f, *_ in ranges
    }
    return [end - start for f, start, end in ranges if start >= headers[f]]


@pytest.mark.parametrize("mesh", ["fsdp=4,tensor=2", "data=2,tensor=2,context=2"])
def test_eight_devices_hold_what_one_holds_and_each_byte_is_read_once(
    mesh, checkpoint, loaded
):
    path, (model, params) = checkpoint("qwen2-window"), loaded("qwen2-window")
    layout, out = make_layout(mesh), {}
    sizes = data_reads(lambda: out.update(hf.load(f"counting://{path}", model, layout)))
    same_bits(flat(params), flat(out))
    shardings = base.shardings(model.spec, layout)
    for name, x in flat(out).items():
        assert x.sharding == flat(shardings)[name], name
    weights = tensors(path)
    assert sum(sizes) == sum(x.nbytes for x in weights.values())
    assert max(sizes) == max(x.nbytes for x in weights.values()) // 8


_PROCESS = """
import sys, jax
rank, port, source, target, tests = sys.argv[1:]
jax.distributed.initialize(f"localhost:{port}", 2, int(rank))
sys.path.insert(0, tests)
from test_hf import data_reads, hf, make_layout, model_of
model, layout, out = model_of(source), make_layout("fsdp=2,tensor=2"), {}
sizes = data_reads(lambda: out.update(hf.load(f"counting://{source}", model, layout)))
hf.save(target, out, model.config, dtype="float32", max_shard_bytes=9_000)
print("read", sum(sizes))
try:
    hf.save(target, out, model.config)
except hf.UserError as e:
    print("refused", e)
"""


def test_two_processes_read_half_each_and_write_the_checkpoint_back(
    checkpoint, tmp_path
):
    path = checkpoint("qwen3")
    port = free_port()
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count=2 {FAST}",
        "PYTHONPATH": str(Path(hf.__file__).parents[2]),
    }
    start = lambda rank: subprocess.Popen(
        [sys.executable, "-c", _PROCESS, str(rank), str(port), path]
        + [tmp_path / "out", Path(__file__).parent],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    outputs = [p.communicate(timeout=120) for p in [start(0), start(1)]]
    half = sum(x.nbytes for x in tensors(path).values()) // 2
    for out, err in outputs:
        assert f"read {half}\n" in out, err
        assert "refused" in out, err
    same_bits(tensors(path), tensors(tmp_path / "out"))


# What is wrong with a checkpoint is said before anything is loaded.


def error(path, model=None, **options) -> str:
    with pytest.raises(UserError) as e:
        hf.load(path, model or model_of(path), **options)
    assert "\n" not in str(e.value)
    return str(e.value)


def test_missing_tensor_is_named_on_both_sides(copy):
    arrays = tensors(copy)
    del arrays["model.layers.1.self_attn.k_proj.weight"]
    write_tensors(copy / "model.safetensors", arrays)
    message = error(copy)
    assert "model.layers.1.self_attn.k_proj.weight (layers/attn/k)" in message
    assert "missing" in message


def test_extra_tensor_is_named_but_old_rotary_constants_are_not_weights(copy):
    arrays = tensors(copy) | {
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)
    }
    write_tensors(copy / "model.safetensors", arrays)
    hf.load(copy, model_of(copy))
    arrays["model.layers.0.self_attn.q_proj.bias"] = np.ones(32, np.float32)
    write_tensors(copy / "model.safetensors", arrays)
    assert "model.layers.0.self_attn.q_proj.bias is unknown" in error(copy)


def test_wrong_shape_is_named_on_both_sides(copy):
    arrays = tensors(copy)
    name = "model.layers.2.mlp.down_proj.weight"
    write_tensors(copy / "model.safetensors", arrays | {name: arrays[name].T.copy()})
    message = error(copy)
    assert f"{name} is [48, 32]" in message
    assert "layers/mlp/down of this config needs [32, 48]" in message


def test_unknown_dtype_is_named(copy):
    arrays = tensors(copy)
    arrays["model.norm.weight"] = arrays["model.norm.weight"].astype(np.int8)
    write_tensors(copy / "model.safetensors", arrays)
    assert "model.norm.weight is I8" in error(copy)


@pytest.mark.parametrize("keep", [0, 5, 100, 5000, -1])
def test_truncated_file_is_not_taken_for_whole(copy, keep):
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[:keep])
    assert "model.safetensors is truncated or not a safetensors file" in error(copy)


def test_shards_must_be_those_of_the_index(copy, loaded):
    model, params = loaded("llama")
    whole = copy / "model.safetensors"
    sharded = copy.parent / "sharded"
    hf.save(sharded, params, model.config, dtype="float32", max_shard_bytes=20_000)
    shards = sorted(f.name for f in sharded.glob("*.safetensors"))
    assert len(shards) > 2
    assert all(f.stat().st_size < 22_000 for f in sharded.glob("*0000[3-9]-of*"))
    same_bits(flat(params), flat(hf.load(sharded, model)))

    shutil.copy(whole, sharded)
    assert "both model.safetensors and" in error(sharded)
    (sharded / "model.safetensors").unlink()
    (sharded / shards[1]).rename(sharded / "elsewhere")
    assert f"{shards[1]} is missing" in error(sharded)
    (sharded / "elsewhere").rename(sharded / shards[1])
    (sharded / "model.safetensors.index.json").unlink()
    assert "no model.safetensors.index.json" in error(sharded)


def test_tied_checkpoint_may_hold_the_embedding_twice_but_not_another(
    checkpoint, loaded, tmp_path
):
    path = Path(shutil.copytree(checkpoint("qwen2-tied"), tmp_path / "copy"))
    (model, params), arrays = loaded("qwen2-tied"), tensors(path)
    head = arrays["model.embed_tokens.weight"].copy()
    write_tensors(path / "model.safetensors", arrays | {"lm_head.weight": head})
    same_bits(flat(params), flat(hf.load(path, model)))
    head[3, 4] += 1
    write_tensors(path / "model.safetensors", arrays | {"lm_head.weight": head})
    assert "lm_head.weight differs" in error(path)
    assert "lm_head.weight differs" in error(path, layout=make_layout("fsdp=8"))


def test_another_config_than_the_checkpoints_is_refused(copy):
    model = model_of(copy, heads=2, rope_theta=5e5)
    message = error(copy, model)
    assert "heads 4, not 2" in message and "rope_theta 10000.0, not 500000.0" in message


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(model_type="gpt2"), "'gpt2' is not one of llama, mistral"),
        (dict(attention_bias=True), "attention_bias"),
        (dict(mlp_bias=True), "mlp_bias"),
        (dict(hidden_act="gelu"), "hidden_act"),
        (dict(rope_scaling=dict(type="yarn", factor=2.0)), "'yarn'"),
        (dict(rope_scaling=dict(rope_type="dynamic", factor=2.0)), "'dynamic'"),
        (dict(rope_scaling=dict(rope_type="linear")), "factor is missing"),
        (dict(quantization_config=dict(bits=4)), "quantization_config"),
        (dict(layer_types=["sliding_attention"] * 3), "layer_types"),
        (dict(rms_norm_eps=None), "rms_norm_eps is missing"),
    ],
)
def test_config_that_cannot_be_computed_names_the_field(copy, fields, words):
    edit_config(copy, **fields)
    with pytest.raises(UserError, match=r"config\.json: ") as e:
        hf.config_from_hf(copy)
    assert words in str(e.value)


def test_directory_without_a_model_says_what_is_missing(tmp_path, copy):
    with pytest.raises(UserError, match=r"no config\.json there"):
        hf.config_from_hf(tmp_path / "meta-llama/Llama-2-7b")
    model = model_of(copy)
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    assert "has no model.safetensors; no other format is read" in error(copy, model)


def test_both_spellings_of_rotary_settings_mean_the_same(copy):
    rope = dict(rope_type="linear", factor=2.0)
    edit_config(copy, rope_parameters=rope | {"rope_theta": 7.0})
    new = hf.config_from_hf(copy)
    edit_config(copy, rope_parameters=None, rope_scaling=rope, rope_theta=7.0)
    assert new == hf.config_from_hf(copy)
    assert (new.rope_theta, new.rope_scaling.factor) == (7.0, 2.0)


# Saving.


def test_full_disk_is_one_line_and_leaves_nothing(loaded, tmp_path):
    model, params = loaded("llama")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot be written: File too large"):
            hf.save(tmp_path / "out", params, model.config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_save_refuses_a_directory_in_use_and_sweeps_up_a_killed_save(loaded, tmp_path):
    model, params = loaded("llama")
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial/model-00007-of-00009.safetensors").write_bytes(b"half")
    hf.save(tmp_path / "out", params, model.config)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["out"]
    before = tensors(tmp_path / "out")
    with pytest.raises(UserError, match="exists and is not an empty directory"):
        hf.save(tmp_path / "out", params, model.config, dtype="float32")
    same_bits(before, tensors(tmp_path / "out"))


def test_parameters_that_are_not_the_models_are_not_exported(loaded, tmp_path):
    model, params = loaded("llama")
    with pytest.raises(UserError, match="value_head has no name"):
        hf.save(tmp_path / "out", params | {"value_head": ROWS}, model.config)
    with pytest.raises(UserError, match="lack final_norm"):
        some = {k: x for k, x in params.items() if k != "final_norm"}
        hf.save(tmp_path / "out", some, model.config)
    with pytest.raises(UserError, match="no Hugging Face family has qkv_bias=True"):
        hf.config_to_hf(replace(model.config, qkv_bias=True, qk_norm="head"))


def test_remote_directories_are_written_and_read(loaded):
    model, params = loaded("llama")
    hf.save("memory://bucket/out", params, model.config, dtype="float32")
    same_bits(flat(params), flat(hf.load("memory://bucket/out", model)))


def test_tokenizer_template_and_stop_ids_travel_along(loaded, transformers, tmp_path):
    text = [f"the quick brown fox {i} jumps over the lazy dog" for i in range(99)]
    tokenizer = tokenizers.train(text, tmp_path / "t/tokenizer.model", 300)
    model, params = loaded("llama")
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    out = tmp_path / "out"
    hf.save(out, params, model.config, tokenizer, chat_template=template)
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    ids = theirs("the lazy fox", add_special_tokens=False).input_ids
    assert ids == list(tokenizer.encode("the lazy fox"))
    chat = [dict(role="user", content="hi")]
    assert theirs.apply_chat_template(chat, tokenize=False) == "<user>hi"
    generation = transformers.GenerationConfig.from_pretrained(out)
    assert generation.eos_token_id == list(tokenizer.stop_ids)
    assert transformers.AutoConfig.from_pretrained(out).eos_token_id == tokenizer.eos


# LoRA.


def test_fresh_adapters_change_nothing_and_trained_ones_are_merged(
    checkpoint, loaded, torch, transformers, tmp_path
):
    path, (_, plain) = checkpoint("olmo2"), loaded("olmo2")
    targets = "attn/(q|o)|mlp/down"
    model = model_of(path, lora_rank=2, lora_alpha=3.0, lora_targets=targets)
    params = hf.load(path, model, make_layout("fsdp=4,tensor=2"), jax.random.key(1))
    merge = jax.jit(lambda params: lora.merge(params, model.config))
    same_bits(flat(merge(params)), flat(plain))
    adapters = {k: x for k, x in flat(jax.device_get(params)).items() if "lora_" in k}
    assert len(adapters) == 6
    assert all(np.any(x) == name.endswith("lora_a") for name, x in adapters.items())

    noise = np.random.default_rng(1)
    for name, x in adapters.items():
        if name.endswith("lora_b"):
            adapters[name] = 0.3 * noise.standard_normal(x.shape, np.float32)
    params = unflatten_dict(flat(jax.device_get(params)) | adapters, sep="/")
    hf.save(tmp_path / "out", params, model.config, dtype="float32")
    exported = their_logits(torch, read(torch, transformers, tmp_path / "out"))
    adapted = our_logits(model, params)
    assert np.abs(adapted - our_logits(loaded("olmo2")[0], plain)).max() > 0.1
    np.testing.assert_allclose(exported, adapted, rtol=0, atol=1e-4)
