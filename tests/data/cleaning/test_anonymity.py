"""How many rows of a table look alike: counted as by hand, or refused."""

import pathlib

import pyarrow as pa
import pytest
from pyarrow import parquet

ROWS = [
  # year, postcode, sex, diagnosis
  (1980, "10115", "f", "flu"),
  (1980, "10115", "f", "flu"),
  (1980, "10115", "f", "cold"),
  (1990, "10115", "m", "flu"),
  (1990, "10115", "m", "flu"),
  (1990, "10117", "m", "flu"),
]
NAMES = ("year", "postcode", "sex", "diagnosis")
FLAGS = ["--columns=year,postcode,sex", "--sensitive=diagnosis"]


def write(path: pathlib.Path, rows) -> str:
  if path.suffix == ".parquet":
    columns = dict(zip(NAMES, zip(*rows, strict=True), strict=True))
    parquet.write_table(
      pa.table({k: list(v) for k, v in columns.items()}), path
    )
  else:
    between = "," if path.suffix == ".csv" else "\t"
    text = [
      between.join("" if x is None else str(x) for x in row)
      for row in (NAMES, *rows)
    ]
    path.write_text("\n".join(text) + "\n")
  return f"--table={path}"


@pytest.fixture
def ask(call_verb):
  return lambda *words: call_verb("data.__main__", "anonymity", *words)


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
def test_rows_that_look_alike_are_counted(ask, tmp_path, ending):
  table = write(tmp_path / f"t.{ending}", ROWS)
  result = ask(table, *FLAGS, "--k=3")
  assert result.returncode == 1, result.stderr
  assert result.stdout.splitlines() == [
    "6 rows in 3 groups that agree in year, postcode, sex",
    "k = 1: the smallest group; 3 rows (50.0%) are in groups of fewer than 3",
    "l = 1: the fewest different values of diagnosis in a group",
    "k = 1 without year",
    "k = 3 without postcode",
    "k = 1 without sex",
  ]
  assert not any(value in result.stdout for value in ("1980", "10115", "flu"))
  # Five rows in groups of two and three.
  few = write(tmp_path / f"few.{ending}", ROWS[:5])
  result = ask(few, *FLAGS, "--k=2")
  assert result.returncode == 0 and "k = 2: the" in result.stdout
  assert "l = 1: the" in result.stdout
  assert ask(few, *FLAGS, "--k=3").returncode == 1


def test_values_run_into_no_others(ask, tmp_path):
  rows = [("a", "bc", "x", "y"), ("ab", "c", "x", "y")]
  found = ask(write(tmp_path / "t.csv", rows), "--columns=year,postcode")
  assert "2 rows in 2 groups" in found.stdout
  rows = [("a", None, "x", "y"), ("a", "None", "x", "y")]
  for ending in ("csv", "parquet"):
    table = write(tmp_path / f"null.{ending}", rows)
    assert "2 rows in 2 groups" in ask(table, "--columns=year,postcode").stdout


@pytest.mark.parametrize(
  "words, sentence",
  [
    (["--columns=year,age"], "has no column 'age'"),
    (["--columns=year,year"], "name each column once"),
    (["--columns=year", "--sensitive=year"], "name each column once"),
    (["--columns=year", "--k=1"], "must be at least 2"),
  ],
  ids=str,
)
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_what_cannot_be_counted_is_one_sentence(
  ask, tmp_path, words, sentence, ending
):
  result = ask(write(tmp_path / f"t.{ending}", ROWS), *words)
  assert result.returncode == 2 and sentence in result.stderr, result.stderr


def test_a_table_that_is_none_is_one_sentence(ask, tmp_path):
  table = pa.table({"year": [[1980], [1990]], "sex": ["f", "m"]})
  parquet.write_table(table, tmp_path / "nested.parquet")
  whole = (tmp_path / "nested.parquet").read_bytes()
  (tmp_path / "cut.parquet").write_bytes(whole[:-20])
  (tmp_path / "empty.csv").write_text("year,sex\n")
  (tmp_path / "wide.csv").write_text("year,sex\n1980,f,x\n")
  for name, words in {
    "nested.parquet": "column 'year' is nested, of type list",
    "cut.parquet": "is not a whole parquet file",
    "empty.csv": "has no rows",
    "wide.csv": "has 3 columns, and its first line names 2",
    "none.csv": "does not exist",
    "t.xlsx": "must end in .csv",
  }.items():
    result = ask(f"--table={tmp_path / name}", "--columns=year")
    assert result.returncode == 2 and words in result.stderr, result.stderr
