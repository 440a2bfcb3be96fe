"""A real training, killed and resumed offline, reaches a W&B server as one run with one curve.

The server is a stand-in that keeps what W&B's own client sends it; wandb.ai cannot be reached from a test.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from sae_outliers import wandb_sync
from tests.conftest import ROOT
from tests.test_tracking import inspected

TRAINING = (
    "model=synthetic/sparse", "layer=1", "n_eval=1000", "sae.n_features=256", "sae.k=8", "train.steps=600",
    "train.n_tokens=4000", "train.batch_size=64", "train.eval_every=10", "train.checkpoint_every=40", "group=sweep",
)  # fmt: skip
KEY = "a" * 40


def start(results_dir: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "sae_outliers.run", *TRAINING, f"results_dir={results_dir}"]
    env = os.environ | {"WANDB_MODE": "offline"}
    env.pop("WANDB_SERVICE", None)  # of a process that another test left there: it is not killed with this run
    with (results_dir / "said").open("a") as said:
        return subprocess.Popen(command, cwd=ROOT, env=env, process_group=0, stdout=said, stderr=said)


@pytest.fixture(scope="module")
def results_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run that was killed, with W&B's own process, amid its training, and then brought to its end."""
    results_dir = tmp_path_factory.mktemp("results")
    killed = start(results_dir)
    deadline = time.monotonic() + 60
    while not any(curve.read_text().count("\n") > 15 for curve in results_dir.glob("runs/*/1/*/metrics.jsonl")):
        assert time.monotonic() < deadline
        assert killed.poll() is None
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not list(results_dir.glob("runs/*/1/*/record.json"))
    assert start(results_dir).wait(100) == 0, (results_dir / "said").read_text()
    return results_dir


class Server(ThreadingHTTPServer):
    """Answers W&B's client as far as an upload needs it, and keeps runs and their history."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.upserts: list[dict[str, Any]] = []
        self.history: dict[str, list[dict[str, Any]]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        if path.endswith("/file_stream"):
            lines = json.loads(body).get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
            self.history.setdefault(path.split("/")[-2], []).extend(map(json.loads, lines))
        return {"data": self.graphql(**json.loads(body))} if path == "/graphql" else {}

    def graphql(self, query: str, variables: dict[str, Any], **_: object) -> dict[str, Any]:
        if "upsertBucket" in query:
            self.upserts.append(variables)
            project = {"name": variables["project"], "entity": {"name": "me"}}
            bucket = {
                "id": "1",
                "name": variables["name"],
                "displayName": "",
                "historyLineCount": 0,
                "project": project,
            }
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/put"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
        return {}


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = json.dumps(self.server.answer(self.path, body)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_PUT = do_POST

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def sync(results_dir: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sae_outliers.wandb_sync", f"results_dir={results_dir}"]
    no_key = {"WANDB_API_KEY": "", "NETRC": os.devnull}
    surroundings = os.environ | no_key | {"WANDB_MODE": "offline"} | environment
    return subprocess.run(command, cwd=ROOT, env=surroundings, capture_output=True, text=True, timeout=100)


def offline_files(results_dir: Path) -> list[Path]:
    return sorted(results_dir.glob("wandb/offline-run-*/*.wandb"))


def points(results_dir: Path) -> list[dict[str, Any]]:
    (curve,) = results_dir.glob("runs/*/1/*/metrics.jsonl")
    return [json.loads(line) for line in curve.read_text().splitlines()]


def test_the_resumed_run_has_the_same_id_and_group_and_the_whole_curve_under_the_steps_of_training(
    results_dir: Path,
) -> None:
    first, second = offline_files(results_dir)
    assert first.name == second.name
    assert first.stat().st_size == wandb_sync.HEADER  # all that a kill leaves of a short one
    entries = inspected(second)
    (run,) = (entry["run"] for entry in entries if entry["type"] == "run")
    assert f"run-{run['run_id']}.wandb" == second.name
    assert (run["run_group"], run["resume"]) == ("sweep", True)
    history = [entry["history"]["item"] for entry in entries if entry["type"] == "history"]
    assert [item["_step"] for item in history] == list(range(0, 601, 10))
    for item, point in zip(history, points(results_dir), strict=True):
        assert item["dead_pct_topk"] == pytest.approx(point["dead_pct_topk"])


def test_upload_goes_to_one_run_and_is_done_once(results_dir: Path, server: Server) -> None:
    done = sync(results_dir, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"1 offline run(s) below {results_dir}/wandb to upload\n"
    (directory,) = results_dir.glob("runs/*/1/*")
    assert {upsert["name"] for upsert in server.upserts} == {directory.name}
    assert server.upserts[0]["groupName"] == "sweep"
    sent = server.history[directory.name]
    assert [line["_step"] for line in sent] == [point["step"] for point in points(results_dir)]
    assert sent[-1]["tokens"] == 600 * 64
    server.history.clear()
    again = sync(results_dir, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
    assert (again.returncode, again.stdout) == (0, f"0 offline run(s) below {results_dir}/wandb to upload\n")
    assert server.history == {}


def test_without_a_key_it_says_that_nothing_was_uploaded(results_dir: Path) -> None:
    for marker in results_dir.glob("wandb/*/*.synced"):
        marker.unlink()
    done = sync(results_dir)
    assert done.returncode == 1
    assert f"1 of 1 run(s) were not uploaded, the first of them {offline_files(results_dir)[-1]}" in done.stderr


def test_runs_under_way_and_empty_files_wait(tmp_path: Path) -> None:
    def began(run_id: str, time: str, size: int) -> Path:
        file = tmp_path / f"wandb/offline-run-20260101_{time}-{run_id}/run-{run_id}.wandb"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"x" * size)
        return file

    began("empty", "100000", wandb_sync.HEADER)
    began("b", "100000", 90)
    resumed, alone, going = began("b", "110000", 90), began("a", "120000", 90), began("c", "100000", 90)
    (tmp_path / "runs/minilm/1/c").mkdir(parents=True)
    with FileLock(tmp_path / "runs/minilm/1/c/.lock"):
        assert wandb_sync.to_upload(tmp_path) == [alone, resumed]
    assert wandb_sync.to_upload(tmp_path) == [alone, resumed, going]
    assert wandb_sync.to_upload(tmp_path / "nowhere") == []
