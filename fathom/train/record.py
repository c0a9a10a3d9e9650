"""Turns steps into lines: metrics.jsonl, experts.jsonl and whatever trackers are wanted.

X sources.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fathom.plan.flops import training_flops_per_token
from fathom.train.alarms import TRAINING, Alarms, worse_than_guessing
from fathom.train.gradients import Gradients, Observation
from fathom.train.measure import ExpertLoad, bits_per_byte, peak_flops, peak_memory
from fathom.train.metrics import JsonLines, read_json_lines
from fathom.train.state import Position
from fathom.train.step import StepRunner
from fathom.train.trackers import NO_TRACKING, Tracking

METRICS = "metrics.jsonl"
EXPERTS = "experts.jsonl"
_RECENT_STEPS = 20


class ThroughputMeter:
    """Tokens per second of the steps themselves, over the last few and since the last logged one."""

    def __init__(self) -> None:
        self._recent: deque[tuple[int, float]] = deque(maxlen=_RECENT_STEPS)
        self._tokens, self._seconds = 0, 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """Count one step."""
        self._recent.append((tokens, seconds))
        self._tokens += tokens
        self._seconds += seconds

    @property
    def recent(self) -> float:
        """Tokens per second over the last few steps."""
        return sum(tokens for tokens, _ in self._recent) / max(sum(seconds for _, seconds in self._recent), 1e-9)

    def since_logged(self) -> float:
        """Tokens per second since this was last asked."""
        speed = self._tokens / max(self._seconds, 1e-9)
        self._tokens, self._seconds = 0, 0.0
        return speed


class Recorder:
    """Writes one line per logged step, with the names below; values that do not apply are null or left out.

    metrics.jsonl: step, tokens, loss, lm_loss, balance_loss, mtp_loss, bits_per_byte, bits_per_byte_by_source,
    load_entropy (mean over layers) and load_entropy_min, load_max_over_mean, dropped_fraction, collapsed_layers,
    grad_norm, lr, tokens_per_second, mfu, seconds, peak_memory_bytes, evaluation, alarms (the names of those that
    hold); before them the objective's own sums, by the names it gives them. A line with ``changes`` instead says which
    fields a resume changed after its step.
    experts.jsonl: step, layers: {layer name: share of each expert}.
    """

    def __init__(
        self,
        directory: Path,
        runner: StepRunner,
        *,
        sequence_length: int,
        after_step: int,
        bytes_per_token: Mapping[str, float],
        note: Callable[[str], None],
        tracking: Tracking = NO_TRACKING,
    ) -> None:
        kept = after_step or -1  # a stage that begins anew measures its line 0 anew
        self._runner = runner
        self._bytes_per_token = bytes_per_token
        self._peak = peak_flops(runner.device, runner.dtype)
        self._flops = training_flops_per_token(runner.model.spec, sequence_length)
        self.metrics = JsonLines(directory / METRICS, after_step=kept)
        checks = (*TRAINING, worse_than_guessing(runner.model.spec.vocab_size))
        self._alarms = Alarms(checks, note=note, before=read_json_lines(directory / METRICS))
        self._experts = JsonLines(directory / EXPERTS, after_step=kept)
        self._trackers = tracking.open(directory, after_step=kept, note=note)

    def record(
        self,
        position: Position,
        gradients: Gradients,
        observation: Observation,
        *,
        rate: float,
        speed: float,
        evaluation: Mapping[str, float] | None,
    ) -> None:
        """Write one step, with the alarms that hold."""
        overall, by_source = bits_per_byte(observation.nats_X, observation.tokens_X, self._bytes_per_token)
        values: dict[str, Any] = {
            **gradients.sums,
            "tokens": position.tokens,
            "loss": gradients.loss,
            "lm_loss": gradients.objective,
            "balance_loss": gradients.balance,
            "mtp_loss": gradients.mtp,
            "bits_per_byte": overall,
            "bits_per_byte_by_source": by_source,
            **self._load(position.step, observation),
            "grad_norm": gradients.norm_value,
            "lr": rate,
            "tokens_per_second": speed,
            "mfu": speed * self._flops / self._peak if self._peak else None,
            "seconds": position.seconds,
            "peak_memory_bytes": peak_memory(self._runner.device),
        }
        if evaluation is not None:
            values["evaluation"] = dict(evaluation)
        self._write(position.step, self._alarms.add(position.step, values))

    def record_start(self, evaluation: Mapping[str, float]) -> None:
        """Write what was measured before the first step."""
        self._write(0, {"tokens": 0, "seconds": 0.0, "evaluation": dict(evaluation)})

    def _write(self, step: int, values: Mapping[str, Any]) -> None:
        self.metrics.write(step, values)
        for tracker in self._trackers:
            tracker.write(step, values)

    def end(self) -> None:
        """Note the alarms that hold at the stage's end."""
        self._alarms.end()

    def sync(self) -> None:
        """Force all lines to disk; ``ResourceError`` when there is no room."""
        self.metrics.sync()
        self._experts.sync()

    def close(self) -> None:
        """Close all files."""
        self.metrics.close()
        self._experts.close()
        for tracker in self._trackers:
            tracker.close()

    def _load(self, step: int, observation: Observation) -> dict[str, Any]:
        moe = self._runner.model.spec.moe
        if moe is None or observation.counts_LE is None:
            return {}
        load, names = ExpertLoad.of(observation.counts_LE), self._runner.layer_names
        shares = {name: [round(x, 5) for x in row] for name, row in zip(names, load.fractions, strict=False)}
        self._experts.write(step, {"layers": shares})
        collapsed = [names[layer] for layer in load.collapsed(moe.num_experts_per_tok)]
        return {
            "load_entropy": sum(load.entropy) / len(load.entropy),
            "load_entropy_min": min(load.entropy),
            "load_max_over_mean": max(load.peak),
            "dropped_fraction": observation.dropped,
            "collapsed_layers": collapsed,
        }
