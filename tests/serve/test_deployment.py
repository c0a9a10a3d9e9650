"""The files of deploy/: what they name exists, in the server, in its defaults and on the command line."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fathom.cli.main import make_app
from fathom.serve.api_keys import read_key_file
from fathom.serve.settings import Limits
from tests.serve.serving import Serve

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana/fathom.json").read_text())
PANELS = {panel["title"]: [target["expr"] for target in panel["targets"]] for panel in DASHBOARD["panels"]}
ALERTS = re.findall(r"expr: (?:\|\n)?(.*?)\n {8}(?=for|labels)", (DEPLOY / "prometheus/alerts.yml").read_text(), re.S)
_SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}


@pytest.fixture(scope="module")
def exported(serve: Serve) -> dict[str, set[str]]:
    """Return each name that a server exports with the labels of its samples, after some traffic."""
    key = "a-key-of-some-length"
    with serve(api_keys=(key, "another-key-of-some-length")) as server:
        server.models.metrics.key_limited.labels("key-1", "requests")
        server.models.metrics.load_failures.labels("tiny")
        server.models.metrics.load_seconds.labels("tiny")
        with server.http(authorization=f"Bearer {key}") as http:
            http.post("/v1/completions", json={"prompt": "a", "max_tokens": 3, "ignore_eos": True})
            text = http.get("/metrics").text
    found: dict[str, set[str]] = {}
    for name, kind in re.findall(r"^# TYPE (\w+) (\w+)$", text, re.M):
        found |= {name + suffix: set() for suffix in _SUFFIXES[kind]}
    for name, labels in re.findall(r"^(\w+)(?:\{(.*)\})? \S+$", text, re.M):
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return found


def _expressions() -> Iterator[tuple[str, str]]:
    yield from ((title, expression) for title, expressions in PANELS.items() for expression in expressions)
    yield from (("alert", expression) for expression in ALERTS)


@pytest.mark.parametrize(("where", "expression"), list(_expressions()))
def test_every_expression_reads_metrics_and_labels_that_the_server_exports(
    exported: dict[str, set[str]], where: str, expression: str
) -> None:
    names = set(re.findall(r"\bfathom_\w+", expression))
    job = expression == 'up{job="fathom"} == 0'
    assert names or job
    assert names <= set(exported), where
    labels = set().union(*(exported[name] for name in names)) | ({"job"} if job else set())
    grouped = {label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")}
    matched = set(re.findall(r"[{,]\s*(\w+)\s*[=!]", expression))
    assert grouped | matched <= labels, where


def test_the_dashboard_shows_every_kind_of_metric_once() -> None:
    assert len(ALERTS) == (DEPLOY / "prometheus/alerts.yml").read_text().count("- alert:") >= 7
    assert len(PANELS) == len(DASHBOARD["panels"]) >= 12
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(PANELS)


def test_the_example_of_a_key_file_is_one() -> None:
    keys = {key.name: key for key in read_key_file(DEPLOY / "keys.toml")}
    assert set(keys) == {"alice", "batch", "prometheus"}
    assert (keys["alice"].requests_per_minute, keys["batch"].requests_per_minute) == (60, 600)


@pytest.mark.parametrize("name", ["systemd/fathom.service", "compose.yaml", "nginx/fathom.conf"])
def test_every_option_that_is_named_exists(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        make_app()(["serve", "--help"])
    known = set(re.findall(r"--[a-z][\w-]+", capsys.readouterr().out))
    text = (DEPLOY / name).read_text()
    if name == "compose.yaml":
        text = "\n".join(re.findall(r"^ +- (--\S+)", text, re.M))
    else:
        text = "\n".join(re.findall(r"fathom serve(?:.*\\\n)*.*", text))
    options = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", text))
    assert len(options) >= 3
    assert options <= known


@pytest.mark.parametrize("name", ["nginx/fathom.conf", "compose/nginx.conf"])
def test_the_proxies_limits_are_the_servers(name: str) -> None:
    text, limits = (DEPLOY / name).read_text(), Limits()
    assert f"client_max_body_size {limits.body_bytes >> 20}m;" in text
    kept = re.search(r"keepalive_timeout (\d+)s;", text)
    assert kept is not None
    assert int(kept.group(1)) < limits.keep_alive_seconds
    assert "proxy_buffering off;" in text


@pytest.mark.slow
def test_promtool_accepts_the_configuration(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool")
    shutil.copytree(DEPLOY / "prometheus", tmp_path, dirs_exist_ok=True)
    (tmp_path / "fathom.key").write_text("a-key")
    for command in (["config", "prometheus.yml"], ["rules", "alerts.yml"]):
        subprocess.run([promtool, "check", *command], cwd=tmp_path, check=True)
