"""`python -m gpt_jax.data clean` writes all documents, or no file."""

import json
import os
import subprocess
import sys

import pytest
from harness import ROOT

from gpt_jax.data import __main__ as door
from gpt_jax.data.cleaning import clean
from gpt_jax.exits import InputError

RULES = "--rules=mail,ip"


def lines(path):
  return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def source(tmp_path):
  rows = [{"text": "write to a@b.co"}, {"text": "爱 8.8.8.8\n"}, {"text": "x"}]
  path = tmp_path / "in.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def test_a_source_is_written_without_what_identifies(source, tmp_path, capsys):
  out = tmp_path / "new" / "out.jsonl"
  words = ["clean", f"--source=jsonl:{source}", f"--out={out}", RULES]
  assert door.main(words) == 0
  assert lines(out) == [
    {"name": "in.jsonl:1", "text": "write to [EMAIL]"},
    {"name": "in.jsonl:2", "text": "爱 [IP]\n"},
    {"name": "in.jsonl:3", "text": "x"},
  ]
  said = capsys.readouterr().out
  assert "3 of 3 documents written" in said
  assert "mail" + " " * 43 + "1 replaced" in said
  assert sorted(os.listdir(out.parent)) == ["out.jsonl", "out.jsonl.card.json"]
  # Its output is a source again.
  again = tmp_path / "again.jsonl"
  words = ["clean", f"--source=jsonl:{out}", f"--out={again}", RULES]
  assert door.main(words) == 0
  assert [r["text"] for r in lines(again)] == [r["text"] for r in lines(out)]


def test_a_key_makes_pseudonyms(source, tmp_path):
  key, out = tmp_path / "key", tmp_path / "out.jsonl"
  key.write_bytes(b"k" * 32)
  words = [f"--source=jsonl:{source}", f"--out={out}", RULES, f"--key={key}"]
  assert clean.main(words) == 0
  assert "[EMAIL-" in lines(out)[0]["text"]


def test_filters_leave_out_documents_and_the_page_shows_which(tmp_path):
  rows = ["a@b.co <b>and</b> {", "It is a day of the year.\n" * 9, "x"]
  source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
  source.write_text("\n".join(json.dumps({"text": row}) for row in rows))
  page = tmp_path / "page.html"
  words = [f"--source=jsonl:{source}", f"--out={out}", RULES]
  words += ["--filters=c4_braces,c4_sentences", f"--report={page}"]
  assert clean.main(words) == 0
  assert [row["name"] for row in lines(out)] == ["in.jsonl:2"]
  text = page.read_text("utf-8")
  assert "<td>c4_sentences</td><td>5 sentences or more" in text
  assert "1 of 3 documents" in text.replace("\n", " ")
  assert "[EMAIL] &lt;b&gt;and" in text and "a@b.co" not in text


COPIES = [
  "The bridge over the river is closed to all traffic until the spring " * 2,
  "One",
  "One",
  "the bridge, over the river, is closed to all traffic until the spring " * 2,
  "Another text with enough words in it to be no copy of any other one.",
]


@pytest.mark.parametrize(
  "kind, kept",
  [("keep", [1, 2, 3, 4, 5]), ("exact", [1, 2, 4, 5]), ("near", [1, 2, 5])],
)
def test_copies_are_left_out_and_the_first_is_kept(tmp_path, kind, kept):
  source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
  source.write_text("\n".join(json.dumps({"text": t}) for t in COPIES))
  words = [f"--source=jsonl:{source}", f"--out={out}", RULES]
  assert clean.main([*words, f"--copies={kind}"]) == 0
  assert [row["name"] for row in lines(out)] == [f"in.jsonl:{n}" for n in kept]


def test_a_document_that_a_filter_removed_is_nobodys_first(tmp_path):
  source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
  text = "The bridge over the river is closed to all traffic until the spring"
  rows = [text + " {", text]
  source.write_text("\n".join(json.dumps({"text": t}) for t in rows))
  words = [f"--source=jsonl:{source}", f"--out={out}", RULES, "--copies=near"]
  assert clean.main([*words, "--filters=c4_braces"]) == 0
  assert [row["name"] for row in lines(out)] == ["in.jsonl:2"]


def test_documents_that_hold_items_of_a_test_are_left_out(tmp_path, capsys):
  source, tests = tmp_path / "in.jsonl", tmp_path / "tests.jsonl"
  out = tmp_path / "out.jsonl"
  item = COPIES[4]
  rows = ["a b c d e f g h i j k l m n o p", f"Found: {item} So it was."]
  source.write_text("\n".join(json.dumps({"text": t}) for t in rows))
  tests.write_text("\n".join(json.dumps({"text": t}) for t in [item, "short"]))
  words = [f"--source=jsonl:{source}", f"--out={out}", RULES]
  assert clean.main([*words, f"--tests=jsonl:{tests}"]) == 0
  assert [row["name"] for row in lines(out)] == ["in.jsonl:1"]
  assert "1 items of --tests are too short" in capsys.readouterr().out


def test_a_failure_leaves_no_file(source, tmp_path):
  with source.open("a") as file:
    file.write("{broken\n")
  out = tmp_path / "out.jsonl"
  with pytest.raises(InputError, match="line 4 is not JSON"):
    clean.main([f"--source=jsonl:{source}", f"--out={out}", RULES])
  assert sorted(os.listdir(tmp_path)) == ["in.jsonl"]


