"""POST /v1/embeddings."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence

import numpy as np
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from fathom.errors import FathomError
from fathom.inference.embedding import check_dimensions, embed_in_steps
from fathom.serve.errors import as_api_error, refuse
from fathom.serve.http.request_body import read_body
from fathom.serve.model_pool import ModelPool
from fathom.serve.response.streams import run_until_disconnect
from fathom.serve.schemas.embeddings import EmbeddingRequest
from fathom.serve.service import Service

_Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


async def create_embeddings(models: ModelPool, http: HttpRequest) -> Response:
    """Return the embedding of each input; they are computed between the engine's steps."""
    body = await read_body(http, EmbeddingRequest, models.executor)
    service = await models.acquire(http, body.model)
    slot = service.admit(http)
    reading = service.run(lambda: _sequences(service, body))
    sequences = await run_until_disconnect(reading, http.receive)
    steps = embed_in_steps(
        service.model.engine.decoder(service.adapter),
        sequences,
        pooling=body.pooling or "mean",
        dimensions=body.dimensions,
        step_tokens=service.model.engine.spec.step_tokens,
    )
    try:
        vectors_BD = await run_until_disconnect(service.engine_client.interleave(steps), http.receive)
    except FathomError as error:
        raise as_api_error(error, retry_after=service.retry_after()) from None
    tokens = sum(map(len, sequences))
    service.charge_prompt(http, tokens)
    content = await service.run(lambda: _content(service.name, body, vectors_BD.cpu().numpy(), tokens))
    slot.release(answered=True)
    return Response(content, media_type="application/json")


def _sequences(service: Service, body: EmbeddingRequest) -> list[tuple[int, ...]]:
    """Tokenize and check the inputs; runs in a thread."""
    limits, model = service.settings.limits, service.model
    check_dimensions(body.dimensions, model.spec.hidden_size)
    inputs = _inputs(body)
    if len(inputs) > limits.embedding_inputs:
        raise refuse("input", f"{len(inputs)} inputs exceed {limits.embedding_inputs}", "split the request")
    alone = isinstance(body.input, str) or isinstance(body.input[0], int)
    names = ["input"] if alone else [f"input[{index}]" for index in range(len(inputs))]
    sequences, total = [], 0
    for name, each in zip(names, inputs, strict=True):
        sequences.append(model.embedding_tokens(each, name))
        total += len(sequences[-1])
        if total > limits.embedding_tokens:
            raise refuse("input", f"more than {limits.embedding_tokens} tokens in all", "split the request")
    return sequences


def _inputs(body: EmbeddingRequest) -> Sequence[str | list[int]]:
    given = body.input
    if isinstance(given, str):
        return [given]
    if not given:
        raise refuse("input", "is an empty list", "give a text, texts or token ids")
    if isinstance(given[0], int):
        return [[token for token in given if isinstance(token, int)]]
    return [each for each in given if not isinstance(each, int)]


def _content(name: str, body: EmbeddingRequest, vectors_BD: _Floats, tokens: int) -> bytes:
    """Return the response's JSON; runs in a thread."""
    packed = body.encoding_format == "base64"
    vectors = (
        base64.b64encode(vector_D.astype("<f4").tobytes()).decode() if packed else vector_D.tolist()
        for vector_D in vectors_BD
    )
    data = [
        json.dumps({"object": "embedding", "index": index, "embedding": vector}) for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    rest = json.dumps({"object": "list", "model": name, "usage": usage})
    return f'{rest[:-1]}, "data": [{", ".join(data)}]}}'.encode()
