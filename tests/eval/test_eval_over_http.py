"""`vistune eval` against servers on loopback: a model that answers and a judge that grades, with nothing but addresses."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vistune.__main__ import main


class Server:
    """Answers every question with the last word of the question, and every request to grade with 10 or 2. Notes what it was asked."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        noted = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                noted.requests.append(request)
                noted.keys.add(self.headers["Authorization"])
                text = answer(request["messages"][-1]["content"])
                body = {
                    "id": "1", "object": "chat.completion", "created": 0, "model": request["model"],
                    "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10},
                }  # fmt: skip
                data = json.dumps(body).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def answer(content: Any) -> str:
    text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    if not text.startswith("Grade a reply"):
        return text.split()[-1]
    right, reply = (text.split(f" {part}\n")[1].split("\n-----")[0] for part in ("right answer", "reply"))
    return "10" if right == reply else "2"


@pytest.fixture
def server() -> Iterator[Server]:
    served = Server()
    yield served
    served.close()


def test_a_served_model_is_asked_about_pictures_and_judged_by_a_served_judge(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("JUDGES_KEY", "sk-judge")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    rows = [
        {"id": word, "image": "a.png", "question": f"Say {word}", "answer": right} for word, right in (("tea", "tea"), ("milk", "rice"))
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, [{"benchmark": "mine", "scorer": "judge"}, *rows])))
    command = [
        "eval", server.url, "--model-name", "m", "--benchmarks", str(tmp_path / "mine.jsonl"), "--out", str(tmp_path / "out"),
        "--judge", f"j@{server.url}", "--judge-key-from", "JUDGES_KEY",
    ]  # fmt: skip
    assert main(command) == 0
    assert "60.00" in capsys.readouterr().out  # 10 and 2 of 10
    written = json.loads((tmp_path / "out" / "mine.by-j.json").read_text())
    assert (written["model"], written["checkpoint"], written["judge"]) == ("m", server.url, "j")
    asked = [request for request in server.requests if request["model"] == "m"]
    assert all(request["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,") for request in asked)
    # four canaries, one of which is the first question's own reply, and the second question's
    assert (len(asked), len(server.requests)) == (2, 2 + 4 + 1)
    assert server.keys == {"Bearer none", "Bearer sk-judge"}
    before = len(server.requests)
    assert main(command) == 0
    assert len(server.requests) == before


def test_a_key_that_is_not_there_is_said_before_anything_is_asked(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    rows = [{"benchmark": "mine", "scorer": "contains"}, {"id": "1", "question": "Say tea", "answer": "tea"}]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    command = ["eval", server.url, "--model-name", "m", "--benchmarks", str(tmp_path / "mine.jsonl"), "--out", str(tmp_path / "out")]
    assert main([*command, "--key-from", "NO_SUCH_KEY"]) == 2
    assert "NO_SUCH_KEY is not set" in capsys.readouterr().err
    assert not server.requests
