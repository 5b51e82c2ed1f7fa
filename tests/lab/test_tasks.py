"""lab.tasks: the figures of the harness's own adapter, and its refusals."""

import json
import shutil
import subprocess
import sys

import pytest
from forms import draw_model

from gpt_jax.config import InputError, Template
from gpt_jax.data.templates import ChatTokenizer
from gpt_jax.data.tokenizers.plain import ByteTokenizer
from gpt_jax.inference import harness
from gpt_jax.lab import tasks

# Of lm_eval 0.4.13 with its adapter of transformers 5.24 and torch, on what
# deploy.hf exports of the same run: float32, a batch of 8.
THEIRS = {
  "choose": {"acc,none": 0.4, "acc_norm,none": 0.4},
  "weigh": {"bits_per_byte,none": 1.1632968, "word_perplexity,none": 33.430916},
  "write": {"exact_match,none": 0.6666667},
}
HEAD = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
"""
CHOOSE = """\
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_target: gold
doc_to_choice: "{{choices}}"
target_delimiter: ""
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
WEIGH = """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
"""
WRITE = """\
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{a}}"
generation_kwargs: {until: ["."], max_gen_toks: 40, do_sample: false}
metric_list: [{metric: exact_match}]
"""
NAMES = ["Lily", "Tom", "Sam", "Mia", "Ben"]
THINGS = ["ball", "cat", "dog", "car", "hat"]


def write_tasks(folder) -> str:
  """Writes three tasks and their data; returns what --tasks takes."""
  choose = [
    {
      "q": f"Once upon a time, there was a little girl named {name}. She had "
      f"a {thing}. She loved to play with her",
      "choices": [f" {other}" for other in THINGS],
      "gold": THINGS.index(thing),
    }
    for name in NAMES
    for thing in THINGS
  ]
  line = "One day, {} saw a big {} and said hello."
  weigh = [
    {
      "text": " ".join(
        line.format(NAMES[i % 5], THINGS[i % 3]) for i in range(count)
      )
    }
    for count in (1, 2, 5, 40, 120)
  ]
  starts = {"boy": "named Timmy", "girl": "named Lily", "dog": "named Spot"}
  write = [
    {"q": f"Once upon a time, there was a {who}", "a": answer}
    for who, answer in starts.items()
  ]
  paths = []
  for name, body, rows in (
    ("choose", CHOOSE, choose),
    ("weigh", WEIGH, weigh),
    ("write", WRITE, write),
  ):
    data, path = folder / f"{name}.jsonl", folder / f"{name}.yaml"
    data.write_text("\n".join(map(json.dumps, rows)))
    path.write_text(HEAD.format(name=name, path=data) + body)
    paths.append(str(path))
  return ",".join(paths)


def verb(name, *words):
  subprocess.run([sys.executable, "-m", f"gpt_jax.{name}", *words], check=True)


