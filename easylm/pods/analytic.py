"""A plan without the compiler: memory and traffic of a program by formulas.

For machines that have no libtpu, and to tell which of many meshes are worth compiling.
The arguments of a program are exact; what it needs beside them is what these models
keep, gather and exchange, layer by layer. docs/pods.md has how far off it was.
"""

from easylm.pods.compiler import Memory
from easylm.pods.hlo import Collective
from easylm.pods.runs import ROLLOUT, TRAIN, WEIGHTS, Program, Run, bytes_of
from easylm.training import flops


def memory(program: Program, run: Run) -> Memory:
    given = bytes_of(program.arguments)
    known = {TRAIN: _of_training, ROLLOUT: _of_sampling, WEIGHTS: _of_moving}
    temporaries = known.get(program.name, _of_reading)(program, run)
    return Memory(int(given), 0, int(temporaries), int(given + temporaries), 0)


def collectives(program: Program, run: Run) -> list[Collective]:
    """Weights that are gathered, gradients and activations that are exchanged."""
    if program.name == WEIGHTS:
        return _gathered(program)
    trained = program.name == TRAIN
    models = run.models if trained else run.models[:1]
    return [one for model in models for one in _of_model(program, run, model.config)]


def _of_model(program: Program, run: Run, c) -> list[Collective]:
    layout, mesh = program.layout, dict(program.layout.mesh.shape)
    trained, sampled = program.name == TRAIN, program.name == ROLLOUT
    times = run.microbatches if trained else program.trips  # loops over the layers
    tokens = program.tokens / layout.ways("batch") / layout.ways("length") / times
    weights = 2.0 * flops.matmul_params(c) / layout.ways("mlp")
    stream = 2.0 * c.layers * tokens * c.dim
    keys = 4.0 * c.layers * tokens * c.kv_heads * c.head_dim * layout.ways("length")
    passes = 2 if trained else 1  # forward, and again when going back
    kinds = [
        ("all-gather", "fsdp", weights, passes),
        ("all-reduce", "tensor", stream, 2 * 3 * passes if trained else 2 * 2),
        ("all-gather", "context", 0.0 if sampled else keys, passes),
    ]
    if trained:
        kinds += [
            ("reduce-scatter", "fsdp", weights, 1),
            ("all-reduce", "data", weights / mesh["fsdp"], 2),
        ]
    found = []
    for kind, axis, size, factor in kinds:
        n = mesh[axis]
        wire = factor * size * (n - 1) / n
        # Gathers of weights overlap with computing, with the flags of flags.py.
        overlapped = (kind, axis) == ("all-gather", "fsdp") and not sampled
        if wire:
            found.append(Collective(kind, (axis,), n, wire, times, overlapped, ""))
    return found


def _layer(c, layout) -> float:
    """The weights of one layer as they are gathered."""
    heads = {"lm": c.vocab_size, "score": c.scores}.get(c.head, c.vocab_size)
    trunk = flops.matmul_params(c) - heads * c.dim
    return 2.0 * trunk / c.layers / layout.ways("mlp")


def _working(c, layout, tokens: float) -> float:
    """What a layer writes while it runs over so many tokens of a device."""
    heads = c.head_dim * (2 * c.heads + 2 * c.kv_heads)
    split = (heads + 3 * c.mlp_dim) / layout.ways("mlp")
    return 2.0 * tokens * (4 * c.dim + split)


def _head(c, layout, tokens: float, gradient: bool) -> float:
    """Of the logits: the matrix, a chunk of them, and what the gradient adds."""
    if c.head == "score":
        return 0.0
    tensor, chunk = layout.ways("act_vocab"), min(c.logits_chunk, tokens)
    matrix = c.dim * c.vocab_size / tensor
    logits = 4.0 * chunk * c.vocab_size / tensor
    return 2 * matrix + logits * (2 if gradient else 1) + 4 * matrix * gradient


def _of_training(program: Program, run: Run) -> float:
    layout = program.layout
    whole = program.tokens / layout.ways("batch") / layout.ways("length")
    tokens = whole / run.microbatches
    gradients = bytes_of(program.arguments[:1]) / 2  # in the compute dtype
    kept, most = gradients * (3 if run.microbatches > 1 else 1), 0.0
    for c in (model.config for model in run.models):
        inner = {"full": 0.0, "dots": 0.5, "none": 1.5}[c.remat]
        each = 2.0 * tokens * c.dim + inner * _working(c, layout, tokens)
        kept += c.layers * each
        one = 2 * _layer(c, layout) + 2 * _working(c, layout, tokens)
        most = max(most, one, _head(c, layout, tokens, True))
    return kept + most


def _gathered(program: Program) -> list[Collective]:
    """What a device does not have yet of what it will sample from."""
    n = dict(program.layout.mesh.shape)["fsdp"]
    missing = bytes_of(program.gives) - bytes_of(program.arguments) / 2
    one = Collective("all-gather", ("fsdp",), n, max(missing, 0.0), 1, False, "")
    return [one] if one.wire and n > 1 else []


def _of_moving(program: Program, run: Run) -> float:
    del run
    return bytes_of(program.gives) + bytes_of(program.arguments) / 2


def _of_reading(program: Program, run: Run) -> float:
    c, layout = run.models[0].config, program.layout
    tokens = program.tokens / layout.ways("batch") / layout.ways("length")
    one = 2 * _layer(c, layout) + _working(c, layout, tokens)
    return 2.0 * tokens * c.dim + max(one, _head(c, layout, tokens, False))


def _of_sampling(program: Program, run: Run) -> float:
    c, layout = run.models[0].config, program.layout
    ways = layout.ways("batch") * layout.ways("act_heads")
    cache = 4.0 * c.layers * run.slots * c.kv_heads * c.head_dim / ways
    prompts = sum(x.shape[0] * x.shape[1] for x in _prompts(program))
    tokens = prompts / layout.ways("batch")
    one = 2 * _layer(c, layout) + _working(c, layout, tokens)
    return 1.5 * cache + one + _head(c, layout, tokens, False)


def _prompts(program: Program):
    trees = (a.tree for a in program.arguments if a.kind == "batch")
    return [x for x in trees if getattr(x, "ndim", 0) == 2][:1]
