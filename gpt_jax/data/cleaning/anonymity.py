"""`python -m gpt_jax.data anonymity`: how many rows of a table look alike.

A table is k-anonymous if each row agrees with k - 1 others in the columns by
which a person may be known (Sweeney 2002), and l-diverse if each such group
holds l different values of a sensitive column (Machanavajjhala et al. 2007).
Design choice: groups are counted by a keyed hash of their values, so that no
value is printed or held.
"""

import argparse
import hashlib
import os
from collections.abc import Iterator, Sequence

from gpt_jax import cli, files
from gpt_jax.data.sources import columns, parquet
from gpt_jax.exits import InputError

KINDS = {
  ".csv": "csv",
  ".tsv": "tsv",
  ".tab": "tsv",
  ".parquet": "parquet",
  ".pq": "parquet",
}


def _parser() -> argparse.ArgumentParser:
  parser = cli.build_parser(
    "data anonymity", __doc__.splitlines()[0], needs_config=False
  )
  parser.add_argument(
    "--table",
    required=True,
    metavar="FILE",
    help=f"a file of {', '.join(KINDS)}, whose columns have names",
  )
  parser.add_argument(
    "--columns",
    required=True,
    metavar="NAME,NAME",
    help="columns by which a person may be known, such as birth year and "
    "postcode; none with the names of people",
  )
  parser.add_argument(
    "--sensitive",
    metavar="NAME",
    help="a column whose values nobody should learn of a person",
  )
  parser.add_argument(
    "--k",
    type=int,
    default=5,
    help="rows that a group should have at least (default %(default)s)",
  )
  return parser


def main(argv: list[str]) -> int:
  """Runs the command; returns 1 if some rows are in groups below --k."""
  args = cli.parse_flags(_parser(), argv)
  names = [name.strip() for name in args.columns.split(",")]
  if args.k < 2:
    raise InputError(
      f"--k is {args.k}; it must be at least 2, as every row is one of itself"
    )
  if len(set(names)) < len(names) or "" in names or args.sensitive in names:
    raise InputError(
      f"--columns is {args.columns!r} and --sensitive {args.sensitive!r}; name "
      "each column once"
    )
  path = files.user_path("--table", args.table)
  wanted = names if args.sensitive is None else [*names, args.sensitive]
  groups = Groups(names)
  for row in read_rows(path, wanted):
    groups.add(row[: len(names)], row[len(names) :])
  if not groups.num_rows:
    raise InputError(f"{path} has no rows; give a table that has some")
  print(groups.describe(args.k, args.sensitive))
  return int(groups.num_below(args.k) > 0)


def read_rows(path: str, wanted: Sequence[str]) -> Iterator[list[str | None]]:
  """Yields the values of some columns of each row, as text; None if null.

  Raises:
    InputError: the file is no table, or lacks a column.
  """
  kind = KINDS.get(os.path.splitext(path)[1].lower())
  if kind is None:
    raise InputError(
      f"--table is {path}; its name must end in {', '.join(KINDS)}"
    )
  if kind == "parquet":
    for _, row in parquet.read_table(path, wanted):
      yield [None if value is None else str(value) for value in row]
    return
  for _, _, row in columns.read_fields(path, wanted, kind):
    yield [value or None for value in row]


class Groups:
  """Rows by their values in some columns, and without each of these.

  Attributes:
    num_rows: rows that were added.
  """

  def __init__(self, names: Sequence[str]):
    self._names, self._secret = names, os.urandom(16)
    self.num_rows = 0
    # Of all columns, and without each one: {hash of the values: rows}.
    self._counts: list[dict[bytes, int]] = [{} for _ in range(len(names) + 1)]
    self._sensitive: dict[bytes, set[bytes]] = {}

  def add(
    self, values: Sequence[str | None], sensitive: Sequence[str | None]
  ) -> None:
    """Adds a row."""
    self.num_rows += 1
    whole = self._hash(values)
    self._counts[0][whole] = self._counts[0].get(whole, 0) + 1
    for i in range(len(values)):
      key = self._hash([*values[:i], *values[i + 1 :]])
      counts = self._counts[i + 1]
      counts[key] = counts.get(key, 0) + 1
    if sensitive:
      found = self._sensitive.setdefault(whole, set())
      found.add(self._hash(sensitive))

  @property
  def k(self) -> int:
    """Rows of the smallest group."""
    return min(self._counts[0].values())

  @property
  def least_diverse(self) -> int:
    """Different sensitive values of the group that has fewest (l)."""
    return min(map(len, self._sensitive.values()))

  def num_below(self, k: int) -> int:
    """Returns the rows in groups of fewer than k."""
    return sum(n for n in self._counts[0].values() if n < k)

  def without(self) -> dict[str, int]:
    """Returns {column: k of the table without it}."""
    rest = (min(counts.values()) for counts in self._counts[1:])
    return dict(zip(self._names, rest, strict=True))

  def describe(self, k: int, sensitive: str | None) -> str:
    """Returns what was counted, a line each."""
    below = self.num_below(k)
    lines = [
      f"{self.num_rows:,} rows in {len(self._counts[0]):,} groups that agree "
      f"in {', '.join(self._names)}",
      f"k = {self.k:,}: the smallest group; {below:,} rows "
      f"({below / self.num_rows:.1%}) are in groups of fewer than {k}",
    ]
    if sensitive is not None:
      lines.append(
        f"l = {self.least_diverse:,}: the fewest different values of "
        f"{sensitive} in a group"
      )
    if len(self._names) > 1:
      lines += [f"k = {n:,} without {c}" for c, n in self.without().items()]
    return "\n".join(lines)

  def _hash(self, values: Sequence[str | None]) -> bytes:
    found = hashlib.blake2b(key=self._secret, digest_size=16)
    for value in values:
      # The length keeps "ab", "c" and "a", "bc" apart.
      data = b"" if value is None else value.encode("utf-8", "surrogatepass")
      size = -1 if value is None else len(data)
      found.update(size.to_bytes(8, "little", signed=True) + data)
    return found.digest()
