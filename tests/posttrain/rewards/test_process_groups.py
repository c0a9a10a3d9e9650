"""Rewards' processes are in groups of their own, so that a signal to the run's group leaves them alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from fathom.posttrain.rewards.base import RewardInput
from fathom.posttrain.rewards.judge import Judge
from fathom.spec.problem import Problem
from fathom.spec.rewards import AccuracyReward


def test_signals_to_the_group_leave_rewards_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    spawned: list[int] = []
    popen: Callable[..., Any] = __import__("subprocess").Popen

    def remembered(*arguments: Any, **options: Any) -> Any:
        process = popen(*arguments, **options)
        spawned.append(process.pid)
        return process

    monkeypatch.setattr("fathom.posttrain.rewards.worker_client.subprocess.Popen", remembered)
    answer = RewardInput(prompt="", answer="7", problem=Problem(id="1", task="t", question="3 + 4?", answer="7"))
    with Judge((AccuracyReward(method="exact"),), seconds=5.0) as judge:
        assert judge.judge([answer])[0].correct
        assert spawned
        assert all(os.getpgid(pid) != os.getpgid(0) for pid in spawned)
