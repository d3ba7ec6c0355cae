"""The same sizes in PyTorch and transformers, for comparison on the same machine.

    python benchmarks/torch_peer.py --size 1b [--case NAME[@ROWS] ...] [--json FILE]
        [--model remat=full]

What a user of that library writes first: float32 weights under bfloat16 autocast, SDPA
attention, fused AdamW, `generate` with its defaults. Gradients are accumulated over two
rows at a time, since the logits of a whole batch do not fit. remat=full: layers are
checkpointed; else all is kept. Rows of several segments get their positions, from which
transformers builds the mask. Same data, same report as bench.py; needs torch and
transformers.
"""

import json
import os
import platform
import statistics
import time
from types import SimpleNamespace

os.environ["JAX_PLATFORMS"] = "cpu"  # it only counts here: the device is PyTorch's

import bench
import online
import shape
import training

AT_ONCE = 2  # rows of a part of the batch


def main() -> None:
    args = bench.options(__doc__, CASES).parse_args()
    if args.here:
        print(json.dumps(bench.here(args, CASES, machine)))
        return
    known = lambda case: case.partition("@")[0] in CASES
    args.case = args.case or [*filter(known, shape.SIZES[args.size].cases)]
    bench.run(__file__, args)


def sft_padded(repeats: int) -> dict:
    """Every position holds a token."""
    return _sft([[shape.size.length]] * shape.size.rows, repeats)


def sft_lengths_packed(repeats: int) -> dict:
    """Conversations of realistic length, packed into rows."""
    return _sft(shape.packed_rows(), repeats)


def dpo(repeats: int) -> dict:
    """Pairs that fill their rows; here every answer is a row of its own."""
    import torch
    from torch.nn.functional import logsigmoid

    rows, half = shape.size.rows, shape.size.pair // 2
    seqs = shape.rows_of([[half] * 2] * rows, 2 * half)
    tokens = _put(seqs.tokens.reshape(rows, 2, half))
    policy, reference = _model(), _model().to(torch.bfloat16).requires_grad_(False)

    def logps(model, tokens):
        logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
        chosen = logits.gather(2, tokens[:, 1:, None])[..., 0]
        return (chosen - logits.logsumexp(2)).sum(1)

    def loss(part):
        flat = tokens[part].flatten(0, 1)
        with torch.no_grad():
            before = logps(reference, flat)
        gain = (logps(policy, flat) - before).reshape(-1, 2)
        return -logsigmoid(0.1 * (gain[:, 0] - gain[:, 1])).mean()

    return _train(policy, loss, seqs, 1, repeats, pairs=rows)


def sampling(repeats: int) -> dict:
    """`generate` with bfloat16 weights and a cache that grows."""
    import numpy as np
    import torch

    model = _model().to(torch.bfloat16).eval()
    rows, new = shape.size.rows, shape.size.new
    vocabulary = shape.model().config.vocab_size
    drawn = np.random.default_rng(1).integers(0, vocabulary, (rows, shape.size.prompt))
    prompts = _put(drawn)

    def seconds(new: int) -> float:
        began = time.perf_counter()
        with torch.no_grad():
            model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=new,
                min_new_tokens=new,
                **dict(do_sample=True, top_k=0, pad_token_id=0),
            )
        _wait()
        return time.perf_counter() - began

    first = seconds(new)
    seconds(1)
    times = [seconds(new) for _ in range(repeats)]
    steps = [(t - seconds(1)) / (new - 1) for t in times]
    limit = online.reading(shape.model().config, rows, _read_rate())
    return {
        "tokens_per_second": rows * new / statistics.median(times),
        "useful_tokens_per_second": rows / statistics.median(steps),
        "fraction_of_limit": limit / statistics.median(steps),
        "peak_gib": _peak_gib(),
        "first_step_seconds": first,
        "seconds": times,
        "step_seconds": steps,
    }


CASES = {f.__name__: f for f in (sft_padded, sft_lengths_packed, dpo, sampling)}


def machine() -> dict:
    import torch
    import transformers

    return {
        "device": _device().device_kind,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "with": ["torch", "transformers", "python"],
        "published": {"flops": _product_rate(), "bytes": _read_rate()},
    }


def _sft(rows: list[list[int]], repeats: int) -> dict:
    import numpy as np

    seqs = shape.rows_of(rows, shape.size.length)
    tokens, positions = _put(seqs.tokens), _put(seqs.positions)
    scored = (np.asarray(seqs.mask) > 0) & (np.asarray(seqs.positions) > 0)
    labels = _put(np.where(scored, seqs.tokens, -100))
    model = _model()

    def loss(part):
        inputs = dict(input_ids=tokens[part], position_ids=positions[part])
        return model(**inputs, labels=labels[part], use_cache=False).loss

    return _train(model, loss, seqs, 0, repeats)


def _train(model, loss, seqs, references: int, repeats: int, pairs=0) -> dict:
    import torch

    fused = _device().platform == "gpu"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=fused)
    rows = len(seqs.tokens)
    parts = [slice(i, i + AT_ONCE) for i in range(0, rows, AT_ONCE)]

    def update() -> float:
        began = time.perf_counter()
        for part in parts:
            with torch.autocast(_device().torch, dtype=torch.bfloat16):
                value = loss(part) / len(parts)
            value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _wait()
        return time.perf_counter() - began

    first = update()
    times = [update() for _ in range(repeats)]
    seconds = statistics.median(times)
    config = shape.model().config
    done, useful, tokens = training.work(config, seqs, references, pairs)
    share = lambda work: work / seconds / _product_rate()
    report = {
        "attention": "sdpa",
        "tokens_per_second": seqs.tokens.size / seconds,
        "useful_tokens_per_second": tokens / seconds,
        "fraction_of_limit": share(done),
        "mfu": share(useful),
        "peak_gib": _peak_gib(),
        "first_step_seconds": first,
        "seconds": times,
    }
    return report | ({"pairs_per_second": pairs / seconds} if pairs else {})


def _model():
    """Random weights, drawn on the device."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from easylm.models.hf_config import config_to_hf

    config = shape.model().config
    raw = config_to_hf(config, dtype="float32")
    known = AutoConfig.for_model(raw.pop("model_type"), **raw)
    with torch.device(_device().torch):
        model = AutoModelForCausalLM.from_config(
            known, dtype=torch.float32, attn_implementation="sdpa"
        )
    if config.remat == "full":
        model.gradient_checkpointing_enable()
    return model.train()


def _device():
    import torch

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        return SimpleNamespace(platform="gpu", torch="cuda", device_kind=name)
    return SimpleNamespace(platform="cpu", torch="cpu", device_kind="cpu")


def _put(array):
    import numpy as np
    import torch

    return torch.tensor(np.asarray(array, np.int64), device=_device().torch)


def _wait() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak_gib() -> float:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return shape.peak_gib()


def _product_rate() -> float:
    from easylm.training.flops import peak_flops

    return peak_flops(_device())


def _read_rate() -> float:
    kind = _device().device_kind
    return shape.read_rate() if kind == "cpu" else shape.published_bandwidth(kind)


if __name__ == "__main__":
    main()
