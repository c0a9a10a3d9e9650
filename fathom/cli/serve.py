"""``fathom serve``: a server for OpenAI's and Anthropic's clients."""

from __future__ import annotations

import dataclasses
import logging
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fathom.cli import model_options, options, served_models
from fathom.cli.load_progress import LoadProgress
from fathom.cli.served_models import NamedModel, OpeningOptions
from fathom.errors import DataError
from fathom.extras import install_extra
from fathom.locale import tr
from fathom.logs import RecordFormatter

if TYPE_CHECKING:
    from fathom.inference.language_model import LanguageModel
    from fathom.serve.model_pool import ModelPool
    from fathom.serve.settings import ServeSettings

LOOPBACK = ("127.0.0.1", "localhost", "::1")
KEYS_VARIABLE = "FATHOM_API_KEYS"


Host = Annotated[str, typer.Option("--host", help="The address to listen on; 0.0.0.0 is all interfaces.")]
Port = Annotated[int, typer.Option("--port", help="0 chooses a free port.", min=0, max=65535)]
Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL...",
        help="A run, one of its checkpoints, a directory with config.json, a .gguf file, a name that `fathom models` "
        "lists as ready, or owner/name[@revision][:quantisation] on the hub; NAME=MODEL names it. Several are loaded "
        "on first use.",
    ),
]
ServedName = Annotated[
    str | None, typer.Option("--served-name", help="The name of one model in requests; default: its last part.")
]
Alias = Annotated[
    list[str] | None,
    typer.Option("--alias", help="ALIAS=NAME: a further name of a model, such as gpt-4o=NAME; may be repeated."),
]
Lora = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        help="NAME=DIRECTORY: an adapter that requests choose by its name as their model; may be repeated. The base "
        "model's weights are loaded once.",
    ),
]
ModelMemory = Annotated[
    str | None,
    typer.Option(
        "--model-memory",
        help="Memory of all loaded models, weights and caches, e.g. 8GiB: idle ones are unloaded to load another. "
        "Default for several: four fifths of the memory there is.",
    ),
]
LoadTimeoutSeconds = Annotated[
    float, typer.Option("--load-timeout-seconds", help="Time that a request waits for its model to be loaded.")
]
ApiKeyFile = Annotated[
    Path | None,
    typer.Option("--api-key-file", help=f"A file of keys, one a line; {KEYS_VARIABLE} holds more, between commas."),
]
Keys = Annotated[
    Path | None,
    typer.Option(
        "--keys",
        help="A TOML file of named keys with limits, [keys.NAME]; read again where it changes. docs/deployment.md has "
        "its fields.",
    ),
]
AccessLog = Annotated[
    str, typer.Option("--access-log", help="One line for each request at its end, on stderr: text, json or off.")
]
AccessLogFile = Annotated[
    Path | None, typer.Option("--access-log-file", help="A file for these lines instead; logrotate may rename it.")
]
AllowedHost = Annotated[
    list[str] | None, typer.Option("--allowed-host", help="A further allowed Host header; may be repeated.")
]
CorsOrigin = Annotated[
    list[str] | None, typer.Option("--cors-origin", help="An origin whose pages may send requests; may be repeated.")
]
AllowImageHost = Annotated[
    list[str] | None,
    typer.Option("--allow-image-host", help="A host that images may be fetched from; may be repeated."),
]
MaxBatch = Annotated[int, typer.Option("--max-batch", help="Requests in one batch.")]
StepTokens = Annotated[int, typer.Option("--step-tokens", help="New tokens of one engine step, prefill included.")]
CacheTokens = Annotated[
    int | None,
    typer.Option("--cache-tokens", help="Capacity of the key-value cache in tokens; default: four contexts."),
]
PrefixCache = Annotated[
    bool, typer.Option("--prefix-cache/--no-prefix-cache", help="Cache prompts for requests with the same prefix.")
]
SharePrefixCache = Annotated[
    bool,
    typer.Option(
        "--share-prefix-cache",
        help="Cached prompts serve the requests of all keys: faster where they ask alike, and a key can find out "
        "whether another has sent a text.",
    ),
]
SharePriority = Annotated[
    bool, typer.Option("--share-priority", help="Obey the priority of requests although there are several keys.")
]
MaxWaiting = Annotated[
    int,
    typer.Option("--max-waiting", help="Requests beside a batch that wait for the engine; more are refused.", min=1),
]
MaxConcurrentRequests = Annotated[
    int | None,
    typer.Option(
        "--max-concurrent-requests",
        help="Requests in progress at once, waiting ones included. Default: 512, or --max-batch and --max-waiting "
        "together if that is more.",
    ),
]
MaxPreprocessing = Annotated[
    int | None,
    typer.Option(
        "--max-preprocessing",
        help="Requests whose prompts are being prepared or wait for that; more are refused. Default: as for "
        "--max-concurrent-requests.",
    ),
]
PreprocessThreads = Annotated[
    int, typer.Option("--preprocess-threads", help="Threads that render templates, tokenize and decode images.")
]
MaxConnections = Annotated[
    int | None,
    typer.Option(
        "--connections",
        help="Open connections; the oldest without a complete request is closed for one more. Default: what the limit "
        "on open files allows, 4096 at most.",
    ),
]
ConnectionsPerClient = Annotated[
    int | None,
    typer.Option(
        "--connections-per-client",
        help="Open connections of one address; a trusted proxy has no limit. Default: as for "
        "--max-concurrent-requests.",
    ),
]
HeadTimeoutSeconds = Annotated[
    float, typer.Option("--head-timeout-seconds", help="Time to send a request's line and headers.")
]
BodyTimeoutSeconds = Annotated[float, typer.Option("--body-timeout-seconds", help="Time to send a request's body.")]
WriteTimeoutSeconds = Annotated[
    float, typer.Option("--write-timeout-seconds", help="Time in which a client must take 64 KiB of its response.")
]
TrustedProxy = Annotated[
    list[str] | None,
    typer.Option(
        "--trusted-proxy",
        help="The address or network of a reverse proxy, whose X-Forwarded-For names the client; may be repeated. "
        "Loopback is one.",
    ),
]
RootPath = Annotated[
    str,
    typer.Option(
        "--root-path",
        help="Where a reverse proxy publishes the server, such as /fathom, whether it removes that or not.",
    ),
]
StallTimeoutSeconds = Annotated[
    float,
    typer.Option("--stall-timeout-seconds", help="/health fails once the engine has requests but no step for as long."),
]
DrainSeconds = Annotated[
    float, typer.Option("--drain-seconds", help="Time that running requests get to finish after SIGTERM or Ctrl+C.")
]


