"""The classifier of quality: what it learns, from what, and what it refuses."""

import json
import random

import numpy as np
import pytest

from gpt_jax.data.cleaning import classifier, clean
from gpt_jax.exits import InputError

WORDS = {
  "good": "river stone evening letter garden winter morning history".split(),
  "bad": "click offer casino free login cookie subscribe cheap".split(),
  "both": "the of and a to in is was for with".split(),
}


def make_texts(kind: str, count: int, seed: int = 0) -> list[str]:
  dice = random.Random(f"{kind} {seed}")
  words = WORDS[kind] + WORDS["both"] * 2
  return [" ".join(dice.choices(words, k=40)) for _ in range(count)]


def write_texts(path, texts) -> str:
  path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
  return f"jsonl:{path}"


@pytest.fixture
def sources(tmp_path) -> dict[str, str]:
  return {
    kind: write_texts(tmp_path / f"{kind}.jsonl", make_texts(kind, count))
    for kind, count in (("good", 60), ("bad", 300))
  }


@pytest.fixture
def learn(sources, call_verb, tmp_path):
  def call(name="judge.json", code=0, **changes):
    words = [f"--{k}={v}" for k, v in (sources | changes).items()]
    out = tmp_path / name
    result = call_verb("data.__main__", "quality", *words, f"--out={out}")
    assert result.returncode == code, result.stderr
    return out, result

  return call


def test_bad_texts_are_left_out_and_the_card_says_who_judged(
  learn, sources, tmp_path, call_verb
):
  judge, result = learn()
  assert "100.0 % are on the right side of 0.5" in result.stdout
  new = [*make_texts("bad", 3, 1), *make_texts("good", 4, 1)]
  source, out = write_texts(tmp_path / "new.jsonl", new), tmp_path / "out.jsonl"
  page = tmp_path / "page.html"
  words = [f"--source={source}", f"--out={out}", "--rules=none"]
  words += [f"--quality={judge}", f"--report={page}"]
  result = call_verb("data.__main__", "clean", *words)
  assert result.returncode == 0, result.stderr
  rows = [json.loads(line) for line in out.read_text().splitlines()]
  assert [row["text"] for row in rows] == new[3:]
  assert "<td>good with a probability of 0.5</td><td>3" in page.read_text()
  record = json.loads((tmp_path / "out.jsonl.card.json").read_text())
  assert record["left out"] == {"quality": 3}
  trained = record["quality"]["trained"]
  for kind, count in (("good", 60), ("bad", 300)):
    own = trained[kind]
    assert own["source"] == sources[kind] and own["all were read"]
    assert own["texts"] + own["texts held out"] == count
    assert 0 < own["texts held out"] < count / 4
  assert trained["area under ROC"] == 1 == trained["right of those held out"]
  assert record["quality"]["digest"] == json.loads(judge.read_text())["digest"]


def test_the_least_probability_is_the_users(learn, tmp_path):
  judge, _ = learn()
  text = "river garden click offer the of and a"
  score = classifier.read("--quality", str(judge)).score(text)
  for least, is_kept in ((score - 1e-6, True), (score + 1e-6, False)):
    rater = clean.Rater(classifier.read("--quality", str(judge)), least)
    assert (clean.Judge((), None, None, rater)(text) is None) == is_kept


def test_the_same_texts_make_the_same_file(learn):
  one, _ = learn("one.json")
  other, _ = learn("other.json")
  assert one.read_bytes() == other.read_bytes()


def test_the_weights_are_at_the_minimum_of_the_loss():
  sets = {k: classifier.TextSet(make_texts(k, 9)) for k in ("good", "bad")}
  weights, bias = classifier.fit(sets["good"], sets["bad"])
  gradient, gradient_b = classifier.PENALTY * weights.astype(np.float64), 0.0
  for kind, sign in (("good", 1), ("bad", -1)):
    for buckets, values in sets[kind].rows:
      margin = sign * (weights[buckets] @ values + bias)
      slope = -sign / (1 + np.exp(margin)) / 18
      gradient[buckets] += slope * values
      gradient_b += slope
  assert np.abs(gradient).max() < 1e-5 and abs(gradient_b) < 1e-5
  assert np.abs(weights).max() > 0.1  # it is not the start


def test_both_sets_count_alike_whatever_their_sizes():
  few, many = make_texts("good", 10), make_texts("bad", 400)
  weights, bias = classifier.fit(*map(classifier.TextSet, (few, many)))
  made = classifier.Classifier(weights, bias, {})
  neutral = np.mean([made.score(t) for t in make_texts("both", 20)])
  assert 0.2 < neutral < 0.8


def test_features_are_logarithms_of_counts_of_norm_one():
  buckets, values = classifier.features("a b A, b c")
  # a, b, c, "a b" twice, "b a", "b c".
  assert len(buckets) == 6 and buckets.max() < 1 << classifier.BITS
  wanted = np.array([1 + np.log(2)] * 3 + [1.0] * 3)
  wanted /= np.linalg.norm(wanted)
  np.testing.assert_allclose(sorted(values)[::-1], wanted, rtol=1e-6)
  assert classifier.features("")[1].tolist() == [1.0]  # one n-gram of none


def test_separation_is_the_share_of_pairs_in_order():
  assert classifier.separation([0.9, 0.4], [0.5, 0.1]) == 0.75
  assert classifier.separation([0.5], [0.5, 0.4]) == 0.75


def test_a_set_is_read_as_far_as_there_is_room(monkeypatch):
  texts = make_texts("good", 5)
  sizes = [len(classifier.features(text)[0]) for text in texts]
  monkeypatch.setattr(classifier, "MAX_ENTRIES", sum(sizes[:3]))
  found = classifier.TextSet(texts)
  assert found.num_texts == 3 and found.is_cut
  assert not classifier.TextSet(texts[:3]).is_cut


def test_what_is_no_classifier_is_one_sentence(learn, tmp_path):
  judge, _ = learn()
  content = json.loads(judge.read_text())
  bad = tmp_path / "bad.json"
  turned = content | {"bias": content["bias"] + 1}
  for text in ("{", "[]", "{}", json.dumps(turned), judge.read_text()[:5000]):
    bad.write_text(text)
    with pytest.raises(InputError, match=f"--quality={bad} ") as caught:
      classifier.read("--quality", str(bad))
    assert "\n" not in str(caught.value)
  with pytest.raises(InputError, match="does not exist"):
    classifier.read("--quality", str(tmp_path / "no.json"))


def test_what_cannot_be_learned_is_one_sentence(learn, sources, tmp_path):
  few = write_texts(tmp_path / "few.jsonl", make_texts("good", 5))
  out, result = learn("new.json", 2, good=few)
  assert f"--good={few} has 5 texts" in result.stderr and not out.exists()
  out, _ = learn()
  _, result = learn(code=2)
  assert "exists; give the name of a new file" in result.stderr
  new = tmp_path / "clean.jsonl"
  words = [f"--source={few}", f"--out={new}", f"--quality={out}", "--least=1"]
  with pytest.raises(InputError, match="--least is 1.0; it must be between"):
    clean.main(words)
  assert not new.exists()
