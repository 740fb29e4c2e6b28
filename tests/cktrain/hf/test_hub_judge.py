"""Models, tokenizers and adapters by their id: huggingface_hub fetches them from a server of this test, and finds them in
its cache without one.

Its environment is read when it is imported, so that each case is a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from chat_models import write_weights

from cktrain.api import load
from cktrain.hf.hub import hub_id, local_path
from cktrain.side_files import read_tokenizer

pytest.importorskip("huggingface_hub")
pytestmark = pytest.mark.judge

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PROGRAM = """
import sys
from cktrain.api import load
from cktrain.hf.hub import hub_id, local_path
from cktrain.side_files import read_tokenizer
from cktrain.hf.peft_folder import find_adapter
from cktrain.side_files import read_tokenizer
for name in sys.argv[1:]:
    kind, _, name = name.rpartition("=")
    try:
        if kind == "tokenizer":
            found = read_tokenizer(name).found_in
        else:
            found = find_adapter(name) if kind == "adapter" else local_path(name)
        print("found", found, hub_id(found))
    except ValueError as error:
        print("refused", error)
"""


class Hub(BaseHTTPRequestHandler):
    """One model, org/tiny, as the Hub serves it."""

    folder: Path
    asked: list[str]
    etag: str = ""
    """What the server says model.safetensors is, instead of its SHA-1."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        files = {file.name: file.read_bytes() for file in self.folder.iterdir()}
        headers = {"X-Repo-Commit": COMMIT}
        if path == "/api/models/org/tiny/revision/main":
            names = [{"rfilename": name} for name in files]
            body = json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": names}).encode()
        elif path == f"/api/models/org/tiny/tree/{COMMIT}":
            body = json.dumps(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in files.items()
                ]
            ).encode()
        elif path.startswith(f"/org/tiny/resolve/{COMMIT}/") and Path(path).name in files:
            body = files[Path(path).name]
            is_weights = self.etag and path.endswith("model.safetensors")
            headers["ETag"] = f'"{self.etag if is_weights else hashlib.sha1(body).hexdigest()}"'
        else:
            headers |= {"X-Error-Code": "RepoNotFound"}
            self._send(404, b"{}", headers, with_body)
            return
        self._send(200, body, headers, with_body)

    def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[type[Hub]]:
    """A server of org/tiny, beside whose files stand some that are not wanted."""
    folder = tmp_path / "served"
    write_weights(folder)
    (folder / "consolidated.safetensors").write_bytes(b"the same once more")
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    handler = type("Tiny", (Hub,), {"folder": folder, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    handler.endpoint = f"http://127.0.0.1:{server.server_port}"
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


def ask(folder: Path, *names: str, **environment: str) -> list[str]:
    """What a process says of these ids, whose cache is in `folder`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environ = {**kept, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *names],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return [line for line in done.stdout.splitlines() if line.startswith(("found", "refused"))]


def test_a_model_is_fetched_once_and_found_without_a_network(tmp_path, hub):
    snapshot = tmp_path / "home" / "hub" / "models--org--tiny" / "snapshots" / COMMIT
    first, again, other = ask(tmp_path, "org/tiny", "org/tiny", "org/none", HF_ENDPOINT=hub.endpoint)
    assert first == again == f"found {snapshot} org/tiny"
    fetched = {Path(path).name for path in hub.asked if "/resolve/" in path}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= fetched
    assert not fetched & {"consolidated.safetensors", "pytorch_model.bin"}
    assert (
        sum(path.endswith("revision/main") for path in hub.asked if "tiny" in path) == 1
    )  # the second time by the cache
    assert f"no such repository at {hub.endpoint}, or a private one" in other
    assert ask(tmp_path, "org/tiny", HF_HUB_OFFLINE="1") == [first]


def test_of_a_tokenizer_and_an_adapter_their_own_files_are_fetched(tmp_path, hub):
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (hub.folder / name).write_bytes(b"{}")
    (adapter,) = ask(tmp_path, "adapter=org/tiny", HF_ENDPOINT=hub.endpoint)
    resolved = [path for path in hub.asked if "/resolve/" in path]
    assert {Path(path).name for path in resolved} == {"adapter_config.json", "adapter_model.safetensors"}
    assert adapter.endswith(f"/snapshots/{COMMIT} org/tiny")
    hub.asked.clear()
    offline, refused = ask(tmp_path, "adapter=org/tiny", "tokenizer=org/tiny", HF_HUB_OFFLINE="1")
    assert offline == adapter and "hf download org/tiny" in refused and not hub.asked
    tokenizer, model = ask(tmp_path, "tokenizer=org/tiny", "org/tiny", HF_ENDPOINT=hub.endpoint)
    assert tokenizer == model == adapter
    fetched = [Path(path).name for path in hub.asked if "/resolve/" in path]
    assert fetched.index("tokenizer.json") < fetched.index("model.safetensors")
    assert ask(tmp_path, "tokenizer=org/tiny", HF_HUB_OFFLINE="1") == [tokenizer]


def test_offline_the_command_is_told_that_fetches_it(tmp_path):
    """The cache is made by hand: one model that is whole, and one of which a tokenizer alone was fetched."""
    for name in ("whole", "part"):
        folder = tmp_path / "home" / "hub" / f"models--org--{name}"
        snapshot = folder / "snapshots" / COMMIT
        write_weights(snapshot)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(COMMIT)
        if name == "part":
            (snapshot / "model.safetensors").unlink()
    whole, part, revision, none = ask(
        tmp_path, "org/whole", "org/part", "org/part@v2", "org/none", HF_HUB_OFFLINE="1"
    )
    assert whole.startswith("found") and whole.endswith(f"/snapshots/{COMMIT} org/whole")
    cache = tmp_path / "home" / "hub"
    for line, command, place in (
        (part, "hf download org/part;", "models--org--part"),
        (revision, "hf download org/part --revision v2;", "models--org--part"),
        (none, "hf download org/none;", "models--org--none"),
    ):
        assert "refused [hub] org/" in line and "(HF_HUB_OFFLINE is set)" in line
        assert command in line and f"then copy {cache / place} to here" in line


def test_what_is_a_path_is_no_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "tiny").mkdir(parents=True)
    for path in ("org/tiny", "org/none", "./other/none", "/org/none", "org/a/b", "model", "../org/none"):
        assert local_path(path) == Path(path)
    assert hub_id("org/tiny") is None


def test_what_had_a_say_in_the_connection_is_named_and_not_shown(tmp_path):
    port = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    port.server_close()  # nobody listens there
    where = f"http://127.0.0.1:{port.server_port}"
    (line,) = ask(tmp_path, "org/tiny", HF_ENDPOINT=where, https_proxy="http://me:secret@127.0.0.1:9")
    assert f"it cannot be fetched ({where}: " in line
    assert re.search(r", with HF_ENDPOINT, .*https_proxy.* set: correct what is not meant", line)
    assert "secret" not in line


def test_a_model_in_the_cache_without_its_tokenizer_is_told_with_the_command_that_fetches_it(tmp_path):
    snapshot = tmp_path / "hub" / "models--org--tiny" / "snapshots" / COMMIT
    write_weights(snapshot)
    (snapshot / "tokenizer.json").unlink()
    command = f"hf download org/tiny --revision {COMMIT}"
    with pytest.raises(ValueError, match=rf"the model without its tokenizer: {command}$"):
        read_tokenizer(snapshot)
    with pytest.raises(ValueError, match=rf"--tokenizer .*, or fetch what the hub's cache lacks: {command}$"):
        load(snapshot).encode("a")


def test_what_was_damaged_on_its_way_is_named_and_fetched_again(tmp_path, hub):
    weights = (hub.folder / "model.safetensors").read_bytes()
    hub.etag = hashlib.sha256(b"other bytes").hexdigest()
    (refused,) = ask(tmp_path, "org/tiny", HF_ENDPOINT=hub.endpoint)
    assert "model.safetensors is not the file that the Hub has: its SHA-256 is another" in refused
    subprocess.run(refused[refused.index("rm ") :], shell=True, check=True)
    hub.etag = hashlib.sha256(weights).hexdigest()
    (found,) = ask(tmp_path, "org/tiny", HF_ENDPOINT=hub.endpoint)
    assert found.startswith("found")