def serve(
    model: Models,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    served_name: ServedName = None,
    alias: Alias = None,
    lora: Lora = None,
    model_memory: ModelMemory = None,
    load_timeout_seconds: LoadTimeoutSeconds = 120.0,
    api_key_file: ApiKeyFile = None,
    keys: Keys = None,
    access_log: AccessLog = "text",
    access_log_file: AccessLogFile = None,
    allowed_host: AllowedHost = None,
    cors_origin: CorsOrigin = None,
    allow_image_host: AllowImageHost = None,
    max_batch: MaxBatch = 32,
    step_tokens: StepTokens = 512,
    cache_tokens: CacheTokens = None,
    prefix_cache: PrefixCache = True,
    share_prefix_cache: SharePrefixCache = False,
    share_priority: SharePriority = False,
    max_waiting: MaxWaiting = 256,
    max_concurrent_requests: MaxConcurrentRequests = None,
    max_preprocessing: MaxPreprocessing = None,
    preprocess_threads: PreprocessThreads = 2,
    connections: MaxConnections = None,
    connections_per_client: ConnectionsPerClient = None,
    head_timeout_seconds: HeadTimeoutSeconds = 10.0,
    body_timeout_seconds: BodyTimeoutSeconds = 60.0,
    write_timeout_seconds: WriteTimeoutSeconds = 60.0,
    trusted_proxy: TrustedProxy = None,
    root_path: RootPath = "",
    stall_timeout_seconds: StallTimeoutSeconds = 300.0,
    drain_seconds: DrainSeconds = 30.0,
    chat_template: model_options.ChatTemplate = None,
    cache: model_options.Cache = "plain",
    weights: model_options.Weights = "auto",
    draft: model_options.Draft = "none",
    device: options.Device = "auto",
    dtype: model_options.Dtype = "auto",
) -> None:
    """Serve one model or several over HTTP, with a page to talk to them, until SIGTERM or Ctrl+C.

    OpenAI's clients (chat, completions, Responses, embeddings) and Anthropic's (Messages) are spoken to; /openapi.json
    describes all routes.
    """
    given = locals()
    _check_packages()
    named = served_models.with_adapters(served_models.named_models(model, served_name, alias or ()), lora or ())
    engine_fields = ("max_batch", "step_tokens", "cache_tokens", "prefix_cache")
    engine = model_options.engine_spec(cache, draft, **{name: given[name] for name in engine_fields})
    settings = _settings(given)
    _check_files(keys, access_log_file)
    memory = _memory(model_memory, len(named), device)
    opening = OpeningOptions(device, dtype, weights, engine, chat_template)
    _run(_pool_maker(named, opening, memory, settings, max_waiting), settings, host, port)