# The same as questions of a user, by the template CHAT of the tokenizer.
CHAT = (
  "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
  "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)
THEIRS_OF_CHATS = {
  "choose": {"acc,none": 0.64, "acc_norm,none": 0.76},
  "weigh": {"bits_per_byte,none": 1.1632968, "word_perplexity,none": 33.430910},
  "write": {"exact_match,none": 0.0},
}


@pytest.fixture
def imported(tmp_path, test_data):
  """A run of an imported model, and what --tasks takes."""
  pytest.importorskip("lm_eval", reason="extra eval is not installed")
  run, theirs = tmp_path / "run", tmp_path / "theirs"
  shutil.copytree(test_data / "stories260k", theirs)
  config = theirs / "tokenizer_config.json"
  config.chmod(0o644)
  own = json.loads(config.read_text()) | {"chat_template": CHAT}
  config.write_text(json.dumps(own))
  verb("deploy.hf", "import", f"--from={theirs}", f"--workdir={run}")
  return run, write_tasks(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("words", "theirs"),
  [([], THEIRS), (["--template=tokenizer"], THEIRS_OF_CHATS)],
)
def test_tasks_give_the_figures_of_the_harness_s_own_adapter(
  words, theirs, tmp_path, imported
):
  run, names = imported
  out = tmp_path / "results.json"
  verb(
    "lab.tasks",
    f"--workdir={run}",
    f"--tasks={names}",
    f"--out={out}",
    *words,
  )
  found = json.loads(out.read_text())["results"]
  for task, metrics in theirs.items():
    for metric, value in metrics.items():
      assert found[task][metric] == pytest.approx(value, rel=1e-5), metric


@pytest.mark.slow
def test_tasks_in_training_give_the_same_figures(tmp_path, imported):
  run, names = imported
  config = json.loads((run / "config.json").read_text())["config"]
  corpus = tmp_path / "corpus.txt"
  corpus.write_text("Once upon a time, there was a cat.\n" * 400)
  changes = {k: v for k, v in config.items() if k.startswith("model.")}
  del changes["model.vocab_size"]
  changes |= {
    "data.source": f"text:{corpus}",
    "data.tokenizer": f"hf:{run / 'tokenizer.json'}",
    "data.seq_len": 32,
    "train.init_from": str(run),
    "train.global_batch_size": 8,
    "data.dir": str(tmp_path / "prepared"),
    "train.num_steps": 2,
    "optim.learning_rate": 1e-12,  # the weights stay what they are
    "optim.warmup_steps": 0,
    "eval.every_steps": 1,
    "eval.tasks": names,
  }
  file = tmp_path / "tuned.py"
  file.write_text(
    "from configs import base\n\n\ndef get_config():\n"
    "  config = base.get_config()\n"
    f"  config.update_from_flattened_dict({changes!r})\n"
    "  return config\n"
  )
  own = tmp_path / "own"
  verb("train", f"--config={file}", f"--workdir={own}")
  rows = list(map(json.loads, (own / "metrics.jsonl").read_text().splitlines()))
  rows = [row for row in rows if "eval/choose/acc" in row]
  assert [row["step"] for row in rows] == [1, 2]
  for task, metrics in THEIRS.items():
    for metric, value in metrics.items():
      name = f"eval/{task}/{metric.removesuffix(',none')}"
      for row in rows:
        assert row[name] == pytest.approx(value, rel=1e-5), name


def test_a_dialogue_and_an_answer_have_the_ids_of_the_template():
  tokenizer = ByteTokenizer()
  chat = ChatTokenizer(tokenizer, Template("chatml:text", "--template"))
  model, params = draw_model(0, vocab_size=257, max_len=64)
  answers = harness.Answers(model, params, chat, 1, 8)
  asked = [{"role": "user", "content": "Hi"}]
  begun = [*asked, {"role": "assistant", "content": "He"}]
  text = answers.open(asked, False), answers.open(begun, True)
  said = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
  decode = lambda text: tokenizer.decode(answers.encode(text, True))
  assert decode(text[0]) == said
  assert decode(text[1] + "llo") == said + "Hello"
  assert decode("alone") == "alone"  # the harness's texts without a question
  with pytest.raises(InputError, match=r"an answer holds '<\|im_end\|>'"):
    answers.encode(text[0] + "x<|im_end|>", True)
  with pytest.raises(InputError, match=r"a task's dialogue holds '<\|im_st"):
    answers.open([{"role": "user", "content": "<|im_start|>system"}], False)


@pytest.mark.parametrize(
  ("words", "said"),
  [
    (["--tasks=a,,b"], "--tasks is 'a,,b'"),
    (["--tasks=a", "--batch_size=0"], "--batch_size is 0"),
    (["--tasks=a", "--limit=0"], "--limit is 0"),
    (["--tasks=a", "--num_fewshot=-1"], "--num_fewshot is -1"),
    (["--tasks=/nowhere/x.yaml"], "/nowhere/x.yaml"),
  ],
)
def test_flags_that_mean_nothing_are_refused(words, said):
  with pytest.raises(InputError, match=said):
    tasks.main(["--workdir=/nowhere", *words])


def test_without_the_harness_the_extra_is_named(monkeypatch):
  monkeypatch.setattr(tasks.runtime, "start", lambda *a: None)
  monkeypatch.setitem(sys.modules, "lm_eval", None)
  with pytest.raises(InputError, match=r"lm_eval.*\[eval\]"):
    tasks.main(["--workdir=/nowhere", "--tasks=a"])
