"""OpenAI batch files: what is written can be uploaded, what comes back is read whatever became of each request."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from vistune.datagen import batch
from vistune.datagen.batch import BatchReplies, write_batch
from vistune.errors import ContextLengthError, DataError, RemoteError, SaveError
from vistune.types import Conversation, SamplingParams

PARAMS = SamplingParams(max_new_tokens=64, temperature=0.7, seed=3)


def conversations(count: int) -> list[tuple[Conversation, SamplingParams]]:
    return [(Conversation(()).then("system", "Be brief.").then("user", f"Picture {number}"), PARAMS) for number in range(count)]


def requests_in(*files: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def success(request: dict[str, Any], text: str) -> dict[str, Any]:
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt",
        "choices": [
            {"index": 0, "finish_reason": "stop", "logprobs": None, "message": {"role": "assistant", "content": text, "refusal": None}}
        ],
        "usage": {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16},
    }
    return {"id": "b", "custom_id": request["custom_id"], "response": {"status_code": 200, "request_id": "r", "body": body}, "error": None}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def ask(replies: BatchReplies, number: int):
    return asyncio.run(replies.generate(*conversations(number + 1)[number]))


def test_a_request_is_the_body_that_the_api_takes(tmp_path: Path):
    written = write_batch(conversations(1), tmp_path / "requests.jsonl", model="gpt")
    (request,) = requests_in(*written.files)
    assert (request["method"], request["url"]) == ("POST", "/v1/chat/completions")
    assert request["body"] == {
        "model": "gpt",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Picture 0"}],
        "temperature": 0.7,
        "top_p": 1.0,
        "max_completion_tokens": 64,
        "seed": 3,
    }


def test_the_same_request_is_written_once_and_its_answer_serves_all(tmp_path: Path):
    written = write_batch([*conversations(3), *conversations(2)], tmp_path / "requests.jsonl", model="gpt")
    assert written.requests == len(requests_in(*written.files)) == 3


def test_what_one_file_cannot_hold_goes_on_in_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batch, "MOST_REQUESTS", 4)
    written = write_batch(conversations(10), tmp_path / "r.jsonl", model="gpt")
    assert [file.name for file in written.files] == ["r.jsonl", "r-2.jsonl", "r-3.jsonl"]
    assert [len(requests_in(file)) for file in written.files] == [4, 4, 2]
    monkeypatch.setattr(batch, "MOST_BYTES", 700)
    by_size = write_batch(conversations(10), tmp_path / "s.jsonl", model="gpt")
    assert all(file.stat().st_size <= 700 for file in by_size.files)
    assert len(requests_in(*by_size.files)) == 10


def test_answers_are_found_by_request_in_any_order_and_any_of_the_files(tmp_path: Path):
    requests = requests_in(*write_batch(conversations(6), tmp_path / "r.jsonl", model="gpt").files)
    rows = [success(request, f"Answer {number}") for number, request in enumerate(requests)]
    one, two = write_lines(tmp_path / "one.jsonl", rows[4:] + rows[:1]), write_lines(tmp_path / "two.jsonl", rows[1:4])
    replies = BatchReplies([one, two], model="gpt")
    assert [ask(replies, number).text for number in range(6)] == [f"Answer {number}" for number in range(6)]
    reply = ask(replies, 5)
    assert (reply.prompt_tokens, reply.completion_tokens, reply.finish_reason) == (11, 5, "stop")


def test_a_failed_request_says_why_and_a_later_success_replaces_it(tmp_path: Path):
    requests = requests_in(*write_batch(conversations(4), tmp_path / "r.jsonl", model="gpt").files)
    too_long = {"code": "context_length_exceeded", "message": "too many tokens"}
    errors = [
        {
            "custom_id": requests[0]["custom_id"],
            "response": {"status_code": 400, "body": {"error": {"message": "bad word"}}},
            "error": None,
        },
        {"custom_id": requests[1]["custom_id"], "response": None, "error": {"code": "batch_expired", "message": "took too long"}},
        {"custom_id": requests[2]["custom_id"], "response": {"status_code": 400, "body": {"error": too_long}}, "error": None},
    ]
    errors_file = write_lines(tmp_path / "errors.jsonl", errors)
    replies = BatchReplies([errors_file], model="gpt")
    with pytest.raises(RemoteError, match="bad word") as refused:
        ask(replies, 0)
    assert refused.value.status == 422
    with pytest.raises(RemoteError, match="took too long"):
        ask(replies, 1)
    with pytest.raises(ContextLengthError):
        ask(replies, 2)
    with pytest.raises(RemoteError, match="no answer"):
        ask(replies, 3)
    later = write_lines(tmp_path / "later.jsonl", [success(requests[0], "After all")])
    both = BatchReplies([errors_file, later], model="gpt")
    assert ask(both, 0).text == "After all"
    assert [both.answers(*each) for each in conversations(4)] == [True, False, False, False]
    assert ask(BatchReplies([later, errors_file], model="gpt"), 0).text == "After all"


def test_an_answer_to_a_request_that_has_changed_since_is_not_taken(tmp_path: Path):
    requests = requests_in(*write_batch(conversations(1), tmp_path / "r.jsonl", model="gpt").files)
    results = write_lines(tmp_path / "results.jsonl", [success(requests[0], "Old")])
    with pytest.raises(RemoteError, match="no answer"):
        ask(BatchReplies([results], model="another"), 0)


@pytest.mark.parametrize(
    "content",
    [
        "<html>502 Bad Gateway</html>\n",
        '{"custom_id": "zz", "response": null}\n',
        '{"custom_id": "ab"}\n',
        "[]\n",
        '{"custom_id": "ab", "resp',
    ],
)
def test_a_file_that_is_no_batch_result_is_refused_with_its_line(tmp_path: Path, content: str):
    path = tmp_path / "results.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=r"results\.jsonl, line 1"):
        BatchReplies([path], model="gpt")


def test_a_missing_file_and_an_empty_source_are_said(tmp_path: Path):
    with pytest.raises(DataError, match="Download"):
        BatchReplies([tmp_path / "none.jsonl"], model="gpt")
    with pytest.raises(DataError, match="nothing to ask"):
        write_batch([], tmp_path / "r.jsonl", model="gpt")


def test_requests_that_may_have_been_paid_for_are_not_overwritten(tmp_path: Path):
    write_batch(conversations(1), tmp_path / "r.jsonl", model="gpt")
    with pytest.raises(SaveError, match="exists already"):
        write_batch(conversations(2), tmp_path / "r.jsonl", model="gpt")
