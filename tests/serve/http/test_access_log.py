"""The access log's lines, whatever a client sends."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.errors import DataError, SpecError
from fathom.serve.http.access_log import access_logger, log_request, log_to, shown_client, shown_path
from fathom.serve.settings import ServeSettings
from tests.serve.serving import Serve, raw

FACTS = {"client": "10.0.0.1", "method": "GET", "path": "/v1/models", "status": 200, "model": "a b", "seconds": 0.5}


def test_lines_are_text_json_or_none(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="fathom.serve.access"):
        for form in ("text", "json", "off"):
            log_request(form, lambda: FACTS)  # type: ignore[arg-type]
    text, line = (record.getMessage() for record in caplog.records)
    assert re.fullmatch(r'[\d-]+T[\d:.]+Z 10\.0\.0\.1 - GET /v1/models 200 model="a b" seconds=0\.5', text)
    assert json.loads(line) | FACTS == json.loads(line)
    with pytest.raises(SpecError, match=r"access_log: 'xml' is no form of the log; give text, json or off"):
        ServeSettings(access_log="xml")  # type: ignore[arg-type]


@given(path=st.binary(max_size=300), client=st.text(max_size=100))
def test_security_nothing_from_outside_breaks_a_line_or_looks_like_a_field(path: bytes, client: str) -> None:
    for shown in (shown_path(path), shown_client(client)):
        assert re.fullmatch(r"[!-~]{0,200}", shown)


def test_a_served_request_is_one_line_of_text(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="fathom.serve"), serve(access_log="text") as server:
        with server.http() as http:
            http.post("/v1/completions", json={"prompt": "unmistakable", "max_tokens": 3, "stream": True})
        raw(server.port, b"GET /%0a%1b[31m\x7f HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
    lines = [record.getMessage() for record in caplog.records if record.name == "fathom.serve.access"]
    assert " 127.0.0.1 - POST /v1/completions 200 " in lines[0]
    assert " model=tiny " in lines[0]
    assert re.search(r" prompt_tokens=\d+ .*completion_tokens=\d+ first_token_seconds=", lines[0])
    assert all(line.isprintable() and line.isascii() and "unmistakable" not in line for line in lines)


@pytest.mark.skipif(os.name != "posix", reason="files that are open cannot be renamed there")
def test_a_log_file_that_was_renamed_is_begun_anew(tmp_path: Path) -> None:
    path, before = tmp_path / "access.log", access_logger.handlers[:]
    level = access_logger.level
    log_to(path)
    try:
        access_logger.setLevel(logging.INFO)
        log_request("json", lambda: {"id": "first"})
        path.rename(tmp_path / "access.log.1")
        log_request("json", lambda: {"id": "second"})
    finally:
        for handler in [each for each in access_logger.handlers if each not in before]:
            access_logger.removeHandler(handler)
            handler.close()
        access_logger.propagate = True
        access_logger.setLevel(level)
    assert [json.loads(file.read_text())["id"] for file in (tmp_path / "access.log.1", path)] == ["first", "second"]
    with pytest.raises(DataError, match=r"--access-log-file: .* cannot be written"):
        log_to(tmp_path / "nowhere" / "access.log")