def test_an_evaluation_set_without_texts_is_refused(source, tmp_path):
  (tmp_path / "none.txt").touch()
  words = [f"--source=jsonl:{source}", f"--out={tmp_path}/out.jsonl", RULES]
  with pytest.raises(InputError, match="--tests=text:.*none.txt is empty; giv"):
    clean.main([*words, f"--tests=text:{tmp_path}/none.txt"])
  assert not (tmp_path / "out.jsonl").exists()


def test_a_file_that_exists_is_not_written_over(source):
  before = source.read_bytes()
  with pytest.raises(InputError, match="exists; give the name of a new file"):
    clean.main([f"--source=jsonl:{source}", f"--out={source}", RULES])
  assert source.read_bytes() == before


@pytest.mark.parametrize("name", ["in.jsonl", "out.jsonl", "link/out.jsonl"])
def test_a_report_is_not_written_over_a_source_or_the_output(
  source, tmp_path, name
):
  (tmp_path / "link").symlink_to(tmp_path)
  before = source.read_bytes()
  words = [f"--source=jsonl:{source}", f"--out={tmp_path}/out.jsonl", RULES]
  with pytest.raises(InputError, match=r"--report=.* exists|each its own file"):
    clean.main([*words, f"--report={tmp_path}/{name}"])
  assert source.read_bytes() == before
  assert not (tmp_path / "out.jsonl").exists()


def test_a_report_that_cannot_be_written_leaves_no_output(source, tmp_path):
  words = [f"--source=jsonl:{source}", f"--out={tmp_path}/out.jsonl", RULES]
  with pytest.raises(InputError, match="--report: .*in.jsonl is no folder"):
    clean.main([*words, f"--report={source}/page.html"])
  assert os.listdir(tmp_path) == ["in.jsonl"]


@pytest.mark.parametrize("copies", ["keep", "near"])
def test_a_source_that_changes_meanwhile_is_refused(
  source, tmp_path, monkeypatch, copies
):
  whole = source.read_text() + '{"text": "more"}\n'

  def grow(text, *_):
    source.write_text(whole)
    return text

  monkeypatch.setattr(clean, "mend", grow)
  words = [f"--source=jsonl:{source}", f"--out={tmp_path}/out.jsonl", RULES]
  with pytest.raises(InputError, match="changed while it was read"):
    clean.main([*words, f"--copies={copies}"])
  assert os.listdir(tmp_path) == ["in.jsonl"]


@pytest.mark.parametrize(
  "kind, content",
  [("jsonl", ""), ("jsonl", '\n{"text": ""}\n'), ("text", "\ufeff")],
)
def test_a_source_without_text_is_refused(tmp_path, kind, content):
  source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
  source.write_text(content, "utf-8")
  with pytest.raises(InputError, match="no document holds any text"):
    clean.main([f"--source={kind}:{source}", f"--out={out}", RULES])
  assert os.listdir(tmp_path) == ["in.jsonl"]


def test_names_of_files_that_are_not_utf_8_are_told_by_their_bytes(tmp_path):
  folder, out = tmp_path / "in", tmp_path / "out.jsonl"
  folder.mkdir()
  with open(os.path.join(os.fsencode(folder), b"\xff.txt"), "w") as file:
    file.write("a {")
  with open(os.path.join(os.fsencode(folder), b"\xfe.txt"), "w") as file:
    file.write("b")
  page = tmp_path / "page.html"
  words = [f"--source=text:{folder}", f"--out={out}", RULES]
  assert clean.main([*words, f"--report={page}", "--filters=c4_braces"]) == 0
  assert lines(out) == [{"name": "\\udcfe.txt", "text": "b"}]
  assert "udcff.txt" in page.read_text("utf-8")
  out.unlink()
  words[0] = f"--source=text:{folder}/\udcff.txt"
  with pytest.raises(InputError, match="--source is not UTF-8"):
    clean.main(words)


@pytest.mark.parametrize("spec", ["digits:copy", "chat:{}", "labelled:{}#a#b"])
def test_records_of_several_texts_are_refused(source, tmp_path, spec):
  out = tmp_path / "out.jsonl"
  with pytest.raises(InputError, match="records with several fields"):
    clean.main([f"--source={spec.format(source)}", f"--out={out}", RULES])
  assert not out.exists()


def test_a_document_has_a_bound(source, tmp_path, monkeypatch):
  monkeypatch.setattr(clean, "MAX_CHARACTERS", 10)
  out = tmp_path / "out.jsonl"
  with pytest.raises(InputError, match="more than 10 characters; divide it"):
    clean.main([f"--source=jsonl:{source}", f"--out={out}", RULES])


def test_cleaning_imports_no_jax():
  code = "import sys; from gpt_jax.data.cleaning import clean; "
  code += "print('jax' in sys.modules, 'phonenumbers' in sys.modules)"
  words = [sys.executable, "-c", code]
  env = os.environ | {"PYTHONPATH": str(ROOT)}
  done = subprocess.run(words, env=env, capture_output=True, text=True)
  assert done.stdout.split() == ["False", "False"], done.stderr


def test_without_its_library_the_rule_names_the_extra(monkeypatch):
  from gpt_jax.data.cleaning import phones

  phones._library.cache_clear()
  monkeypatch.setitem(sys.modules, "phonenumbers", None)
  with pytest.raises(InputError, match=r"pip install -e '.\[clean\]'"):
    list(phones.find_phones("+1 212 736 5000"))
  phones._library.cache_clear()
