"""``HarnessModel``: a Fathom model as lm-evaluation-harness asks one, registered in it as ``fathom``.

Importing this module needs lm-eval. Log-likelihoods come from ``evals.multiple_choice``, texts from the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any, cast

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from fathom.chat.encoding import render
from fathom.errors import DataError
from fathom.evals.multiple_choice import ChoiceResult, score_questions
from fathom.inference.chat_session import make_request, run_many
from fathom.inference.harness.grouping import ScoringRequest, grouped
from fathom.inference.harness.responses import Responses
from fathom.inference.harness.sampling import Generation, read_generation
from fathom.inference.language_model import LanguageModel
from fathom.inference.request_preparation import (
    PreparedRequest,
    TextOptions,
    prepare_text,
    require_chat_template,
)
from fathom.logs import warn_once
from fathom.plan import count_parameters
from fathom.progress import NULL_PROGRESS, Progress
from fathom.spec.engine import EngineSpec, WeightChoice

_DEFAULT_DEVICE = "cuda:0"
"""What the harness's command line says where no device is given."""
Pair = tuple[str, str]
TokenRequest = tuple[Pair | None, list[int], list[int]]


@register_model("fathom")
class HarnessModel(TemplateLM):  # type: ignore[misc]
    """A model for the harness: ``pretrained`` is what ``fathom.load`` opens, or a model that is open.

    ``dtype``, ``weights``, ``adapter`` and ``chat_template`` are as of ``LanguageModel.open``. A ``batch_size`` above 1
    is how many texts the engine generates at once; 1, the harness's default, and "auto" leave that to the engine.
    ``add_bos_token`` decides whether texts begin with that token; the tokenizer does where it is None. ``max_length``
    is at most the model's context. ``responses`` holds answers of an interrupted run.

    Raises:
        FathomError: the model cannot be opened, or has no tokenizer.
    """

    def __init__(
        self,
        pretrained: str | LanguageModel,
        *,
        device: str | None = None,
        dtype: str = "auto",
        weights: str = "auto",
        adapter: str | None = None,
        chat_template: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        add_bos_token: bool | None = None,
        max_length: int | None = None,
        progress: Progress = NULL_PROGRESS,
        responses: Responses | None = None,
    ) -> None:
        super().__init__()
        if isinstance(pretrained, str):
            size = int(str(batch_size)) if str(batch_size).isdigit() else 1
            pretrained = LanguageModel.open(
                pretrained,
                device="auto" if device in (None, _DEFAULT_DEVICE) else str(device),
                dtype=dtype,
                weights=cast(WeightChoice, weights),
                engine=EngineSpec(max_batch=size) if size > 1 else None,
                chat_template=chat_template,
                adapter=adapter,
                progress=progress,
            )
        self.language_model = pretrained
        self.add_bos_token = add_bos_token
        self.progress = progress
        self.responses = responses or Responses()
        self.answering = False
        """Whether a request is being answered, so that an error is no task's."""
        self._ours = pretrained.tokenizer
        self._max_length = min(max_length or self.context, self.context)

    @property
    def context(self) -> int:
        """Tokens that the model takes at most."""
        return self.language_model.spec.max_position_embeddings

    @property
    def max_length(self) -> int:
        """Tokens that are read at once, at most."""
        return self._max_length

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self._ours.eos_id

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text which nothing precedes."""
        return self.eot_token_id if self._ours.bos_id is None else self._ours.bos_id

    @property
    def tokenizer_name(self) -> str:
        """A name for the harness's cache of prompts: the same for the same tokens and chat template."""
        return f"{self.language_model.spec.name}-{self._ours.fingerprint[:16]}".replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness records about a model."""
        return {
            "model_name": self.language_model.spec.name,
            "model_num_parameters": count_parameters(self.language_model.spec).total,
            "model_dtype": str(self.language_model.model.dtype).removeprefix("torch."),
            "model_weights": self.language_model.weights,
        }

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the chat template: the model's, or one of several by name.

        Raises:
            DataError: it has none, or none of that name.
        """
        if chat_template is False or chat_template is None:
            return None
        require_chat_template(self._ours, str(self.language_model.path))
        if isinstance(chat_template, str):
            self._ours = self._ours.with_template(chat_template)
        return self._ours.chat_template

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation as the text of its prompt; without ``add_generation_prompt`` it ends inside an answer.

        A system message that the template refuses is left out, as the harness does with transformers' models.
        """
        require_chat_template(self._ours, str(self.language_model.path))
        try:
            return self._rendered(chat_history, add_generation_prompt)
        except DataError as error:
            others = [message for message in chat_history if message["role"] != "system"]
            if len(others) == len(chat_history):
                raise
            warn_once(f"the system message is left out, since the chat template refuses it ({error})")
            return self._rendered(others, add_generation_prompt)

    def _rendered(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        named: dict[str, Any] = {"bos_token": "", "eos_token": "", **self._ours.template_variables}
        return render(
            messages,
            self._ours.chat_template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            **named,
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return the ids of a text, after the tokens that the tokenizer adds unless it begins with them."""
        prefix: Sequence[int] = ()
        begins = self._ours.id_to_token(self.prefix_token_id)
        if add_special_tokens is True or (add_special_tokens is None and not (begins and string.startswith(begins))):
            prefix = self._prefix
        return [*prefix, *self._ours.encode(string, allow_special=True)]

    @property
    def _prefix(self) -> Sequence[int]:
        if self.add_bos_token is None:
            return self._ours.prefix_ids
        return (self._ours.bos_id,) if self.add_bos_token and self._ours.bos_id is not None else ()

    def _loglikelihood_tokens(self, requests: list[TokenRequest], **kwargs: Any) -> list[tuple[float, bool]]:
        """Return the log-likelihood of every continuation in nats, and whether it is what greedy decoding gives."""
        given = [
            ScoringRequest(pair, tuple(context) or (self.prefix_token_id,), tuple(continuation))
            for pair, context, continuation in requests
        ]
        found: dict[int, tuple[float, bool]] = {}
        with self._working(len(given), "loglikelihoods") as count:
            for index, request in enumerate(given):
                kept = None if request.pair is None else self.responses.take("loglikelihood", request.pair)
                if kept is not None:
                    found[index] = (float(kept[0]), bool(kept[1]))
            count(len(found))
            todo = [index for index in range(len(given)) if index not in found]
            questions = grouped([given[index] for index in todo], self.max_length)

            def report(number: int, scored: ChoiceResult) -> None:
                for place, logprob, greedy in zip(
                    questions[number].places, scored.logprobs, scored.greedy, strict=True
                ):
                    request, answer = given[todo[place]], (logprob, greedy)
                    found[todo[place]] = answer
                    if request.pair is not None:
                        self._keep("loglikelihood", request.pair, answer)
                count(len(scored.logprobs))

            score_questions(self.language_model.model, [each.question for each in questions], on_result=report)
        return [found[index] for index in range(len(given))]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of every text in nats, each token after as many before it as windows allow."""
        texts = [request.args[0] for request in requests]
        kept = [self.responses.take("loglikelihood_rolling", (text,)) for text in texts]
        windows: list[TokenRequest] = []
        owners: list[int] = []
        for index, text in enumerate(texts):
            if kept[index] is not None:
                continue
            rolling = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            for context, continuation in map(make_disjoint_window, rolling):
                windows.append((None, context, continuation))
                owners.append(index)
        totals = [0.0 if each is None else float(each) for each in kept]
        for index, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[index] += logprob
        for index, text in enumerate(texts):
            if kept[index] is None:
                self._keep("loglikelihood_rolling", (text,), totals[index])
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Return how every text goes on, until a stop string, the end of the text or ``max_gen_toks``.

        A context that leaves no room for ``max_gen_toks`` loses its beginning.
        """
        asked = [(request.args[0], read_generation(request.args[1])) for request in requests]
        answers: dict[int, str] = {}
        with self._working(len(requests), "answers") as count:
            for index, request in enumerate(requests):
                kept = self.responses.take("generate_until", request.args)
                if kept is not None:
                    answers[index] = str(kept)
            count(len(answers))
            todo = [index for index in range(len(requests)) if index not in answers]
            prepared = [self._prepared(*asked[index]) for index in todo]
            engine_requests = (
                (one, make_request(self.language_model, one, sampling, self.max_length)) for one, sampling in prepared
            )
            with closing(run_many(self.language_model.engine, engine_requests)) as done:
                for number, builder in done:
                    index, text = todo[number], builder.answer.text
                    answers[index] = text
                    self._keep("generate_until", requests[index].args, text)
                    count(1)
        return [answers[index] for index in range(len(requests))]

    def _prepared(self, text: str, generation: Generation) -> tuple[PreparedRequest, Mapping[str, Any]]:
        ids = self.tok_encode(text) or [self.prefix_token_id]
        room = self.max_length - generation.max_tokens
        if room < 1:  # the answer gets what the context leaves
            room = self.max_length - 1
        if len(ids) > room:
            warn_once(f"contexts are truncated on the left to {room} tokens, which the model's context leaves for them")
        ids = ids[-room:]
        most = min(generation.max_tokens, self.max_length - len(ids))
        prepared = prepare_text(self.language_model, ids, options=TextOptions(stop=generation.stop))
        return prepared, {**generation.sampling, "max_tokens": most}

    def _keep(self, method: str, arguments: Sequence[Any], answer: Any) -> None:
        self.cache_hook.add_partial(method, arguments, answer)
        self.responses.keep(method, arguments, answer)

    @contextmanager
    def _working(self, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        """Report work of ``total`` units, to the progress given or as the harness's other models do."""
        done = 0
        with tqdm(total=total, desc=unit, disable=self.progress is not NULL_PROGRESS or not total) as bar:

            def count(more: int) -> None:
                nonlocal done
                done += more
                bar.update(more)
                self.progress.update(done, total, unit)

            self.answering = True
            yield count
            self.answering = False
