"""Rewards of sampled answers: a weighted sum of terms, each of them logged.

A term is a reward model, an ensemble of them, or a verifier. Reward models read the
conversation with their own tokenizer and template; where these are the policy's, the
very tokens. The rules for answers that do not end, and for those that are too long,
are applied to the sum.

J answers, K members of an ensemble.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import jax
import numpy as np

from easylm.errors import UserError
from easylm.losses.advantages import overlong
from easylm.losses.masked import Mean
from easylm.rewards import transforms
from easylm.rewards.workers import Job, Workers
from easylm.rollout.rollouts import Samples


@dataclass(frozen=True)
class Term:
    """One of `members` and `verifier` is given; "data": what the rows ask for."""

    weight: float = 1.0
    members: Sequence[Callable] = ()  # (samples, examples) -> float[J] each
    combine: str = "mean"  # of the members: mean, min, uncertainty
    doubt: float = 0.1  # weight of the variance in "uncertainty"
    verifier: str = ""
    options: dict = field(default_factory=dict)
    transform: str = ""  # a function of rewards/transforms.py
    settings: dict = field(default_factory=dict)  # its keywords


@dataclass(frozen=True)
class Judge:
    """judge(samples, key, running) -> the samples with rewards.

    no_stop: the reward of an answer that the limit ended, whatever the terms say; None
    for what they say. buffer, penalty: of losses/advantages.py:overlong. gain and bias
    are applied last. running: (count, mean, M2) of rewards so far, to normalise by.
    """

    terms: dict[str, Term]
    example: Callable[[int], dict]  # number of a prompt -> its row, in canonical form
    workers: Workers | None = None
    no_stop: float | None = None
    buffer: int = 0
    penalty: float = 1.0
    gain: float = 1.0
    bias: float = 0.0

    def __call__(self, samples: Samples, key, running=None) -> Samples:
        there = samples.there
        examples = [self.example(int(i)) if i >= 0 else None for i in samples.items]
        asked = lambda example: example["prompt"][-1]["content"] if example else ""
        samples.questions = [asked(example) for example in examples]
        total, failed = np.zeros(len(there)), 0
        # Reward models are asked by all processes together. They come first, so that
        # nobody waits there for a process whose verifiers are slow, unseen.
        for name in sorted(
            self.terms, key=lambda name: bool(self.terms[name].verifier)
        ):
            term = self.terms[name]
            if term.members:
                values = self._learned(term, samples, examples)
            else:
                values, lost = self._verified(term, samples, examples, key)
                failed += lost
            values = np.where(there, values, 0.0)
            samples.terms[name] = values.astype(np.float32)
            if term.transform:
                values = getattr(transforms, term.transform)(values, **term.settings)
            total = total + term.weight * values
        samples.rewards = self._ruled(total, samples, running)
        return self._measured(samples, failed)

    def _learned(self, term, samples, examples):
        scores = [member(samples, examples) for member in term.members]
        return transforms.combine(np.stack(scores), term.combine, term.doubt)

    def _verified(self, term, samples, examples, key):
        """Scores, and how many verifiers failed."""
        jobs, owners = [], []
        for j in np.flatnonzero(samples.there):
            prompt = j // samples.group
            question = samples.questions[prompt]
            for name, answer in _asked(term, examples[prompt]):
                options = dict(term.options)
                if name == "random":  # two equal answers are drawn for apart
                    options["salt"] = f"{_number(key)}-{j}-{samples.items[0]}"
                jobs.append(Job(name, question, samples.texts[j], answer, options))
                owners.append(j)
        verdicts = self.workers.score(jobs) if jobs else []
        sums, counts = np.zeros((2, len(samples.there)))
        np.add.at(sums, owners, [v.score for v in verdicts])
        np.add.at(counts, owners, 1)
        return sums / np.maximum(counts, 1), sum(bool(v.failed) for v in verdicts)

    def _ruled(self, total, samples, running):
        if running is not None:
            count = float(samples.there.sum())
            kept = total[samples.there]
            samples.metrics["rewards/raw"] = Mean(float(kept.sum()), count)
            samples.metrics["rewards/squares"] = Mean(float((kept**2).sum()), count)
            total = transforms.normalized(total, running)
        if self.no_stop is not None:
            total = np.where(samples.finished, total, self.no_stop)
        total = self.gain * total + self.bias
        if self.buffer:
            limit = samples.tokens.shape[1]
            total = total + np.asarray(
                overlong(
                    samples.lengths,
                    limit=limit,
                    buffer=self.buffer,
                    penalty=self.penalty,
                )
            )
        return np.where(samples.there, total, 0.0).astype(np.float32)

    def _measured(self, samples, failed) -> Samples:
        count = float(samples.there.sum())
        for name, values in samples.terms.items():
            samples.metrics[f"rewards/{name}"] = Mean(float(values.sum()), count)
        total = float(samples.rewards.sum())
        samples.metrics["rewards/total"] = Mean(total, count)
        samples.metrics["rewards/failed"] = Mean(float(failed), count)
        return samples


def check_example(term: Term, example: dict, where: str) -> None:
    """Before training starts: the verifiers can work with what the row has, and with
    the options of the term."""
    from easylm.rewards import base

    if term.verifier == "data" and not example["verifiers"]:
        raise UserError(
            f"{where}: the row names no verifier; name one in the term's verifier"
        )
    for name, answer in _asked(term, example):
        try:
            base.check(name, answer)
            inspect.signature(base.get(name)).bind("", "", answer, **term.options)
        except (UserError, TypeError) as error:
            raise UserError(f"{where}: {name}: {error}") from None


def _asked(term, example) -> list[tuple]:
    """(verifier, ground truth) of an example."""
    verifiers = example.get("verifiers", [])
    if term.verifier == "data":
        return verifiers
    return [(term.verifier, verifiers[0][1] if verifiers else "")]


def _number(key) -> int:
    return int(np.asarray(jax.random.bits(key)))