def _settings(given: Mapping[str, Any]) -> ServeSettings:
    """Return the settings that the options of ``serve`` ask for; one named like a field is that field's value."""
    from fathom.serve.http.middleware import loopback_hosts
    from fathom.serve.settings import LOOPBACK_NETWORKS, Limits, ServeSettings

    def named_like_fields(of: type[Any]) -> dict[str, Any]:
        return {each.name: given[each.name] for each in dataclasses.fields(of) if each.name in given}

    return ServeSettings(
        **named_like_fields(ServeSettings),
        key_file=given["keys"],
        api_keys=read_keys(given["api_key_file"], os.environ.get(KEYS_VARIABLE, "")),
        allowed_hosts=loopback_hosts(given["host"], given["allowed_host"] or ()),
        cors_origins=tuple(given["cors_origin"] or ()),
        image_hosts=tuple(name.lower() for name in given["allow_image_host"] or ()),
        trusted_proxies=(*LOOPBACK_NETWORKS, *(given["trusted_proxy"] or ())),
        limits=Limits.admitting(given["max_batch"] + given["max_waiting"], **named_like_fields(Limits)),
    )


def _memory(given: str | None, models: int, device: str) -> int | None:
    """Return the bytes that the models may take together; None for a single one without the option."""
    if given is not None:
        return options.parse_bytes("--model-memory", given)
    return served_models.default_memory(device) if models > 1 else None


def _pool_maker(
    named: Sequence[NamedModel], opening: OpeningOptions, memory: int | None, settings: ServeSettings, max_waiting: int
) -> Callable[[], ModelPool]:
    """Return what makes the pool; without a limit of memory there is one model, which is opened here."""
    if memory is not None:
        return lambda: _pool(named, opening, memory, settings, max_waiting)
    opened = model_options.open_model(
        named[0].path, opening.device, opening.dtype, opening.weights, opening.engine, opening.chat_template
    )
    served_models.add_adapters(opened, named[0])
    return lambda: _pool_of_one(named[0], opened, settings, max_waiting)


def read_keys(path: Path | None, variable: str) -> tuple[str, ...]:
    """Return the keys of a file, one a line, and of the environment, between commas. # begins a comment line."""
    lines: list[str] = []
    if path is not None:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            _warn_of_readers(path)
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"--api-key-file: {path} cannot be read ({error}); check the path") from None
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if path is not None and not keys:
        raise DataError(f"--api-key-file: {path} holds no keys; write one a line")
    return tuple(dict.fromkeys([*keys, *(key.strip() for key in variable.split(",") if key.strip())]))


