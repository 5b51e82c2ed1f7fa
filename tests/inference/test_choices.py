"""Choices: the probability of each text after a prompt."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forms import draw_model

from configs import base
from gpt_jax import config as config_lib
from gpt_jax import sharding
from gpt_jax.config import InputError
from gpt_jax.data.tokenizers.plain import ByteTokenizer
from gpt_jax.inference import choices
from gpt_jax.inference.choices import Choice
from gpt_jax.inference.prompts import PromptTokenizer

LIMIT = 20
PROMPTS = ["a", "the end", "x = 1"]
TEXTS = ["yes", "no", "possibly"]


def make(**changes):
  return draw_model(3, **changes, max_len=LIMIT, vocab_size=257)


@pytest.fixture(scope="module")
def made():
  return make(position="learned")


def exact(made, prompts, texts):
  """Returns log_p_BA by full forward passes over prompt and choice."""
  model, params = made
  rows = [(p + t).encode() for p in prompts for t in texts]
  tokens = np.zeros((len(rows), LIMIT), np.int32)
  for padded, row in zip(tokens, rows, strict=True):
    padded[: len(row)] = list(row)
  log_p = np.asarray(jax.nn.log_softmax(jax.jit(model.apply)(params, tokens)))
  starts = [len(p) for p in prompts for _ in texts]
  sums = [
    sum(log_p[n, at - 1, row[at]] for at in range(start, len(row)))
    for n, (start, row) in enumerate(zip(starts, rows, strict=True))
  ]
  return np.reshape(sums, (len(prompts), len(texts)))


def figures(found):
  return np.array([[c.log_prob for c in own] for own in found])


LOCAL = dict(layer_pattern="local+global", sliding_window=3)


@pytest.mark.parametrize("changes", [{}, LOCAL], ids=["learned", "local"])
@pytest.mark.parametrize("texts", [TEXTS, ["y", "n"]], ids=["long", "one"])
def test_choices_have_the_probability_of_a_full_pass(changes, texts):
  made = make(position="rope" if changes else "learned", **changes)
  found = choices.score(*made, ByteTokenizer(), PROMPTS, texts)
  want = exact(made, PROMPTS, texts)
  np.testing.assert_allclose(figures(found), want, atol=2e-4)
  assert [c.num_tokens for c in found[0]] == [len(t) for t in texts]
  # The control: the prompt matters.
  assert abs(want[0] - want[1]).max() > 0.05


@pytest.mark.wide
def test_a_choice_fits_up_to_the_last_position(made):
  prompts = ["p" * LIMIT, "p" * (LIMIT - 7), "p"]
  tokenizer = ByteTokenizer()
  found = choices.score(*made, tokenizer, prompts[1:], TEXTS)
  # The last token is read by no one, so the pass over it is not cut.
  want = exact(made, [prompts[2]], TEXTS)
  np.testing.assert_allclose(figures(found)[1:], want, atol=2e-4)
  want = exact(made, [prompts[1]], TEXTS[:2])
  np.testing.assert_allclose(figures(found)[:1, :2], want, atol=2e-4)
  # The longer choice of another prompt moves nothing in a row that is full.
  ids = lambda *texts: [list(text.encode()) for text in texts]
  both = choices.score_ids(
    *made, ids("p" * 18, "p"), [ids("no"), ids("possibly")]
  )
  want = exact(made, ["p" * 18], ["no"]), exact(made, ["p"], ["possibly"])
  np.testing.assert_allclose(both, np.concatenate(want), atol=2e-4)
  (last,) = choices.score(*made, tokenizer, prompts[:1], ["y"])
  assert np.isfinite(last[0].log_prob)


def test_a_mesh_scores_as_one_device(made):
  prompts = PROMPTS + ["more"]
  want = figures(choices.score(*made, ByteTokenizer(), prompts, TEXTS))
  config = config_lib.freeze(base.get_config()).mesh
  sizes = dict.fromkeys(sharding.AXES, 1) | dict(data=2, fsdp=2, tensor=2)
  mesh = sharding.make_mesh(dataclasses.replace(config, **sizes))
  model, params = made
  with jax.set_mesh(mesh):
    got = choices.score(model, params, ByteTokenizer(), prompts, TEXTS)
  np.testing.assert_allclose(figures(got), want, atol=1e-4)


def test_choices_are_ranked_whole_or_by_token():
  short, long = Choice("no", -2.0, 1), Choice("possibly", -3.0, 3)
  assert choices.rank([long, short]) == [short, long]
  assert choices.rank([long, short], per_token=True) == [long, short]
  same = Choice("nay", -2.0, 1)
  assert choices.rank([same, short]) == [same, short]


class Pairs:
  """Tokens of up to two characters, so that one may span a border."""

  name, vocab_size, separator_id = "pairs", 257, None
  start_ids = (7,)

  def encode(self, text):
    pairs = [text[i : i + 2] for i in range(0, len(text), 2)]
    return np.array([sum(map(ord, p)) for p in pairs], np.uint32)


def test_a_choice_is_encoded_after_its_prompt():
  encode = lambda *args: [
    ids.tolist() for ids in choices.encode_choices(Pairs(), *args)
  ]
  a, b, c = map(ord, "abc")
  assert encode("ab", ["cb", "c"]) == [[c + b], [c]]
  # A token would span the border: the choice has its own.
  assert encode("a", ["bc"]) == [[b + c]]
  assert encode("abc", ["ab"]) == [[a + b]]
  # No start stands between a prompt and what follows it.
  own = PromptTokenizer(Pairs())
  assert own.encode("ab").tolist() == [7, a + b]
  for prompt, wanted in (("ab", [c]), ("a", [c])):
    (found,) = choices.encode_choices(own, prompt, ["c"])
    assert found.tolist() == wanted


def test_choices_that_cannot_be_scored_are_refused(made):
  tokenizer = ByteTokenizer()
  score = lambda prompts, texts, params=made[1]: choices.score(
    made[0], params, tokenizer, prompts, texts
  )
  for texts, said in {
    (): "there is no choice",
    ("a", ""): "choice 2 is empty",
    ("a", "b", "a"): "'a' is given twice",
  }.items():
    with pytest.raises(InputError, match=said):
      score(["p"], texts)
  with pytest.raises(InputError, match="prompt is empty"):
    score([""], ["a"])
  too_long = "prompt of 18 tokens and a choice of 4 are more than .* 20 pos"
  with pytest.raises(InputError, match=too_long):
    score(["p", "p" * 18], ["a", "word"])
  assert score(["p", "p" * 18], ["a", "has"])  # the control
  broken = jax.tree.map(lambda leaf: leaf * jnp.nan, made[1])
  with pytest.raises(InputError, match="logits are NaN or infinite"):
    score(["p"], ["a"], broken)
