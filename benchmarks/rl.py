"""One GRPO step against TRL's GRPOTrainer over transformers: same weights, prompts, lengths, loss, optimizer, threads.

Both draw ``group`` answers of exactly ``answer`` tokens to each of ``questions`` prompts, are rewarded by a rule that
costs nothing and never rewards a group alike, and take one AdamW step in float32, without KL, over forward passes of
as many tokens as ``micro`` answers have with their prompts. The trainers' own loops run in one process, taking turns:
ours takes a step, then TRL.

What is counted in which phase:

    rollout  ours: ``PolicyTrainer.collect_rollouts``; TRL: ``_generate_and_score_completions``. Both encode the
    prompts,
             draw the answers, decode them, judge them and compute advantages; ours also records which experts the
             tokens went to, and packs what the loss needs.
    update   all else from the start of a step to its end: packing or padding, forward, log-probabilities and
             entropies, loss, backward, clipping and AdamW. Neither side logs, saves or evaluates in it. Ours computes
             a prompt once for the answers of a pass, which then holds more of them; tokens are counted as TRL's.

By default a step has TRL's own defaults: answers of up to 512 tokens, groups of 8, 8 answers a pass; and
prompts as long as the answers. The ratio of updates grows with the prompt's share of the tokens.

TRL does without the gradient checkpointing and the bfloat16 it has by default, which would slow it down or make it
another computation, and with the fused AdamW.

Before the first step, TRL's log-probabilities of our answers are compared with those our sampler drew them with: that
both sides hold one model is checked, not assumed.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import backends, peers, timing
from fathom.engine.engine import Engine
from fathom.model import Decoder, build
from fathom.pipeline.rollouts import rollout_engine
from fathom.posttrain.grpo import PolicyTrainer
from fathom.posttrain.online import METRICS
from fathom.posttrain.problem_stream import ProblemStream
from fathom.posttrain.prompts import PromptFormatter
from fathom.posttrain.rewards.base import Judgement, RewardInput
from fathom.posttrain.rollout import Rollout
from fathom.progress import NO_METRICS, NullProgress
from fathom.spec import LatentAttention, MixtureOfExperts, ModelSpec, RopeSpec
from fathom.spec.problem import Problem, Split
from fathom.spec.rollout import PolicySpec, RolloutSpec
from fathom.spec.train import AdamWSpec, Checkpointing
from fathom.train.metrics import read_json_lines

BOUND = 1e-3  # by how much the two sides' log-probabilities of a token may differ
RATE, BETAS, DECAY = 1e-6, (0.9, 0.95), 0.1
TINY = ModelSpec(
    name="tiny",
    family="deepseek_v2",
    vocab_size=512,
    hidden_size=64,
    num_hidden_layers=2,
    attention=LatentAttention(num_heads=2, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16),
    max_position_embeddings=256,
    intermediate_size=128,
    first_k_dense_replace=1,
    moe=MixtureOfExperts(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, n_shared_experts=1),
    rope=RopeSpec(layout="interleaved"),
)


def our_model(shape: str) -> Decoder:
    return build(TINY, seed=0) if shape == "tiny" else peers.fathom_model(shape)


def vocabulary(size: int) -> Any:
    """One word a token, so that a prompt's text has exactly its ids; the end of sequence lies outside the model's."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    words = {f"t{token}": token for token in range(size)} | {"</s>": size}
    tokenizer = Tokenizer(WordLevel(words, unk_token="t0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return tokenizer


def prompts(a: argparse.Namespace, vocab: int) -> list[str]:
    return [" ".join(f"t{token}" for token in ids) for ids in backends.prompts_for(vocab, a.questions, a.prompt)]


class WordLevelPrompter(PromptFormatter):
    """Reads and writes with the very tokenizer that TRL is given, at the same cost."""

    stops = ()

    def __init__(self, tokenizer: Any) -> None:
        self._words = tokenizer

    def encode(self, problem: Problem) -> list[int]:
        ids: list[int] = self._words.encode(problem.question).ids
        return ids

    def question(self, problem: Problem) -> str:
        return problem.question

    def read(self, answer_ids: Sequence[int]) -> str:
        text: str = self._words.decode(list(answer_ids))
        return text


class RepeatedProblems:
    """The same few problems for ever."""

    name = "same"

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts

    def problems(self, split: Split, start: int, count: int, *, seed: int = 0) -> list[Problem]:
        texts = [self._texts[number % len(self._texts)] for number in range(start, start + count)]
        return [Problem(id=str(i), task="same", question=text, answer="") for i, text in enumerate(texts)]

    def size(self, split: Split) -> int | None:
        return len(self._texts)


def alternating(answers: Sequence[RewardInput]) -> list[Judgement]:
    """Reward every other answer."""
    return [Judgement(total=float(i % 2), parts={}, correct=None) for i in range(len(answers))]


Turn = Callable[[int, Mapping[str, Any]], None]
"""Called after a rollout's updates with its number, from 1, and its line of metrics."""


class AfterRollout(NullProgress):
    """Calls ``turn`` after every rollout."""

    def __init__(self, directory: Path, turn: Turn) -> None:
        self._metrics, self._turn = directory / METRICS, turn

    def update(
        self, done: float, total: float | None, unit: str, *, phase: str = "", metrics: Mapping[str, str] = NO_METRICS
    ) -> None:
        self._turn(round(done), read_json_lines(self._metrics)[-1])


def our_trainer(a: argparse.Namespace, steps: int, directory: Path, turn: Turn) -> PolicyTrainer:
    """Make what the grpo step of a recipe would, with an engine that has no end of sequence."""
    spec = PolicySpec(
        optimizer=AdamWSpec(lr=RATE, beta1=BETAS[0], beta2=BETAS[1], weight_decay=DECAY),
        rollouts=steps,
        rollout=RolloutSpec(questions=a.questions, group_size=a.group, max_tokens=a.answer),
        micro_batch_tokens=a.micro * (a.prompt + a.answer),
        checkpoint=Checkpointing(every_seconds=None),
    )
    model = our_model(a.shape)
    engine = Engine(model, spec=rollout_engine(spec, torch.device("cpu")))
    texts, words = prompts(a, model.spec.vocab_size), vocabulary(model.spec.vocab_size)
    questions = ProblemStream([RepeatedProblems(texts)], seed=0)
    prompt_formatter = WordLevelPrompter(words)
    return PolicyTrainer(
        model,
        spec,
        engine,
        prompt_formatter,
        questions,
        directory,
        judge=alternating,
        progress=AfterRollout(directory, turn),
    )


def trl_trainer(a: argparse.Namespace, directory: Path) -> Any:
    """Make a GRPOTrainer that notes the seconds of both phases; every ``train`` takes one step."""
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class PhaseTimer(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **further: Any) -> None:
            trainer.began = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **further: Any) -> None:
            trainer.step_seconds.append(time.perf_counter() - trainer.began)

    class Timed(GRPOTrainer):
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            started = time.perf_counter()
            found = super()._generate_and_score_completions(inputs)
            self.rollout_seconds.append(time.perf_counter() - started)
            if found["completion_ids"].shape != (a.questions * a.group, a.answer) or not found["completion_mask"].all():
                raise RuntimeError(f"TRL drew answers of shape {tuple(found['completion_ids'].shape)}")
            if not found["advantages"].abs().min() > 0:
                raise RuntimeError("TRL has answers without an advantage")
            return found

    model = peers.in_transformers(our_model(a.shape))
    vocab = model.config.vocab_size
    model.generation_config.eos_token_id = None
    settings = GRPOConfig(
        output_dir=str(directory),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        shuffle_dataset=False,
        max_steps=1,
        per_device_train_batch_size=a.micro,
        gradient_accumulation_steps=a.questions * a.group // a.micro,
        num_generations=a.group,
        max_completion_length=a.answer,
        temperature=1.0,
        beta=0.0,
        loss_type="grpo",
        router_aux_loss_coef=0.0,
        optim="adamw_torch_fused",
        learning_rate=RATE,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        weight_decay=DECAY,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
    )
    trainer = Timed(
        model=model,
        args=settings,
        reward_funcs=lambda completions, **further: [float(i % 2) for i in range(len(completions))],
        train_dataset=Dataset.from_list([{"prompt": text} for text in prompts(a, vocab)]),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=vocabulary(vocab), eos_token="</s>", pad_token="</s>", padding_side="left"
        ),
        callbacks=[PhaseTimer()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.rollout_seconds, trainer.step_seconds, trainer.began = [], [], 0.0
    return trainer


def max_logprob_difference(rollouts: Sequence[Rollout], theirs: Any) -> float:
    """Return the largest difference of a token's log-probability: as we drew it, and as TRL computes it."""
    ids_BT = torch.tensor([[*rollout.prompt_ids, *rollout.answer_ids] for rollout in rollouts])
    with torch.no_grad():
        logps_BT, _, _ = theirs._get_per_token_logps_and_entropies(
            theirs.model, ids_BT, torch.ones_like(ids_BT), len(rollouts[0].answer_ids), batch_size=8
        )
    return float((logps_BT - torch.tensor([rollout.logprobs for rollout in rollouts])).abs().max())


def compare(a: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Let both take steps in turn; the first turns warm up."""
    theirs = trl_trainer(a, folder / "trl")
    ours: dict[str, list[float]] = {"rollout": [], "update": []}

    def turn(number: int, values: Mapping[str, Any]) -> None:
        for phase, seconds in ours.items():
            seconds.append(values[f"{phase}_seconds"])
        if values["logprob_difference"] > BOUND:
            raise RuntimeError(f"we draw with other log-probabilities than we learn: {values}")
        theirs.train()

    trainer = our_trainer(a, a.warmup + a.rounds, folder / "ours", turn)
    sampled = trainer.sample(trainer.questions.next(a.questions), 0)
    trainer.questions.restore(trainer.questions.state() | {"drawn": 0})
    apart = max_logprob_difference(sampled[:: a.group], theirs)
    if apart > BOUND:
        raise RuntimeError(f"the two sides' log-probabilities differ by {apart}: they do not hold the same model")
    trainer.run()
    peer = {"rollout": theirs.rollout_seconds}
    peer["update"] = [step - drawn for step, drawn in zip(theirs.step_seconds, theirs.rollout_seconds, strict=True)]
    return {"largest_logprob_difference": apart} | summaries(a, ours, peer)


def summaries(a: argparse.Namespace, ours: dict[str, list[float]], theirs: dict[str, list[float]]) -> dict[str, object]:
    """Per phase and for the step as a whole: answer tokens, tokens learned from (prompts too), answer tokens."""
    for side in (ours, theirs):
        side["step"] = [sum(pair) for pair in zip(side["rollout"], side["update"], strict=True)]
    answers = a.questions * a.group
    units = {"rollout": answers * a.answer, "update": answers * (a.prompt + a.answer), "step": answers * a.answer}
    return {
        phase: timing.summary(
            {"fathom": ours[phase][a.warmup :], "trl": theirs[phase][a.warmup :]}, units=tokens, peer="trl"
        )
        for phase, tokens in units.items()
    }


def profile(a: argparse.Namespace, folder: Path) -> None:
    """Print where the time of our second step goes."""
    profiler = cProfile.Profile()

    def turn(number: int, values: Mapping[str, Any]) -> None:
        profiler.disable()
        if number == 1:
            profiler.enable()
        else:
            seconds = {name: round(values[f"{name}_seconds"], 3) for name in ("rollout", "update")}
            print(f"seconds while profiled: {seconds}")
            for order in ("tottime", "cumulative"):
                pstats.Stats(profiler).sort_stats(order).print_stats(25)

    our_trainer(a, 2, folder, turn).run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="s", choices=["tiny", "t", "s", "m"])
    parser.add_argument("--questions", type=int, default=1)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--answer", type=int, default=512)
    parser.add_argument(
        "--micro", type=int, default=8, help="answers whose tokens one forward pass of the update holds"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--profile", action="store_true", help="print where our own time goes instead")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    a = parser.parse_args()
    if a.group < 2 or a.questions * a.group % a.micro:
        parser.error("--group must be at least 2, and --micro divide --questions x --group")
    with tempfile.TemporaryDirectory() as folder:
        if a.profile:
            return profile(a, Path(folder))
        result = compare(a, Path(folder))
    head = {name: getattr(a, name) for name in ("shape", "questions", "group", "prompt", "answer", "micro")}
    return peers.write(f"rl-{a.shape}-prompt{a.prompt}-answer{a.answer}", head | result, a.out)


if __name__ == "__main__":
    main()
