"""The server as its user starts and ends it."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
from harness import ROOT, user_env
from refusals import assert_refused

pytest.importorskip("uvicorn", reason="extra serve is not installed")

PROMPT = "def f(x"


@contextlib.contextmanager
def serving(trained, *more: str):
  """Yields (process, URL) of a server of the run; it ends by SIGTERM."""
  words = [f"--workdir={trained}", "--port=0", "--rows=2", "--name=tiny"]
  with subprocess.Popen(
    [sys.executable, "-m", "gpt_jax.serve", *words, *more],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=ROOT,
    env=user_env(),
  ) as process:
    line = process.stdout.readline()
    found = re.fullmatch(r"tiny is served at (http://\S+)/v1\n", line)
    assert found, line + process.stderr.read()
    try:
      yield process, found[1]
    finally:
      if process.poll() is None:
        process.kill()


@pytest.fixture(scope="module")
def served(trained):
  with serving(trained) as found:
    yield found


def post(url: str, **body):
  request = urllib.request.Request(
    url, json.dumps(body).encode(), {"content-type": "application/json"}
  )
  with urllib.request.urlopen(request, timeout=60) as answer:
    return json.load(answer)


@pytest.mark.wide
def test_the_server_writes_what_generate_writes(served, trained, call_verb):
  body = dict(prompt=PROMPT, max_tokens=20, temperature=0)
  found = post(f"{served[1]}/v1/completions", **body)["choices"][0]["text"]
  flags = ["--num_tokens=20", "--temperature=0", "--rows=2"]
  words = [f"--workdir={trained}", f"--prompt={PROMPT}", *flags]
  done = call_verb("generate", *words)
  assert done.stdout == f"{PROMPT}{found}\n" and found
  body = dict(body, temperature=0.9, seed=3)
  drawn = post(f"{served[1]}/v1/completions", **body)["choices"][0]["text"]
  words = [*words, "--temperature=0.9", "--seed=3"]
  assert call_verb("generate", *words).stdout == f"{PROMPT}{drawn}\n"
  assert drawn != found


@pytest.mark.wide
@pytest.mark.parametrize(
  "flags",
  [
    ["--weights=int8"],
    ["--weights=int4"],
    ["--devices=2", "--config.mesh.tensor=2"],
    pytest.param(
      ["--devices=4", "--config.mesh.tensor=2", "--weights=int8"],
      marks=pytest.mark.slow,
    ),
  ],
  ids=" ".join,
)
def test_flags_mean_what_they_mean_for_generate(flags, trained, call_verb):
  body = dict(prompt=PROMPT, max_tokens=20)
  with serving(trained, *flags) as (_, url):
    ask = lambda **more: post(f"{url}/v1/completions", **body, **more)
    texts = [
      ask(temperature=0)["choices"][0]["text"],
      ask(temperature=0.9, seed=3)["choices"][0]["text"],
    ]
  words = [f"--workdir={trained}", f"--prompt={PROMPT}", "--num_tokens=20"]
  for text, more in zip(
    texts, (["--temperature=0"], ["--temperature=0.9", "--seed=3"]), strict=True
  ):
    done = call_verb("generate", *words, "--rows=2", *flags, *more)
    assert done.stdout == f"{PROMPT}{text}\n" and text


@pytest.mark.wide
def test_a_run_that_guesses_changes_no_text(served, trained):
  body = dict(prompt=PROMPT, max_tokens=21, temperature=0.9, seed=3)
  wanted = post(f"{served[1]}/v1/completions", **body)["choices"]
  with serving(trained, "--drafts=3", f"--draft={trained}") as (_, url):
    assert post(f"{url}/v1/completions", **body)["choices"] == wanted
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:
      lines = answer.read().decode().splitlines()
  # By itself, all guesses count: 3 in each of 5 steps, and none in the last, of
  # whose tokens one is asked for.
  assert "gpt_jax_guessed_tokens_total 15" in lines


def test_a_text_that_is_being_written_is_ended_before_the_server(served):
  """Keep this the last test: SIGTERM ends the server."""
  process, url = served
  body = json.dumps(dict(prompt=PROMPT, max_tokens=20, stream=True))
  request = urllib.request.Request(f"{url}/v1/completions", body.encode())
  with urllib.request.urlopen(request, timeout=60) as answer:
    answer.readline()
    process.send_signal(signal.SIGTERM)
    lines = answer.read().decode().strip().splitlines()
  assert lines[-1] == "data: [DONE]"
  assert process.wait(60) == 0, process.stderr.read()


FROZEN = """
import gc, sys
from gpt_jax import serve
serve._serve = lambda *_: print("kept", gc.get_freeze_count())
serve.main(sys.argv[1:])
"""


def test_no_text_waits_for_a_collection_of_what_was_there_before_it(trained):
  flags = [f"--workdir={trained}", "--port=0", "--rows=2"]
  done = subprocess.run(
    [sys.executable, "-c", FROZEN, *flags],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  kept = [int(n) for n in re.findall(r"^kept (\d+)$", done.stdout, re.M)]
  assert kept and kept[0] > 50_000, done.stderr


@pytest.mark.parametrize(
  "word,said",
  [
    ("--rows=0", "--rows is 0; it must be from 1"),
    ("--port=70000", "--port is 70000; it must be from 0 to 65535"),
    ("--keys=missing.txt", "missing.txt"),
    (f"--draft={ROOT}", "--drafts is 0; give the number"),
    ("--template=chatl", "did you mean 'chatml'"),
    ("--row=2", "unknown argument --row; did you mean --rows?"),
  ],
)
def test_a_wrong_flag_is_one_sentence(word, said, trained, call_verb):
  assert_refused(call_verb("serve", f"--workdir={trained}", word), said)


def test_a_port_that_is_taken_is_one_sentence(trained, call_verb):
  with socket.create_server(("127.0.0.1", 0)) as taken:
    port = taken.getsockname()[1]
    words = [f"--workdir={trained}", f"--port={port}"]
    assert_refused(call_verb("serve", *words), f"port {port}: Address already")


@pytest.mark.parametrize(
  "text,said",
  [
    ("", "holds no key"),
    ("short me 3", "line 1 has 3 words; it must be KEY NAME PER_MINUTE"),
    ("# fine\n0123456789abcdef me many", "line 2 has 3 words"),
  ],
)
def test_a_wrong_file_of_keys_is_one_sentence(
  text, said, trained, call_verb, tmp_path
):
  path = tmp_path / "keys.txt"
  path.write_text(text)
  words = [f"--workdir={trained}", f"--keys={path}"]
  assert_refused(call_verb("serve", *words), said)