def _check_files(keys: Path | None, access_log_file: Path | None) -> None:
    """Read the key file and open the log before a model is opened."""
    from fathom.serve.api_keys import read_key_file
    from fathom.serve.http.access_log import log_to

    if keys is not None:
        read_key_file(keys)
        _warn_of_readers(keys)
    if access_log_file is not None:
        log_to(access_log_file)


def _warn_of_readers(path: Path) -> None:
    if os.name == "posix" and path.stat().st_mode & 0o077:
        remedy = f"chmod 600 {shlex.quote(str(path))}"
        print(tr("warning: other users may read {file}; run: {command}", file=path, command=remedy), file=sys.stderr)


def _pool_of_one(named: NamedModel, model: LanguageModel, settings: ServeSettings, max_waiting: int) -> ModelPool:
    """Return a pool of a model that was opened, and say what it is."""
    from fathom.serve.model_pool import ModelPool

    adapters = [name for name, _ in named.adapters]
    pool = ModelPool.of(named.name, model, settings, aliases=named.aliases, adapters=adapters, max_waiting=max_waiting)
    _announce_model(model)
    return pool


def _pool(
    named: Sequence[NamedModel], opening: OpeningOptions, memory: int, settings: ServeSettings, max_waiting: int
) -> ModelPool:
    """Return a pool within a limit of memory; a single model is loaded at once, several on first use."""
    from fathom.serve.model_pool import ModelPool

    found = served_models.definitions(named, opening, memory)
    pool = ModelPool(found, settings, memory=memory, max_waiting=max_waiting)
    if len(named) == 1:
        with LoadProgress(named[0].path) as progress:
            _announce_model(pool.preload(named[0].name, progress).model)
        return pool
    for definition in found:
        names = ", ".join((definition.name, *definition.aliases))
        print(tr("{names}: {bytes} bytes with its cache", names=names, bytes=f"{definition.nbytes:,}"), file=sys.stderr)
    print(tr("model memory {bytes} bytes; models are loaded on first use", bytes=f"{memory:,}"), file=sys.stderr)
    return pool


def _run(make_pool: Callable[[], ModelPool], settings: ServeSettings, host: str, port: int) -> None:
    from fathom.serve.app import create_app
    from fathom.serve.run import listen, run

    if not settings.api_keys and settings.key_file is None and host not in LOOPBACK:
        print(tr("warning: {host} is open to others and there are no keys; give --keys", host=host), file=sys.stderr)
    bound = listen(host, port)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(RecordFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("fathom.serve").setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # malformed requests are counted, not a line each
    with bound:
        models = make_pool()
        try:
            run(create_app(models), bound, ready=lambda: _announce(models, host, bound.getsockname()[1]))
        finally:
            models.close()


def _announce_model(model: LanguageModel) -> None:
    model_options.announce(model)
    pool = model.engine.pool
    said = tr(
        "cache pool {tokens} tokens in pages of {page}, {bytes} bytes",
        tokens=f"{pool.num_pages * pool.page_size:,}",
        page=pool.page_size,
        bytes=f"{pool.nbytes:,}",
    )
    print(said, file=sys.stderr)


def _announce(models: ModelPool, host: str, port: int) -> None:
    settings = models.settings
    shown, keys = f"[{host}]" if ":" in host else host, len(models.keys)
    guarded = tr("{count} keys", count=keys) if keys else tr("no key needed")
    url, names = f"http://{shown}:{port}{settings.root_path}", ", ".join(models.names)
    print(tr("serving {names} at {url} ({keys})", names=names, url=url, keys=guarded), file=sys.stderr, flush=True)


def _check_packages() -> None:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise DataError(f"serving needs {error.name}, which is not installed; {install_extra('serve')}") from None
